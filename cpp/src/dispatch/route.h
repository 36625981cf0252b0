// SPDX-License-Identifier: Apache-2.0
// Which replica gets a token: one definition for host and GPU.
//
// A table lists the replicas of each expert with ascending thresholds. A token's hash is a number
// in 0 … 2^32 - 1, and its replica the first one listed whose threshold is above the hash: a
// replica gets the part of all tokens that its threshold exceeds the one before it.
#pragma once

#include <cstdint>

#include "memory/host_device.h"

namespace eplb {

// The tables of one layer, on the device that reads them.
struct RouteTable {
  const int32_t* physical;    // [experts][max_replicas]
  const int32_t* count;       // [experts]
  const uint32_t* threshold;  // [experts][max_replicas]
  uint32_t experts, max_replicas;
};

// The tokens of one call: `logical` and `physical` [tokens][top_k], ids of 4 or 8 bytes.
struct RouteTokens {
  const void* logical;
  void* physical;
  const int32_t* valid_tokens;  // null: all of them
  const uint32_t* step_salt;    // null: none
  uint32_t tokens, top_k, salt;
};

// The finalizer of MurmurHash3 (Austin Appleby, public domain): for one expert and salt, different
// tokens have different hashes.
EPLB_HOST_DEVICE inline uint32_t route_hash(uint32_t token, uint32_t expert, uint32_t salt) {
  uint32_t h = token * 0x9e3779b1u + expert * 0x85ebca77u + salt * 0xc2b2ae3du;
  h ^= h >> 16;
  h *= 0x85ebca6bu;
  h ^= h >> 13;
  h *= 0xc2b2ae35u;
  return h ^ (h >> 16);
}

// The first of `count` ascending thresholds that is above `hash`, else the last.
EPLB_HOST_DEVICE inline uint32_t choose_replica(const uint32_t* threshold, uint32_t count,
                                                uint32_t hash) {
  uint32_t low = 0, high = count - 1;
  while (low < high) {
    const uint32_t middle = (low + high) / 2;
    if (hash < threshold[middle]) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

// -1 and other ids below 0 are none.
template <class Id>
EPLB_HOST_DEVICE inline bool is_expert(Id id, uint32_t experts) {
  return static_cast<uint64_t>(id) < experts;
}

// The slot for one token of `expert`; -1 where the table lists none.
EPLB_HOST_DEVICE inline int32_t route(const RouteTable& table, uint32_t token, uint32_t expert,
                                      uint32_t salt) {
  const uint32_t count = static_cast<uint32_t>(table.count[expert]);
  if (count == 0) return -1;
  const uint64_t row = static_cast<uint64_t>(expert) * table.max_replicas;
  return table.physical[row + choose_replica(table.threshold + row, count,
                                             route_hash(token, expert, salt))];
}

// Rows from this one on are padding.
EPLB_HOST_DEVICE inline uint32_t count_valid(const RouteTokens& tokens) {
  if (tokens.valid_tokens == nullptr) return tokens.tokens;
  const int32_t valid = *tokens.valid_tokens;
  if (valid <= 0) return 0;
  return static_cast<uint32_t>(valid) < tokens.tokens ? static_cast<uint32_t>(valid)
                                                      : tokens.tokens;
}

EPLB_HOST_DEVICE inline uint32_t whole_salt(const RouteTokens& tokens) {
  return tokens.step_salt == nullptr ? tokens.salt : tokens.salt + *tokens.step_salt;
}

}  // namespace eplb
