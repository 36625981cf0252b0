// SPDX-License-Identifier: Apache-2.0
// Lowers programs for GPUs that reach each other: see pull_schedule.h.
#include "pull_schedule.h"

#include <algorithm>
#include <numeric>
#include <unordered_map>
#include <utility>

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

// A slot that a commit writes.
struct Write {
  int32_t layer, slot, cell;
  int32_t source;  // the slot of the same rank that it copies; kStaged: what the cell holds
};
constexpr int32_t kStaged = -1;

// Puts writes into steps, so that what a step overwrites no later one reads. Stages one write of
// each circle.
class CommitOrder {
 public:
  CommitOrder(std::vector<Write> writes, int32_t slots) : waiting_(std::move(writes)) {
    slots_ = static_cast<size_t>(slots);
    for (const Write& write : waiting_) {
      if (write.source != kStaged) ++readers_[place(write.layer, write.source)];
    }
    while (!waiting_.empty()) {
      if (!take_step()) stage_one();
    }
  }
  const std::vector<std::vector<Write>>& steps() const { return steps_; }

 private:
  size_t place(int32_t layer, int32_t slot) const { return layer * slots_ + slot; }

  // Writes that nobody waits for.
  bool take_step() {
    const auto is_read = [&](const Write& write) {
      const auto found = readers_.find(place(write.layer, write.slot));
      return found != readers_.end() && found->second > 0;
    };
    const auto ready = std::stable_partition(waiting_.begin(), waiting_.end(), is_read);
    if (ready == waiting_.end()) return false;
    steps_.emplace_back(ready, waiting_.end());
    waiting_.erase(ready, waiting_.end());
    for (const Write& write : steps_.back()) {
      if (write.source != kStaged) --readers_[place(write.layer, write.source)];
    }
    return true;
  }

  // All that is left are circles, as a slot is written only once.
  void stage_one() {
    const auto copies = [](const Write& write) { return write.source != kStaged; };
    Write& write = *std::find_if(waiting_.begin(), waiting_.end(), copies);
    --readers_[place(write.layer, write.source)];
    write.source = kStaged;
  }

  size_t slots_ = 0;
  std::vector<Write> waiting_;
  std::unordered_map<size_t, int32_t> readers_;  // by place
  std::vector<std::vector<Write>> steps_;
};

// Lowers one batch.
class BatchBuilder {
 public:
  BatchBuilder(const RankBatch& batch, uint64_t set, const PullTask& task)
      : batch_(batch),
        task_(task),
        own_((*task.peers)[task.rank].weights),
        layout_(own_.tensor_bytes),
        set_offset_(set * task.staging.cells * layout_.bytes) {
    // Cells go to them in the order of operations.
    for (const Operation& operation : batch.operations) {
      if (operation.takes_cell()) arrivals_.push_back(&operation);
    }
  }

  void append_to(PullSchedule* schedule) {
    const CommitOrder order(writes(), own_.slots);
    std::vector<bool> staged(arrivals_.size());
    for (const auto& step : order.steps()) {
      for (const Write& write : step) {
        if (write.source == kStaged) staged[write.cell] = true;
      }
    }
    PullBatch result;
    Lists local;
    push(schedule, &result.push, &local);
    std::vector<Piece> pull;
    for (const std::vector<Transfer>& transfers : fetched(staged)) {
      for (int32_t tensor = 0; tensor < own_.tensors; ++tensor) {
        fetch(tensor, transfers, &pull, &local);
      }
    }
    result.pull = move_to(&schedule->engine_pieces, pull);
    result.gather = move_lists(schedule, local);
    for (const auto& step : order.steps()) {
      Lists lists;
      for (int32_t tensor = 0; tensor < own_.tensors; ++tensor) commit(tensor, step, &lists);
      result.commit.push_back(move_lists(schedule, lists));
    }
    count_bytes(&result);
    schedule->batches.push_back(std::move(result));
  }

 private:
  struct Lists {
    std::vector<Piece> kernel, engine;
  };

  static Copies move_lists(PullSchedule* schedule, const Lists& lists) {
    return {move_to(&schedule->kernel_pieces, lists.kernel),
            move_to(&schedule->engine_pieces, lists.engine)};
  }

  std::vector<Write> writes() const {
    std::vector<Write> all;
    for (const RankBatch::Commit& change : batch_.commits) {
      const Operation& origin = *arrivals_[change.cell];
      all.push_back({change.layer, change.slot, change.cell,
                     origin.code == EPLB_OP_COPY ? origin.peer_slot : kStaged});
    }
    return all;
  }

  // An operation, and where the expert goes.
  struct Transfer {
    const Operation* operation;
    int32_t cell;  // kInSlot: into the slot itself
  };
  static constexpr int32_t kInSlot = -1;
  using ByDistance = std::vector<std::vector<Transfer>>;  // [world]: the next rank is at 1

