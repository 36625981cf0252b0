// SPDX-License-Identifier: Apache-2.0
// Lowers programs for puts: see put_schedule.h.
#include "nccl/put_schedule.h"

#include <algorithm>

#include "base/error.h"
#include "base/text.h"
#include "eplb.h"
#include "transport/cell_layout.h"
#include "transport/copy_lists.h"

namespace eplb {
namespace {

// The operations of one kind with each peer, in the order of the program, which is the same at both
// ends: [world].
std::vector<std::vector<uint32_t>> by_peer(const RankBatch& batch, int32_t code, int32_t world) {
  std::vector<std::vector<uint32_t>> found(world);
  for (uint32_t i = 0; i < batch.operations.size(); ++i) {
    const Operation& operation = batch.operations[i];
    if (operation.code == code) found[operation.peer].push_back(i);
  }
  return found;
}

class BatchBuilder {
 public:
  BatchBuilder(const RankBatch& batch, size_t index, const std::vector<Landings>& landings,
               const PutTask& task, PutSchedule* schedule)
      : batch_(batch),
        index_(index),
        landings_(landings),
        task_(task),
        weights_(task.weights),
        layout_(task.weights.tensor_bytes),
        expert_bytes_(weights_.expert_bytes()),
        set_(index % task.staging.sets * task.staging.cells),
        schedule_(*schedule) {}

  void build() {
    result_.bursts.first = burst_count();
    const auto sends = by_peer(batch_, EPLB_OP_SEND, task_.world);
    for (int32_t step = 1; step < task_.world; ++step) {
      const int32_t peer = (task_.rank + step) % task_.world;
      put_all(sends[peer], peer);
    }
    close_burst();
    result_.bursts.last = burst_count();
    place_cells();
    add_copies();
    for (const RankBatch::Commit& change : batch_.commits) add_commit(change);
    result_.copy = append(copy_, &schedule_);
    result_.commit = append(commit_, &schedule_);
    schedule_.batches.push_back(std::move(result_));
  }

 private:
  // Large tensors may go by copy engine, the others always go by kernel.
  void add(const Piece& piece, bool by_engine, CopyLists* lists) const {
    const bool large = piece.bytes > task_.staging.small_bytes;
    (large && by_engine ? lists->engine : lists->kernel).push_back(piece);
  }

  void put_all(const std::vector<uint32_t>& sends, int32_t peer) {
    uint64_t cell = landings_[peer][index_ * task_.world + task_.rank];
    for (const uint32_t i : sends) {
      if (used_ + layout_.bytes > task_.half_bytes) close_burst();
      put_expert(batch_.operations[i], peer, (set_ + cell++) * layout_.bytes);
    }
    result_.bytes_out += sends.size() * expert_bytes_;
  }

  void put_expert(const Operation& operation, int32_t peer, uint64_t offset) {
    const uint64_t place = task_.outbox + burst_count() % 2 * task_.half_bytes + used_;
    for (int32_t tensor = 0; tensor < weights_.tensors; ++tensor) {
      add({place + layout_.offset[tensor], weights_.at(operation.layer, tensor, operation.slot),
           weights_.tensor_bytes[tensor]},
          task_.gather_by_engine, &pack_);
    }
    used_ += layout_.bytes;
    const bool follows = !puts_.empty() && puts_.back().peer == peer &&
                         puts_.back().offset + puts_.back().bytes == offset;
    if (follows) {
      puts_.back().bytes += layout_.bytes;
    } else {
      puts_.push_back({peer, place, offset, layout_.bytes});
    }
  }

  uint32_t burst_count() const { return static_cast<uint32_t>(schedule_.bursts.size()); }

  void close_burst() {
    if (puts_.empty()) return;
    Burst burst;
    burst.pack = append(pack_, &schedule_);
    burst.puts.first = static_cast<uint32_t>(schedule_.puts.size());
    schedule_.puts.insert(schedule_.puts.end(), puts_.begin(), puts_.end());
    burst.puts.last = static_cast<uint32_t>(schedule_.puts.size());
    schedule_.bursts.push_back(burst);
    pack_ = {};
    puts_.clear();
    used_ = 0;
  }

