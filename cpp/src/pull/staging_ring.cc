// SPDX-License-Identifier: Apache-2.0
// The ring of staging cells.
#include "pull/staging_ring.h"

#include <algorithm>

#include "eplb.h"

namespace eplb {

StagingRing::StagingRing(const std::vector<RankBatch>& batches, const WeightsView& weights,
                         uint32_t cell_count)
    : arrivals(size_t{1} * weights.layers * weights.slots, kNone) {
  std::vector<uint32_t> taken;                  // [batches]
  uint32_t next = 0, under_way = 0, first = 0;  // cells, and the first batch that may be under way
  for (size_t b = 0; b < batches.size(); ++b) {
    const CommitOrder& order = orders.emplace_back(batches[b], weights.slots);
    std::vector<int32_t>& own = cells.emplace_back(order.arrivals().size(), kNone);
    taken.push_back(0);
    for (size_t i = 0; i < own.size(); ++i) {
      if (!order.staged()[i]) continue;
      own[i] = static_cast<int32_t>(next);
      next = (next + 1) % cell_count;
      ++taken[b];
      const Operation& operation = *order.arrivals()[i];
      if (operation.code != EPLB_OP_RECEIVE) continue;
      arrivals[size_t{1} * operation.layer * weights.slots + operation.slot] = own[i];
    }
    under_way += taken[b];
    while (under_way > cell_count || b - first >= kMostAhead) under_way -= taken[first++];
    after.push_back(first);
  }
}

}  // namespace eplb
