// SPDX-License-Identifier: Apache-2.0
// Copies on their way into a schedule, in which each kind of them is one range of a long list.
#pragma once

#include <cstdint>
#include <vector>

#include "memory/device.h"

namespace eplb {

// By who makes the copies.
struct CopyLists {
  std::vector<Piece> kernel, engine;
};

inline IndexRange append(const std::vector<Piece>& pieces, std::vector<Piece>* all) {
  const uint32_t first = static_cast<uint32_t>(all->size());
  all->insert(all->end(), pieces.begin(), pieces.end());
  return {first, static_cast<uint32_t>(all->size())};
}

// To a schedule's `kernel_pieces` and `engine_pieces`.
template <class Schedule>
Copies append(const CopyLists& lists, Schedule* schedule) {
  return {append(lists.kernel, &schedule->kernel_pieces),
          append(lists.engine, &schedule->engine_pieces)};
}

// How many ranks round the world `peer` is behind `rank`. A rank serves, or asks, the next rank
// first, then the one after it: if all do, nobody is met by several at once.
inline int32_t distance(int32_t rank, int32_t peer, int32_t world) {
  return (peer - rank + world) % world;
}

}  // namespace eplb
