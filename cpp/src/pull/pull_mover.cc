// SPDX-License-Identifier: Apache-2.0
// Pulling by memcpy.
#include "pull/pull_mover.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/text.h"
#include "eplb.h"
#include "memory/allocation.h"
#include "transport/cell_layout.h"

namespace eplb {
namespace {

// Bytes copied between two looks at the cancellation: well below a millisecond.
constexpr uint64_t kStride = 1 << 20;

void copy(uint64_t target, uint64_t source, uint64_t bytes) {
  std::memcpy(reinterpret_cast<void*>(target), reinterpret_cast<const void*>(source), bytes);
}

class PullMover : public Mover {
 public:
  PullMover(const MoverConfig& config, std::shared_ptr<const std::vector<WeightsView>> views,
            std::shared_ptr<Control> control, const Cancellation& cancellation)
      : rank_(config.rank),
        own_(config.weights),
        staging_plan_(config.staging),
        layout_(own_.tensor_bytes),
        expert_bytes_(own_.expert_bytes()),
        views_(std::move(views)),
        control_(std::move(control)),
        cancellation_(cancellation) {
    staging_bytes = layout_.bytes * staging_plan_.all_cells();
    staging_ = Allocation(config.device, staging_bytes);
  }

  void begin(const std::vector<RankBatch>& batches, bool) override {
    ++epoch_;
    batches_ = &batches;
    bytes_in = bytes_out = 0;
    control_->enter(epoch_, static_cast<uint32_t>(batches.size()));
  }

  size_t commits_before(size_t batch) const override { return staging_plan_.commits_before(batch); }

  void stage(size_t batch) override {
    cancellation_.check("stage weights");
    uint64_t cell = first_cell(batch);
    for (const Operation& operation : (*batches_)[batch].operations) {
      if (operation.code == EPLB_OP_SEND) {
        bytes_out += expert_bytes_;
        continue;
      }
      if (operation.code == EPLB_OP_RECEIVE) bytes_in += expert_bytes_;
      gather(operation, cell);
      if (operation.takes_cell()) cell += layout_.bytes;
    }
  }

  void arrive(size_t batch) override { control_->arrive(epoch_, fence(batch), rank_); }

  void wait(size_t batch) override { control_->wait(epoch_, fence(batch), rank_, cancellation_); }

  bool agreed(size_t batch) override {
    cancellation_.check_cancelled("wait for other ranks");
    return control_->passed(epoch_, fence(batch));
  }

  bool resolve(size_t batch) override {
    return control_->resolve(epoch_, fence(batch), rank_, cancellation_.cause());
  }

  void commit(size_t batch) override {
    for (const RankBatch::Commit& change : (*batches_)[batch].commits) {
      const uint64_t cell = first_cell(batch) + layout_.bytes * static_cast<uint64_t>(change.cell);
      for (int32_t tensor = 0; tensor < own_.tensors; ++tensor) {
        copy(own_.at(change.layer, tensor, change.slot), cell + layout_.offset[tensor],
             own_.tensor_bytes[tensor]);
      }
    }
  }

  bool landed(size_t) override { return true; }  // memcpy is done when it returns
  void flush() override {}

  void finish() override {
    arrive(batches_->size());
    wait(batches_->size());
  }

 private:
  static uint32_t fence(size_t batch) { return static_cast<uint32_t>(batch); }

  uint64_t first_cell(size_t batch) const {
    return staging_.address() + batch % staging_plan_.sets * staging_plan_.cells * layout_.bytes;
  }

  // Into the cell; or into the slot itself, if that is given up.
  void gather(const Operation& operation, uint64_t cell) {
    const WeightsView& source = (*views_)[operation.peer];
    for (int32_t tensor = 0; tensor < own_.tensors; ++tensor) {
      const uint64_t from = source.at(operation.layer, tensor, operation.peer_slot);
      const uint64_t to = operation.direct ? own_.at(operation.layer, tensor, operation.slot)
                                           : cell + layout_.offset[tensor];
      const uint64_t bytes = own_.tensor_bytes[tensor];
      for (uint64_t done = 0; done < bytes;) {
        const uint64_t piece = std::min(bytes - done, kStride - unchecked_);
        copy(to + done, from + done, piece);
        done += piece;
        account(piece);
      }
    }
  }

  // Ends a long stage soon after a cancellation, without a look at the clock for each small tensor.
  void account(uint64_t bytes) {
    unchecked_ += bytes;
    if (unchecked_ < kStride) return;
    unchecked_ = 0;
    cancellation_.check("stage weights");
  }

  const int32_t rank_;
  const WeightsView own_;
  const StagingPlan staging_plan_;
  const CellLayout layout_;
  const uint64_t expert_bytes_;
  const std::shared_ptr<const std::vector<WeightsView>> views_;
  const std::shared_ptr<Control> control_;
  const Cancellation& cancellation_;
  Allocation staging_;  // [sets][cells]
  const std::vector<RankBatch>* batches_ = nullptr;
  uint32_t epoch_ = 0;
  uint64_t unchecked_ = 0;
};

}  // namespace

std::unique_ptr<Mover> make_pull_mover(const MoverConfig& config,
                                       std::shared_ptr<const std::vector<WeightsView>> views,
                                       std::shared_ptr<Control> control,
                                       const Cancellation& cancellation) {
  return std::make_unique<PullMover>(config, std::move(views), std::move(control), cancellation);
}

}  // namespace eplb