  size_t distance(const Operation& operation) const {
    const int32_t world = static_cast<int32_t>(task_.peers->size());
    return static_cast<size_t>((operation.peer - task_.rank + world) % world);
  }

  // What others are to receive; not what they fetch themselves.
  ByDistance pushed() const {
    ByDistance groups(task_.peers->size());
    for (const Operation& operation : batch_.operations) {
      if (operation.code != EPLB_OP_SEND) continue;
      const int64_t slot = int64_t{1} * operation.layer * own_.slots + operation.peer_slot;
      const int32_t cell = task_.cells[operation.peer][slot];
      if (cell >= 0) groups[distance(operation)].push_back({&operation, cell});
    }
    return groups;
  }

  // What this rank fetches: what is direct, and what it copies inside itself by way of staging.
  ByDistance fetched(const std::vector<bool>& staged) const {
    ByDistance groups(task_.peers->size());
    for (size_t cell = 0; cell < arrivals_.size(); ++cell) {
      if (!staged[cell] || arrivals_[cell]->code != EPLB_OP_COPY) continue;
      groups[0].push_back({arrivals_[cell], static_cast<int32_t>(cell)});
    }
    for (const Operation& operation : batch_.operations) {
      if (operation.direct) groups[distance(operation)].push_back({&operation, kInSlot});
    }
    return groups;
  }

  void push(PullSchedule* schedule, std::vector<Push>* pushes, Lists* local) const {
    const ByDistance groups = pushed();
    for (size_t distance = 1; distance < groups.size(); ++distance) {
      if (groups[distance].empty()) continue;
      const int32_t rank = groups[distance].front().operation->peer;
      const PullPeer& peer = (*task_.peers)[rank];
      std::vector<Piece> pieces;
      for (int32_t tensor = 0; tensor < own_.tensors; ++tensor) {
        std::vector<Piece>* list = list_for(tensor, peer, &pieces, local);
        const Operation* before = nullptr;
        for (const auto& [operation, cell] : groups[distance]) {
          const uint64_t source = own_.at(operation->layer, tensor, operation->slot);
          add({in_cell(peer, tensor, cell), source, own_.tensor_bytes[tensor]},
              before != nullptr && before->layer == operation->layer, list);
          before = operation;
        }
      }
      pushes->push_back(
          {rank, static_cast<uint32_t>(distance - 1), move_to(&schedule->engine_pieces, pieces)});
    }
  }

  // Memory of two layers is never one piece: it may be two allocations side by side; and so may be
  // slots and staging memory.
  void fetch(int32_t tensor, const std::vector<Transfer>& transfers, std::vector<Piece>* pull,
             Lists* local) const {
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
                               Lists* local) const {
    if (!is_small(tensor) && !peer.same_gpu) return far;
    return local_list(tensor, task_.gather_by_engine, local);
  }

  void commit(int32_t tensor, const std::vector<Write>& step, Lists* lists) const {
    const Write* before = nullptr;
    for (const Write& write : step) {
      const bool follows = before != nullptr && before->layer == write.layer;
      const uint64_t source = write.source == kStaged
                                  ? in_cell((*task_.peers)[task_.rank], tensor, write.cell)
                                  : own_.at(write.layer, tensor, write.source);
      add({own_.at(write.layer, tensor, write.slot), source, own_.tensor_bytes[tensor]}, follows,
          local_list(tensor, task_.commit_by_engine, lists));
      before = &write;
    }
  }

  bool is_small(int32_t tensor) const {
    return own_.tensor_bytes[tensor] <= task_.staging.small_bytes;
  }

  std::vector<Piece>* local_list(int32_t tensor, bool by_engine, Lists* lists) const {
    return by_engine && !is_small(tensor) ? &lists->engine : &lists->kernel;
  }

  uint64_t in_cell(const PullPeer& peer, int32_t tensor, int32_t cell) const {
    return peer.staging + set_offset_ + task_.staging.cells * layout_.offset[tensor] +
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
  const uint64_t set_offset_;
  std::vector<const Operation*> arrivals_;  // [cells]
};

}  // namespace

std::vector<int32_t> arrival_cells(const std::vector<RankBatch>& batches,
                                   const WeightsView& weights) {
  std::vector<int32_t> cells(size_t{1} * weights.layers * weights.slots, -1);
  for (const RankBatch& batch : batches) {
    int32_t cell = 0;
    for (const Operation& operation : batch.operations) {
      if (!operation.takes_cell()) continue;
      if (operation.code == EPLB_OP_RECEIVE) {
        cells[size_t{1} * operation.layer * weights.slots + operation.slot] = cell;
      }
      ++cell;
    }
  }
  return cells;
}

PullSchedule make_pull_schedule(const std::vector<RankBatch>& batches, const PullTask& task) {
  PullSchedule schedule;
  for (size_t b = 0; b < batches.size(); ++b) {
    BatchBuilder(batches[b], b % task.staging.sets, task).append_to(&schedule);
  }
  return schedule;
}

}  // namespace eplb
