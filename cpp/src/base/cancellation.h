// SPDX-License-Identifier: Apache-2.0
// What ends waits early: a time limit, and whoever gives up.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <mutex>
#include <string>

#include "base/error.h"

namespace eplb {

// Ends waits early. One per engine; shared by its ranks' threads and by eplb_engine_abort.
// A cancellation is final: the engine is broken from then on.
class Cancellation {
 public:
  // A new time limit. An earlier cancellation stays in force.
  void reset(std::chrono::steady_clock::time_point deadline) { deadline_ = deadline; }
  // Only the first call counts, and is told so. `rank` is the one to blame, -1 for none.
  bool cancel(int32_t status, int32_t rank, const std::string& reason);
  bool cancelled() const { return cancelled_.load(std::memory_order_acquire); }
  // Throws what cancel was told, as "Cannot `what`: …".
  void check_cancelled(const char* what) const;
  // The same; or EPLB_TIMEOUT when the deadline has passed, which costs a look at the clock.
  void check(const char* what) const;
  // What cancel was told; what peers should hear.
  Error cause() const;
  std::chrono::steady_clock::time_point deadline() const { return deadline_; }

 private:
  std::atomic<bool> cancelled_{false};
  std::atomic<std::chrono::steady_clock::time_point> deadline_{
      std::chrono::steady_clock::time_point::max()};
  mutable std::mutex mutex_;  // guards the rest, written once
  int32_t status_ = 0, rank_ = -1;
  std::string reason_;
};

}  // namespace eplb