  // Cells are numbered by operation; where they are in the set goes by sender, copies last.
  void place_cells() {
    place_of_.assign(batch_.operations.size(), 0);
    uint64_t place = set_;
    for (const auto& receives : by_peer(batch_, EPLB_OP_RECEIVE, task_.world)) {
      for (const uint32_t i : receives) place_of_[i] = place++;
      result_.bytes_in += receives.size() * expert_bytes_;
    }
    for (uint32_t i = 0; i < batch_.operations.size(); ++i) {
      const Operation& operation = batch_.operations[i];
      if (!operation.takes_cell()) continue;
      if (operation.code == EPLB_OP_COPY) place_of_[i] = place++;
      cells_.push_back(place_of_[i]);
    }
  }

  void add_copies() {
    for (uint32_t i = 0; i < batch_.operations.size(); ++i) {
      const Operation& operation = batch_.operations[i];
      if (operation.code != EPLB_OP_COPY) continue;
      for (int32_t tensor = 0; tensor < weights_.tensors; ++tensor) {
        const uint64_t target = operation.direct
                                    ? weights_.at(operation.layer, tensor, operation.slot)
                                    : landed(place_of_[i], tensor);
        add({target, weights_.at(operation.layer, tensor, operation.peer_slot),
             weights_.tensor_bytes[tensor]},
            task_.gather_by_engine, &copy_);
      }
    }
  }

  void add_commit(const RankBatch::Commit& change) {
    for (int32_t tensor = 0; tensor < weights_.tensors; ++tensor) {
      add({weights_.at(change.layer, tensor, change.slot), landed(cells_[change.cell], tensor),
           weights_.tensor_bytes[tensor]},
          task_.commit_by_engine, &commit_);
    }
  }

  uint64_t landed(uint64_t place, int32_t tensor) const {
    return task_.landing + place * layout_.bytes + layout_.offset[tensor];
  }

  const RankBatch& batch_;
  const size_t index_;
  const std::vector<Landings>& landings_;
  const PutTask& task_;
  const WeightsView& weights_;
  const CellLayout layout_;
  const uint64_t expert_bytes_;
  const uint64_t set_;  // its first cell
  PutSchedule& schedule_;
  std::vector<uint64_t> place_of_;  // [operations]: cell of the landing zone
  std::vector<uint64_t> cells_;     // the same by cell of the batch
  CopyLists pack_, copy_, commit_;
  std::vector<Put> puts_;  // of the open burst
  uint64_t used_ = 0;      // bytes of its half
  PutBatch result_;
};

}  // namespace

Landings number_landings(const std::vector<RankBatch>& batches, int32_t world, uint32_t cells) {
  Landings landings;
  for (const RankBatch& batch : batches) {
    uint32_t next = 0;
    for (const auto& receives : by_peer(batch, EPLB_OP_RECEIVE, world)) {
      landings.push_back(next);
      next += static_cast<uint32_t>(receives.size());
    }
    for (const Operation& operation : batch.operations) {
      if (operation.code == EPLB_OP_COPY && !operation.direct) ++next;
      if (operation.code != EPLB_OP_RECEIVE || !operation.direct) continue;
      throw Error(EPLB_INVALID_ARGUMENT,
                  text("Cannot receive layer ", operation.layer, " slot ", operation.slot,
                       " directly: ranks that put do not reach each other's slots"));
    }
    if (next <= cells) continue;
    throw Error(EPLB_INVALID_ARGUMENT, text("Cannot stage a batch: it needs ", next,
                                            " staging cells and there are ", cells));
  }
  return landings;
}

PutSchedule make_put_schedule(const std::vector<RankBatch>& batches,
                              const std::vector<Landings>& landings, const PutTask& task) {
  PutSchedule schedule;
  for (size_t index = 0; index < batches.size(); ++index) {
    BatchBuilder(batches[index], index, landings, task, &schedule).build();
  }
  return schedule;
}

}  // namespace eplb
