// SPDX-License-Identifier: Apache-2.0
// Overlap of address ranges.
#include "memory/ranges.h"

#include <algorithm>

namespace eplb {

namespace {

void sort(std::vector<Range>& ranges) {
  std::sort(ranges.begin(), ranges.end(),
            [](const Range& a, const Range& b) { return a.begin < b.begin; });
}

}  // namespace

std::vector<Range> merge(std::vector<Range> ranges) {
  sort(ranges);
  std::vector<Range> merged;
  for (const Range& range : ranges) {
    if (!merged.empty() && range.begin <= merged.back().end) {
      merged.back().end = std::max(merged.back().end, range.end);
    } else {
      merged.push_back(range);
    }
  }
  return merged;
}

std::optional<std::pair<int32_t, int32_t>> find_overlap(std::vector<Range>& ranges) {
  sort(ranges);
  // Ranges seen so far do not overlap, so the one before is the one that reaches farthest.
  for (size_t i = 1; i < ranges.size(); ++i) {
    if (ranges[i].begin < ranges[i - 1].end) return {{ranges[i - 1].owner, ranges[i].owner}};
  }
  return std::nullopt;
}

}  // namespace eplb
