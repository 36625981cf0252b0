// SPDX-License-Identifier: Apache-2.0
// The bound on the rate of a run: when the next batch of a rank may begin.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>

#include "transport/mover.h"

namespace eplb {

// A rank gathers what it receives and what it copies, into staging memory or slots. A batch begins,
// and the run ends, when all before are no more bytes than the bound allows since the run began.
class Pace {
 public:
  using Clock = std::chrono::steady_clock;

  // `bytes_per_second` 0: every batch may begin at once.
  void begin(Clock::time_point started, uint64_t expert_bytes, uint64_t bytes_per_second) {
    started_ = due_ = started;
    expert_bytes_ = expert_bytes;
    bytes_per_second_ = bytes_per_second;
    gathered_ = 0;
  }

  // The batch has begun.
  void count(const RankBatch& batch) {
    gathered_ += std::count_if(batch.operations.begin(), batch.operations.end(),
                               [](const Operation& one) { return one.code != EPLB_OP_SEND; });
    if (bytes_per_second_ == 0) return;
    const double seconds = static_cast<double>(gathered_) * static_cast<double>(expert_bytes_) /
                           static_cast<double>(bytes_per_second_);
    due_ = started_ + std::chrono::duration_cast<Clock::duration>(
                          std::chrono::duration<double>(std::min(seconds, kNever)));
  }

  // When the next batch may begin; after the last one, when the run may end.
  Clock::time_point due() const { return due_; }
  bool is_due() const { return bytes_per_second_ == 0 || due_ <= Clock::now(); }
  uint64_t bytes_per_second() const { return bytes_per_second_; }

 private:
  static constexpr double kNever = 1e9;  // seconds: 30 years, which the clock can hold

  Clock::time_point started_ = {}, due_ = {};
  uint64_t expert_bytes_ = 0, bytes_per_second_ = 0;
  uint64_t gathered_ = 0;  // experts
};

}  // namespace eplb
