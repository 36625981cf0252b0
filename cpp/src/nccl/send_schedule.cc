// SPDX-License-Identifier: Apache-2.0
// Lowers programs for NCCL: see send_schedule.h.
#include "nccl/send_schedule.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <tuple>

#include "base/error.h"
#include "base/round_up.h"
#include "base/text.h"
#include "eplb.h"
#include "transport/copy_lists.h"

namespace eplb {
namespace {

constexpr uint64_t kLargeAlignment = 256;  // what cudaMalloc gives; NCCL likes it too
constexpr uint64_t kSmallAlignment = 16;   // one vector load

// The most operations of one batch that `count` chooses.
template <class Count>
uint64_t most_of(const std::vector<RankBatch>& batches, Count count) {
  uint64_t most = 0;
  for (const RankBatch& batch : batches) {
    const auto number = std::count_if(batch.operations.begin(), batch.operations.end(), count);
    most = std::max(most, static_cast<uint64_t>(number));
  }
  return most;
}

// Lowers one batch. Appends to the schedule; the kinds of pieces are gathered apart first, because
// each has to be one range.
class BatchBuilder {
 public:
  BatchBuilder(const RankBatch& batch, uint64_t set, const SendTask& task,
               const StagingLayout& layout, const StagingAddresses& staging)
      : batch_(batch),
        task_(task),
        weights_(task.weights),
        layout_(layout),
        expert_bytes_(weights_.expert_bytes()),
        cells_(staging.cells + set * layout.set_bytes()),
        packs_(staging.packs + set * staging.pack_experts * layout.pack_bytes),
        send_packs_(staging.send_packs + set * staging.send_experts * layout.pack_bytes) {}

  void append_to(SendSchedule* schedule) {
    number_cells();
    const int32_t world = static_cast<int32_t>(task_.neighbors.size());
    for_each_group([&](const std::vector<uint32_t>& group) {
      const Operation& operation = batch_.operations[group.front()];
      if (operation.code == EPLB_OP_COPY) {
        return add_copies(group, weights_, task_.gather_by_engine ? &copy_.engine : &copy_.kernel);
      }
      const uint64_t bytes = group.size() * expert_bytes_;
      (operation.code == EPLB_OP_SEND ? result_.bytes_out : result_.bytes_in) += bytes;
      if (const WeightsView* neighbor = task_.neighbor(operation.peer)) {
        if (operation.code == EPLB_OP_SEND) return;  // it pulls
        return add_copies(group, *neighbor, &pull_[distance(task_.rank, operation.peer, world)]);
      }
      open_round(operation.round, schedule);
      operation.code == EPLB_OP_SEND ? add_sends(group, schedule) : add_receives(group, schedule);
    });
    for (const RankBatch::Commit& change : batch_.commits) add_commit(change);
    result_.pack = append(pack_, &schedule->kernel_pieces);
    result_.pull = append_pulls(&schedule->engine_pieces);
    result_.copy = append(copy_, schedule);
    result_.commit = append(commit_, schedule);
    schedule->batches.push_back(std::move(result_));
  }

 private:
  // Cells go to receives and copies that are not direct, in the order of operations.
  void number_cells() {
    cell_of_.assign(batch_.operations.size(), 0);
    uint32_t cells = 0;
    for (size_t i = 0; i < batch_.operations.size(); ++i) {
      if (batch_.operations[i].takes_cell()) cell_of_[i] = cells++;
    }
    if (cells > layout_.cells) {
      throw Error(EPLB_INVALID_ARGUMENT, text("Cannot stage a batch: it needs ", cells,
                                              " staging cells and there are ", layout_.cells));
    }
    pack_of_.assign(cells, 0);
  }

  // Calls `visit` with the operations of each (round, code, peer), in the order of the program.
  template <class Visit>
  void for_each_group(Visit visit) {
    const auto key = [&](uint32_t i) {
      const Operation& operation = batch_.operations[i];
      return std::make_tuple(operation.round, operation.code, operation.peer);
    };
    std::vector<uint32_t> order(batch_.operations.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](uint32_t a, uint32_t b) { return key(a) < key(b); });
    for (auto first = order.begin(); first != order.end();) {
      const auto last =
          std::find_if(first, order.end(), [&](uint32_t i) { return key(i) != key(*first); });
      visit(std::vector<uint32_t>(first, last));
      first = last;
    }
  }

  void open_round(int32_t round, SendSchedule* schedule) {
    const uint32_t here = static_cast<uint32_t>(schedule->messages.size());
    if (result_.rounds.empty() || round != round_) result_.rounds.push_back({here, here});
    round_ = round;
  }

  // What goes to one rank in one round: large tensors from their slots, then all packs as one.
  void add_sends(const std::vector<uint32_t>& group, SendSchedule* schedule) {
    const int32_t peer = batch_.operations[group.front()].peer;
    const uint64_t packs = send_packs_ + next_send_ * layout_.pack_bytes;
    for (const uint32_t i : group) {
      const Operation& operation = batch_.operations[i];
      const uint64_t pack = send_packs_ + next_send_++ * layout_.pack_bytes;
      for (int32_t tensor = 0; tensor < weights_.tensors; ++tensor) {
        const uint64_t slot = weights_.at(operation.layer, tensor, operation.slot);
        const uint64_t bytes = weights_.tensor_bytes[tensor];
        if (layout_.small[tensor]) {
          pack_.push_back({pack + layout_.offset[tensor], slot, bytes});
        } else {
          schedule->messages.push_back({true, peer, slot, bytes});
        }
      }
    }
    add_packs({true, peer, packs, group.size() * layout_.pack_bytes}, schedule);
  }

