// SPDX-License-Identifier: Apache-2.0
// CUDA calls that throw, and owners of what CUDA hands out.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>

#include "base/error.h"
#include "base/text.h"

namespace eplb {

// Throws unless `status` is success, with the name of the function that `expression` calls.
inline void check_cuda(cudaError_t status, const char* expression) {
  if (status == cudaSuccess) return;
  int device = -1;
  (void)cudaGetDevice(&device);
  (void)cudaGetLastError();  // else the next, innocent call would report this error again
  const std::string call(expression);
  throw Error(status == cudaErrorMemoryAllocation ? EPLB_OUT_OF_MEMORY : EPLB_CUDA_ERROR,
              text(call.substr(0, call.find('(')), " failed on device ", device, ": ",
                   cudaGetErrorString(status)));
}

// The answer of a query.
inline bool is_ready(cudaError_t status, const char* expression) {
  if (status == cudaErrorNotReady) {
    (void)cudaGetLastError();
    return false;
  }
  check_cuda(status, expression);
  return true;
}

#define EPLB_CUDA(expression) ::eplb::check_cuda((expression), #expression)

// Makes `ordinal` the calling thread's device; to be called by everything that a foreign thread may
// enter, because calls hop between threads. It does not restore the device of before: setting a
// device creates its context, some hundred megabytes that no other rank's device should lose.
inline void use_device(int32_t ordinal) { EPLB_CUDA(cudaSetDevice(ordinal)); }

// The priority of streams that everything waits for: their work goes first where there is a choice.
inline int first_priority() {
  int least = 0, greatest = 0;
  EPLB_CUDA(cudaDeviceGetStreamPriorityRange(&least, &greatest));
  return greatest;
}

// The streams and events below belong to the device that is current when they are made.

class Stream {
 public:
  // `priority` as in cudaStreamCreateWithPriority: lower numbers go first.
  explicit Stream(int priority = 0) {
    EPLB_CUDA(cudaStreamCreateWithPriority(&stream_, cudaStreamNonBlocking, priority));
  }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  ~Stream() { (void)cudaStreamDestroy(stream_); }
  operator cudaStream_t() const { return stream_; }

  // Work enqueued from now on starts after `event`'s last record, if there was one.
  void wait(cudaEvent_t event) const { EPLB_CUDA(cudaStreamWaitEvent(stream_, event, 0)); }
  void synchronize() const { EPLB_CUDA(cudaStreamSynchronize(stream_)); }
  // True when everything enqueued so far is done. Throws what went wrong on the device.
  bool idle() const { return is_ready(cudaStreamQuery(stream_), "cudaStreamQuery"); }
  // The opposite, for who does not care what went wrong.
  bool running() const noexcept { return cudaStreamQuery(stream_) == cudaErrorNotReady; }

 private:
  cudaStream_t stream_ = nullptr;
};

class Event {
 public:
  Event() { EPLB_CUDA(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming)); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  ~Event() { (void)cudaEventDestroy(event_); }
  operator cudaEvent_t() const { return event_; }
  void record(cudaStream_t stream) const { EPLB_CUDA(cudaEventRecord(event_, stream)); }
  // True when everything before the last record is done. Throws what went wrong on the device.
  bool done() const { return is_ready(cudaEventQuery(event_), "cudaEventQuery"); }

 private:
  cudaEvent_t event_ = nullptr;
};

// Page-locked host memory, zeroed, which kernels reach under the same address.
class PinnedMemory {
 public:
  PinnedMemory() = default;
  explicit PinnedMemory(uint64_t bytes) : bytes_(bytes) {
    EPLB_CUDA(cudaHostAlloc(&memory_, bytes, cudaHostAllocPortable | cudaHostAllocMapped));
    std::fill_n(static_cast<char*>(memory_), bytes, '\0');
  }
  PinnedMemory(PinnedMemory&& other) noexcept { swap(other); }
  PinnedMemory& operator=(PinnedMemory&& other) noexcept {
    swap(other);
    return *this;
  }
  ~PinnedMemory() {
    if (memory_ != nullptr) (void)cudaFreeHost(memory_);
  }
  template <class T>
  T* as() const {
    return static_cast<T*>(memory_);
  }
  uint64_t bytes() const { return bytes_; }

 private:
  void swap(PinnedMemory& other) noexcept {
    std::swap(memory_, other.memory_);
    std::swap(bytes_, other.bytes_);
  }
  void* memory_ = nullptr;
  uint64_t bytes_ = 0;
};

}  // namespace eplb
