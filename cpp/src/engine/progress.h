// SPDX-License-Identifier: Apache-2.0
// How far a run is, and how far it may go: what other threads ask and say while it is in progress.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "base/error.h"
#include "eplb.h"
#include "transport/mover.h"

namespace eplb {

// Batches that a rank knows to be staged by every rank, and those that it has committed.
struct RankCounts {
  uint32_t agreed = 0, committed = 0;
};

// The same for all ranks of an engine: the least of each.
struct RunCounts {
  uint32_t agreed = 0, committed = 0;
  uint32_t runs = 0;  // begun so far, this one included
};

class Progress {
 public:
  explicit Progress(size_t ranks);

  // By the run. A held one may commit only what is permitted.
  void begin(uint32_t batches, bool held);
  void end(const std::optional<Error>& error);
  void report(size_t rank, const RankCounts& counts);
  bool permits(uint32_t batch) const;
  // Returns at `until` or the deadline, or once `cancellation` is cancelled or the batch permitted;
  // `batch` may be null.
  void rest(std::chrono::steady_clock::time_point until, const Cancellation& cancellation,
            const uint32_t* batch);
  // Batches that the slowest and the fastest rank have committed.
  uint32_t least() const { return counts().committed; }
  uint32_t most() const;

  // By any thread, also after the run. eplb_engine_commit: permits batches, and waits for them.
  // The permission alone, and the wait with the permission.
  void permit(uint32_t batches);
  void commit(uint32_t batches, std::chrono::steady_clock::time_point deadline,
              uint32_t* committed);
  RunCounts counts() const;
  // To be called after a cancellation, which waits do not notice by themselves.
  void wake();

 private:
  // One run; who waits for it keeps it, whatever begins meanwhile.
  struct Run {
    explicit Run(size_t ranks) : ranks(ranks) {}
    RankCounts least() const;
    std::vector<RankCounts> ranks;
    uint32_t batches = 0, permitted = 0;
    bool held = false, ended = true;
    // Why it ended early, if it did: an error of its own for each who waits.
    int32_t status = EPLB_OK, rank = -1;
    std::string reason;
  };

  mutable std::mutex mutex_;  // guards the rest
  std::condition_variable changed_;
  std::shared_ptr<Run> run_;  // in progress, or the last
  uint32_t runs_ = 0;
};

}  // namespace eplb
