// SPDX-License-Identifier: Apache-2.0
// The digest and the synthetic bytes of expert weights: one definition for host and GPU.
//
// A span is read as little-endian 8-byte words, the last one padded with zero bytes. The digest is
// sum over i of mix(word[i] + mix(i + 1)) mod 2^64, plus mix(bytes): a sum, so that any number of
// threads can share the work, over terms that depend on the position, so that swapped words show.
#pragma once

#include <cstdint>

#include "memory/host_device.h"

namespace eplb {

// The finalizer of splitmix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators,
// 2014).
EPLB_HOST_DEVICE inline uint64_t mix(uint64_t x) {
  x ^= x >> 30;
  x *= 0xbf58476d1ce4e5b9ull;
  x ^= x >> 27;
  x *= 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

EPLB_HOST_DEVICE inline uint64_t digest_term(uint64_t word, uint64_t index) {
  return mix(word + mix(index + 1));
}

EPLB_HOST_DEVICE inline uint64_t synthetic_word(uint64_t key, uint64_t index) {
  return mix(key + (index + 1) * 0x9e3779b97f4a7c15ull);
}

// The key of one expert's tensor, for synthetic_word.
inline uint64_t synthetic_key(uint64_t seed, uint32_t layer, uint32_t expert, uint32_t tensor) {
  return mix(mix(mix(mix(seed + 1) + layer) + expert) + tensor);
}

}  // namespace eplb
