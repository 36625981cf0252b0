// SPDX-License-Identifier: Apache-2.0
// What the tests of held runs share.
#pragma once

#include <chrono>
#include <cstdint>
#include <random>
#include <vector>

#include "ranks.h"

namespace ranks {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::milliseconds kMoment{10};  // in which what must not happen would

inline double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

inline uint32_t count(const Script& script) { return static_cast<uint32_t>(script.batches.size()); }

inline std::vector<Window> windows(const std::vector<Weights>& weights, const Shape& shape) {
  std::vector<Window> all;
  for (const Weights& own : weights) all.emplace_back(own, shape);
  return all;
}

inline std::vector<Bytes> read(const std::vector<Window>& windows) {
  std::vector<Bytes> all;
  for (const Window& window : windows) all.push_back(window.read());
  return all;
}

// A batch for each of `layers` layers, in which two ranks exchange their slots 0.
inline Script exchanges(uint32_t layers) {
  Script script{{layers, 2, {40, 3}}, 2, {}, {}};
  for (int32_t layer = 0; layer < static_cast<int32_t>(layers); ++layer) {
    script.batches.push_back({layer, layer + 1});
    for (const int32_t rank : {0, 1}) {
      script.ops.push_back({layer, 0, rank, EPLB_OP_SEND, layer, 0, 1 - rank, 0});
      script.ops.push_back({layer, 0, rank, EPLB_OP_RECEIVE, layer, 0, 1 - rank, 0});
    }
  }
  return script;
}

// Two ranks with an engine each, as in processes of their own.
struct Pair {
  Pair(const Shape& shape, uint32_t sets, uint64_t seed) : shape(shape) {
    std::mt19937_64 random(seed);
    for (const int32_t rank : {0, 1}) {
      weights.emplace_back(shape, Memory::kShared);
      before.push_back(random_bytes(shape, random));
      write_all(weights.back(), shape, before.back());
      engines.emplace_back(engine_config(2, 1, 2, sets), std::vector<int32_t>{rank},
                           std::vector<eplb_handle>{weights.back().handle()});
    }
    const std::vector<std::vector<char>> blobs = {engines[0].blob(0), engines[1].blob(0)};
    for (const Engine& engine : engines) CHECK_EQ(connect(engine, blobs).error, "");
    memory = windows(weights, shape);
  }

  // Whether a rank holds what it should after this many batches.
  bool holds(const Script& script, size_t rank, uint32_t batches) const {
    return memory[rank].read() == script.apply(before, batches)[rank];
  }

  Shape shape;
  std::vector<Weights> weights;
  std::vector<Bytes> before;
  std::vector<Engine> engines;
  std::vector<Window> memory;
};

}  // namespace ranks
