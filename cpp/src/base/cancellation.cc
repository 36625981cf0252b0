// SPDX-License-Identifier: Apache-2.0
// Ends waits early: see mover.h.
#include "base/cancellation.h"

#include "base/text.h"

namespace eplb {

bool Cancellation::cancel(int32_t status, int32_t rank, const std::string& reason) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (cancelled()) return false;
  status_ = status;
  rank_ = rank;
  reason_ = reason;
  cancelled_.store(true, std::memory_order_release);
  return true;
}

Error Cancellation::cause() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return Error(status_, reason_, rank_);
}

void Cancellation::check_cancelled(const char* what) const {
  if (!cancelled()) return;
  const Error told = cause();
  throw Error(told.status, text("Cannot ", what, ": ", told.what()), told.rank);
}

void Cancellation::check(const char* what) const {
  check_cancelled(what);
  if (std::chrono::steady_clock::now() >= deadline()) {
    throw Error(EPLB_TIMEOUT, text("Cannot ", what, ": the time limit has passed"));
  }
}

}  // namespace eplb
