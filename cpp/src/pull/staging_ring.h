// SPDX-License-Identifier: Apache-2.0
// Where in a rank's staging memory the experts of each batch wait: a ring of cells, one expert
// each.
//
// Each batch takes as many cells as it stages experts, behind those of the batch before, and they
// are free again when the batch is in place. So the same memory holds more batches that stage
// little, and ranks need not keep step where one stages more of a batch than another.
#pragma once

#include <cstdint>
#include <vector>

#include "pull/commit_order.h"
#include "transport/mover.h"

namespace eplb {

// The most batches that are under way at once.
constexpr uint32_t kMostAhead = 8;

struct StagingRing {
  // The ring of one rank in one run, with `cells` cells; no batch stages more.
  StagingRing(const std::vector<RankBatch>& batches, const WeightsView& weights, uint32_t cells);

  std::vector<CommitOrder> orders;  // [batches]
  // [batches][arrivals]: the cell of each, kNone for those that are not staged.
  std::vector<std::vector<int32_t>> cells;
  // [batches]: batches that have to be in place before this one may be staged.
  std::vector<uint32_t> after;
  // The cells of what other ranks send, by slot, [layers * slots]; kNone where nothing arrives.
  std::vector<int32_t> arrivals;
  static constexpr int32_t kNone = -1;
};

}  // namespace eplb
