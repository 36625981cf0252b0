// SPDX-License-Identifier: Apache-2.0
// Lowers programs for GPUs that reach each other: see pull_schedule.h.
#include "pull/pull_schedule.h"

#include <algorithm>
#include <utility>

#include "eplb.h"
#include "transport/cell_layout.h"
#include "transport/copy_lists.h"

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

// Lowers one batch.
class BatchBuilder {
 public:
  BatchBuilder(const RankBatch& batch, const CommitOrder& order, const std::vector<int32_t>& cells,
               const PullTask& task)
      : batch_(batch),
        order_(order),
        cells_(cells),
        task_(task),
        own_((*task.peers)[task.rank].weights),
        layout_(own_.tensor_bytes) {}

  void append_to(PullSchedule* schedule) {
    PullBatch result;
    CopyLists local;
    push(schedule, &result.push, &local);
    std::vector<Piece> pull;
    for (const std::vector<Transfer>& transfers : fetched()) {
      for (int32_t tensor = 0; tensor < own_.tensors; ++tensor) {
        fetch(tensor, transfers, &pull, &local);
      }
    }
    result.pull = append(pull, &schedule->engine_pieces);
    result.gather = append(local, schedule);
    for (const std::vector<SlotWrite>& step : order_.steps()) {
      CopyLists lists;
      for (int32_t tensor = 0; tensor < own_.tensors; ++tensor) commit(tensor, step, &lists);
      result.commit.push_back(append(lists, schedule));
    }
    count_bytes(&result);
    schedule->batches.push_back(std::move(result));
  }

 private:
  // An operation, and where the expert goes.
  struct Transfer {
    const Operation* operation;
    int32_t cell;  // kInSlot: into the slot itself
  };
  static constexpr int32_t kInSlot = -1;
  using ByDistance = std::vector<std::vector<Transfer>>;  // [world]: the next rank is at 1

  size_t distance_to(const Operation& operation) const {
    const int32_t world = static_cast<int32_t>(task_.peers->size());
    return static_cast<size_t>(distance(task_.rank, operation.peer, world));
  }

  // What others are to receive; not what they fetch themselves.
  ByDistance pushed() const {
    ByDistance groups(task_.peers->size());
    for (const Operation& operation : batch_.operations) {
      if (operation.code != EPLB_OP_SEND) continue;
      const int64_t slot = int64_t{1} * operation.layer * own_.slots + operation.peer_slot;
      const int32_t cell = task_.cells[operation.peer][slot];
      if (cell >= 0) groups[distance_to(operation)].push_back({&operation, cell});
    }
    return groups;
  }

  // What this rank fetches: what is direct, and what it copies inside itself by way of staging.
  ByDistance fetched() const {
    ByDistance groups(task_.peers->size());
    for (size_t i = 0; i < cells_.size(); ++i) {
      const Operation* operation = order_.arrivals()[i];
      if (cells_[i] == StagingRing::kNone || operation->code != EPLB_OP_COPY) continue;
      groups[0].push_back({operation, cells_[i]});
    }
    for (const Operation& operation : batch_.operations) {
      if (operation.direct) groups[distance_to(operation)].push_back({&operation, kInSlot});
    }
    return groups;
  }

  void push(PullSchedule* schedule, std::vector<Push>* pushes, CopyLists* local) const {
    const ByDistance groups = pushed();
    for (size_t distance = 1; distance < groups.size(); ++distance) {
      if (groups[distance].empty()) continue;
      const int32_t rank = groups[distance].front().operation->peer;
      const PullPeer& peer = (*task_.peers)[rank];
      std::vector<Piece> pieces;
      for (int32_t tensor = 0; tensor < own_.tensors; ++tensor) {
        std::vector<Piece>* list =
            list_for(tensor, peer, task_.push_by_kernel ? &local->kernel : &pieces, local);
        const Operation* before = nullptr;
        for (const auto& [operation, cell] : groups[distance]) {
          const uint64_t source = own_.at(operation->layer, tensor, operation->slot);
          add({in_cell(peer, tensor, cell), source, own_.tensor_bytes[tensor]},
              before != nullptr && before->layer == operation->layer, list);
          before = operation;
        }
      }
      pushes->push_back(
          {rank, static_cast<uint32_t>(distance - 1), append(pieces, &schedule->engine_pieces)});
    }
  }