  // The other end of add_sends().
  void add_receives(const std::vector<uint32_t>& group, SendSchedule* schedule) {
    const int32_t peer = batch_.operations[group.front()].peer;
    const uint64_t packs = packs_ + next_pack_ * layout_.pack_bytes;
    for (const uint32_t i : group) {
      const Operation& operation = batch_.operations[i];
      const uint32_t pack = next_pack_++;
      if (operation.takes_cell()) pack_of_[cell_of_[i]] = pack;
      for (int32_t tensor = 0; tensor < weights_.tensors; ++tensor) {
        const uint64_t slot = weights_.at(operation.layer, tensor, operation.slot);
        const uint64_t bytes = weights_.tensor_bytes[tensor];
        if (!layout_.small[tensor]) {
          const uint64_t target = operation.direct ? slot : staged(cell_of_[i], tensor);
          schedule->messages.push_back({false, peer, target, bytes});
        } else if (operation.direct) {
          commit_.kernel.push_back({slot, in_pack(pack, tensor), bytes});
        }
      }
    }
    add_packs({false, peer, packs, group.size() * layout_.pack_bytes}, schedule);
  }

  void add_packs(const Message& message, SendSchedule* schedule) {
    if (message.bytes > 0) schedule->messages.push_back(message);
    result_.rounds.back().last = static_cast<uint32_t>(schedule->messages.size());
  }

  // What this rank copies itself, from its own slots or a neighbor's; large tensors go on a list of
  // their own.
  void add_copies(const std::vector<uint32_t>& group, const WeightsView& from,
                  std::vector<Piece>* large) {
    for (const uint32_t i : group) {
      const Operation& operation = batch_.operations[i];
      if (!operation.direct) pack_of_[cell_of_[i]] = next_pack_++;
      for (int32_t tensor = 0; tensor < weights_.tensors; ++tensor) {
        const uint64_t target = operation.direct
                                    ? weights_.at(operation.layer, tensor, operation.slot)
                                    : staged(cell_of_[i], tensor);
        std::vector<Piece>* pieces = layout_.small[tensor] ? &copy_.kernel : large;
        pieces->push_back({target, from.at(operation.layer, tensor, operation.peer_slot),
                           weights_.tensor_bytes[tensor]});
      }
    }
  }

  void add_commit(const RankBatch::Commit& change) {
    for (int32_t tensor = 0; tensor < weights_.tensors; ++tensor) {
      const bool by_kernel = layout_.small[tensor] || !task_.commit_by_engine;
      std::vector<Piece>* pieces = by_kernel ? &commit_.kernel : &commit_.engine;
      pieces->push_back({weights_.at(change.layer, tensor, change.slot),
                         staged(static_cast<uint32_t>(change.cell), tensor),
                         weights_.tensor_bytes[tensor]});
    }
  }

  // Where a cell's tensor lies in the staging set; the cell must have its pack by now.
  uint64_t staged(uint32_t cell, int32_t tensor) const {
    if (layout_.small[tensor]) return in_pack(pack_of_[cell], tensor);
    return cells_ + cell * layout_.cell_bytes + layout_.offset[tensor];
  }

  uint64_t in_pack(uint32_t pack, int32_t tensor) const {
    return packs_ + pack * layout_.pack_bytes + layout_.offset[tensor];
  }

  IndexRange append_pulls(std::vector<Piece>* all) const {
    const uint32_t first = static_cast<uint32_t>(all->size());
    for (const auto& [distance, pieces] : pull_) append(pieces, all);
    return {first, static_cast<uint32_t>(all->size())};
  }

  const RankBatch& batch_;
  const SendTask& task_;
  const WeightsView& weights_;
  const StagingLayout& layout_;
  const uint64_t expert_bytes_;
  const uint64_t cells_, packs_, send_packs_;  // addresses, of this batch's set
  std::vector<uint32_t> cell_of_;              // [operations]
  std::vector<uint32_t> pack_of_;              // [cells]
  uint32_t next_pack_ = 0, next_send_ = 0;
  int32_t round_ = 0;
  std::vector<Piece> pack_;
  std::map<int32_t, std::vector<Piece>> pull_;  // by distance
  CopyLists copy_, commit_;
  SendBatch result_;
};

}  // namespace

StagingLayout::StagingLayout(const WeightsView& weights, const StagingPlan& plan)
    : cells(plan.cells) {
  for (const uint64_t bytes : weights.tensor_bytes) {
    small.push_back(bytes <= plan.small_bytes);
    uint64_t& end = small.back() ? pack_bytes : cell_bytes;
    offset.push_back(end);
    end += round_up(bytes, small.back() ? kSmallAlignment : kLargeAlignment);
  }
}

uint64_t StagingLayout::set_bytes() const { return cells * cell_bytes; }

uint64_t most_sent(const std::vector<RankBatch>& batches, const SendTask& task) {
  return most_of(batches, [&](const Operation& o) {
    return o.code == EPLB_OP_SEND && task.neighbor(o.peer) == nullptr;
  });
}

uint64_t most_packed(const std::vector<RankBatch>& batches, const SendTask& task) {
  return most_of(batches, [&](const Operation& o) {
    return o.takes_cell() || (o.code == EPLB_OP_RECEIVE && task.neighbor(o.peer) == nullptr);
  });
}

SendSchedule make_send_schedule(const std::vector<RankBatch>& batches, const SendTask& task,
                                const StagingLayout& layout, const StagingAddresses& staging) {
  SendSchedule schedule;
  for (size_t b = 0; b < batches.size(); ++b) {
    BatchBuilder(batches[b], b % staging.sets, task, layout, staging).append_to(&schedule);
  }
  return schedule;
}

}  // namespace eplb
