// SPDX-License-Identifier: Apache-2.0
// Overlap of address ranges, by sorting and sweeping.
#pragma once

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

namespace eplb {

struct Range {
  uint64_t begin, end;  // [begin, end)
  int32_t owner;        // whatever the caller wants back
};

// The same bytes in as few ranges as possible, for ranges of one owner.
std::vector<Range> merge(std::vector<Range> ranges);

// The owners of two ranges that share a byte. `ranges` is sorted by address on return.
std::optional<std::pair<int32_t, int32_t>> find_overlap(std::vector<Range>& ranges);

}  // namespace eplb
