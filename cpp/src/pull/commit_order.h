// SPDX-License-Identifier: Apache-2.0
// In which order the slots of a rank that a batch changes are written.
//
// What stays in a rank need not be staged: nobody else reads its slots once a batch is committed. A
// copy waits for those that read what it overwrites, which is what the steps are for; copies in a
// circle would wait for each other, so one of each circle is staged.
#pragma once

#include <unordered_map>
#include <vector>

#include "transport/mover.h"

namespace eplb {

// A slot that a commit writes.
struct SlotWrite {
  int32_t layer, slot;
  size_t arrival;  // which of the batch's operations that take a cell brings the expert
  int32_t source;  // the slot of the same rank that it copies; kStaged: what staging memory holds
  static constexpr int32_t kStaged = -1;
};

class CommitOrder {
 public:
  CommitOrder(const RankBatch& batch, int32_t slots);

  // The operations of the batch that take a cell, in order.
  const std::vector<const Operation*>& arrivals() const { return arrivals_; }
  // Writes of one step may be done all at once.
  const std::vector<std::vector<SlotWrite>>& steps() const { return steps_; }
  // Which arrivals go by way of staging memory, [arrivals].
  const std::vector<bool>& staged() const { return staged_; }

 private:
  size_t place(int32_t layer, int32_t slot) const { return layer * slots_ + slot; }
  bool take_step();
  void stage_one();

  const size_t slots_;
  std::vector<const Operation*> arrivals_;
  std::vector<SlotWrite> waiting_;
  std::unordered_map<size_t, int32_t> readers_;  // by place
  std::vector<std::vector<SlotWrite>> steps_;
  std::vector<bool> staged_;
};

}  // namespace eplb