  // Memory of two layers is never one piece: it may be two allocations side by side; and so may be
  // slots and staging memory.
  void fetch(int32_t tensor, const std::vector<Transfer>& transfers, std::vector<Piece>* pull,
             CopyLists* local) const {
    const Operation* before = nullptr;
    for (const auto& [operation, cell] : transfers) {
      const PullPeer& peer = (*task_.peers)[operation->peer];
      const uint64_t target = cell == kInSlot ? own_.at(operation->layer, tensor, operation->slot)
                                              : in_cell((*task_.peers)[task_.rank], tensor, cell);
      add({target, peer.weights.at(operation->layer, tensor, operation->peer_slot),
           own_.tensor_bytes[tensor]},
          before != nullptr && before->layer == operation->layer &&
              before->direct == operation->direct,
          list_for(tensor, peer, pull, local));
      before = operation;
    }
  }

  // `far`: for large tensors from or to another GPU.
  std::vector<Piece>* list_for(int32_t tensor, const PullPeer& peer, std::vector<Piece>* far,
                               CopyLists* local) const {
    if (!is_small(tensor) && !peer.same_gpu) return far;
    return local_list(tensor, task_.gather_by_engine, local);
  }

  void commit(int32_t tensor, const std::vector<SlotWrite>& step, CopyLists* lists) const {
    const SlotWrite* before = nullptr;
    for (const SlotWrite& write : step) {
      const bool follows = before != nullptr && before->layer == write.layer;
      const uint64_t source =
          write.source == SlotWrite::kStaged
              ? in_cell((*task_.peers)[task_.rank], tensor, cells_[write.arrival])
              : own_.at(write.layer, tensor, write.source);
      add({own_.at(write.layer, tensor, write.slot), source, own_.tensor_bytes[tensor]}, follows,
          local_list(tensor, task_.commit_by_engine, lists));
      before = &write;
    }
  }

  bool is_small(int32_t tensor) const {
    return own_.tensor_bytes[tensor] <= task_.staging.small_bytes;
  }

  std::vector<Piece>* local_list(int32_t tensor, bool by_engine, CopyLists* lists) const {
    return by_engine && !is_small(tensor) ? &lists->engine : &lists->kernel;
  }

  uint64_t in_cell(const PullPeer& peer, int32_t tensor, int32_t cell) const {
    return peer.staging + task_.staging.all_cells() * layout_.offset[tensor] +
           cell * layout_.stride(tensor);
  }

  void count_bytes(PullBatch* result) const {
    const uint64_t expert = own_.expert_bytes();
    for (const Operation& operation : batch_.operations) {
      if (operation.code == EPLB_OP_SEND) result->bytes_out += expert;
      if (operation.code == EPLB_OP_RECEIVE) result->bytes_in += expert;
    }
  }

  const RankBatch& batch_;
  const CommitOrder& order_;
  const std::vector<int32_t>& cells_;  // [arrivals]
  const PullTask& task_;
  const WeightsView& own_;
  const CellLayout layout_;
};

}  // namespace

PullSchedule make_pull_schedule(const std::vector<RankBatch>& batches, const StagingRing& ring,
                                const PullTask& task) {
  PullSchedule schedule;
  for (size_t b = 0; b < batches.size(); ++b) {
    BatchBuilder(batches[b], ring.orders[b], ring.cells[b], task).append_to(&schedule);
  }
  return schedule;
}

}  // namespace eplb
