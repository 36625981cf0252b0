// SPDX-License-Identifier: Apache-2.0
// The order of a rank's writes.
#include "pull/commit_order.h"

#include <algorithm>

#include "eplb.h"

namespace eplb {

CommitOrder::CommitOrder(const RankBatch& batch, int32_t slots)
    : slots_(static_cast<size_t>(slots)) {
  for (const Operation& operation : batch.operations) {
    if (operation.takes_cell()) arrivals_.push_back(&operation);
  }
  for (const RankBatch::Commit& change : batch.commits) {
    const Operation& origin = *arrivals_[change.cell];
    waiting_.push_back({change.layer, change.slot, static_cast<size_t>(change.cell),
                        origin.code == EPLB_OP_COPY ? origin.peer_slot : SlotWrite::kStaged});
  }
  for (const SlotWrite& write : waiting_) {
    if (write.source != SlotWrite::kStaged) ++readers_[place(write.layer, write.source)];
  }
  while (!waiting_.empty()) {
    if (!take_step()) stage_one();
  }
  staged_.resize(arrivals_.size());
  for (const auto& step : steps_) {
    for (const SlotWrite& write : step) {
      if (write.source == SlotWrite::kStaged) staged_[write.arrival] = true;
    }
  }
}

// Writes that nobody waits for.
bool CommitOrder::take_step() {
  const auto is_read = [&](const SlotWrite& write) {
    const auto found = readers_.find(place(write.layer, write.slot));
    return found != readers_.end() && found->second > 0;
  };
  const auto ready = std::stable_partition(waiting_.begin(), waiting_.end(), is_read);
  if (ready == waiting_.end()) return false;
  steps_.emplace_back(ready, waiting_.end());
  waiting_.erase(ready, waiting_.end());
  for (const SlotWrite& write : steps_.back()) {
    if (write.source != SlotWrite::kStaged) --readers_[place(write.layer, write.source)];
  }
  return true;
}

// All that is left are circles, as a slot is written only once.
void CommitOrder::stage_one() {
  const auto copies = [](const SlotWrite& write) { return write.source != SlotWrite::kStaged; };
  SlotWrite& write = *std::find_if(waiting_.begin(), waiting_.end(), copies);
  --readers_[place(write.layer, write.source)];
  write.source = SlotWrite::kStaged;
}

}  // namespace eplb
