// SPDX-License-Identifier: Apache-2.0
// Events that know when they happened.
#pragma once

#include <utility>

#include "memory/cuda_check.h"

namespace eplb {

// Belongs to the device that is current when it is made.
class TimedEvent {
 public:
  TimedEvent() { EPLB_CUDA(cudaEventCreate(&event_)); }
  TimedEvent(TimedEvent&& other) noexcept : event_(std::exchange(other.event_, nullptr)) {}
  ~TimedEvent() {
    if (event_ != nullptr) (void)cudaEventDestroy(event_);
  }
  void record(cudaStream_t stream) const { EPLB_CUDA(cudaEventRecord(event_, stream)); }
  double seconds_since(const TimedEvent& start) const {
    float milliseconds = 0;
    EPLB_CUDA(cudaEventElapsedTime(&milliseconds, start.event_, event_));
    return milliseconds / 1e3;
  }

 private:
  cudaEvent_t event_ = nullptr;
};

}  // namespace eplb
