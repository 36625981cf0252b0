// SPDX-License-Identifier: Apache-2.0
// Lowers programs for GPUs that pull: see pull_schedule.h.
#include "pull_schedule.h"

#include <numeric>

#include "eplb.h"
#include "pull_mover.h"

namespace eplb {
namespace {

// Appends a piece; or lengthens the last one, if `follows` and both ends go on where it ends.
void add(const Piece& piece, bool follows, std::vector<Piece>* pieces) {
  if (follows && !pieces->empty()) {
    Piece& last = pieces->back();
    if (last.target + last.bytes == piece.target && last.source + last.bytes == piece.source) {
      last.bytes += piece.bytes;
      return;
    }
  }
  pieces->push_back(piece);
}

IndexRange move_to(std::vector<Piece>* all, const std::vector<Piece>& pieces) {
  const uint32_t first = static_cast<uint32_t>(all->size());
  all->insert(all->end(), pieces.begin(), pieces.end());
  return {first, static_cast<uint32_t>(all->size())};
}

// Lowers one batch.
class BatchBuilder {
 public:
  BatchBuilder(const RankBatch& batch, uint64_t set, const PullTask& task)
      : batch_(batch),
        task_(task),
        own_((*task.sources)[task.rank].weights),
        layout_(own_.tensor_bytes),
        set_address_(task.staging_address + set * task.staging.cells * layout_.bytes) {}

  void append_to(PullSchedule* schedule) {
    for (int32_t tensor = 0; tensor < own_.tensors; ++tensor) {
      gather(tensor);
      commit(tensor);
    }
    PullBatch result;
    result.pull = move_to(&schedule->engine_pieces, pull_);
    result.gather.engine = move_to(&schedule->engine_pieces, gather_.engine);
    result.commit.engine = move_to(&schedule->engine_pieces, commit_.engine);
    result.gather.kernel = move_to(&schedule->kernel_pieces, gather_.kernel);
    result.commit.kernel = move_to(&schedule->kernel_pieces, commit_.kernel);
    count_bytes(&result);
    schedule->batches.push_back(result);
  }

 private:
  struct Lists {
    std::vector<Piece> kernel, engine;
  };

  // Cells go to receives and copies in the order of operations. Memory of two layers or ranks is
  // never one piece: it may be two allocations side by side.
  void gather(int32_t tensor) {
    const Operation* before = nullptr;
    uint64_t cell = 0;
    for (const Operation& operation : batch_.operations) {
      if (operation.code == EPLB_OP_SEND) continue;
      const PullSource& source = (*task_.sources)[operation.peer];
      const bool follows = before != nullptr && before->layer == operation.layer &&
                           before->peer == operation.peer;
      add({staged(tensor, cell++),
           source.weights.at(operation.layer, tensor, operation.peer_slot),
           own_.tensor_bytes[tensor]},
          follows,
          is_small(tensor) || source.same_gpu ? local_list(tensor, &gather_) : &pull_);
      before = &operation;
    }
  }

  void commit(int32_t tensor) {
    const RankBatch::Commit* before = nullptr;
    for (const RankBatch::Commit& change : batch_.commits) {
      const bool follows = before != nullptr && before->layer == change.layer;
      add({own_.at(change.layer, tensor, change.slot),
           staged(tensor, static_cast<uint64_t>(change.cell)), own_.tensor_bytes[tensor]},
          follows, local_list(tensor, &commit_));
      before = &change;
    }
  }

  bool is_small(int32_t tensor) const {
    return own_.tensor_bytes[tensor] <= task_.staging.small_bytes;
  }

  std::vector<Piece>* local_list(int32_t tensor, Lists* lists) const {
    return task_.copy_engine_only && !is_small(tensor) ? &lists->engine : &lists->kernel;
  }

  uint64_t staged(int32_t tensor, uint64_t cell) const {
    return set_address_ + task_.staging.cells * layout_.offset[tensor] +
           cell * layout_.stride(tensor);
  }

  void count_bytes(PullBatch* result) const {
    const uint64_t expert =
        std::accumulate(own_.tensor_bytes.begin(), own_.tensor_bytes.end(), uint64_t{0});
    for (const Operation& operation : batch_.operations) {
      if (operation.code == EPLB_OP_SEND) result->bytes_out += expert;
      if (operation.code == EPLB_OP_RECEIVE) result->bytes_in += expert;
    }
  }

  const RankBatch& batch_;
  const PullTask& task_;
  const WeightsView& own_;
  const CellLayout layout_;
  const uint64_t set_address_;
  std::vector<Piece> pull_;
  Lists gather_, commit_;
};

}  // namespace

PullSchedule make_pull_schedule(const std::vector<RankBatch>& batches, const PullTask& task) {
  PullSchedule schedule;
  for (size_t b = 0; b < batches.size(); ++b) {
    BatchBuilder(batches[b], b % task.staging.sets, task).append_to(&schedule);
  }
  return schedule;
}

}  // namespace eplb
