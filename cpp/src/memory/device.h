// SPDX-License-Identifier: Apache-2.0
// Memory of one device, seen alike by everything above: the host, or one GPU.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

namespace eplb {

struct Piece {  // one copy; lists of these are what engines and kernels work on
  uint64_t target, source, bytes;
};

struct IndexRange {              // of a list
  uint32_t first = 0, last = 0;  // one past the last
  bool empty() const { return first == last; }
};

struct Copies {  // of pieces that kernels copy, and of those that copy engines do
  IndexRange kernel, engine;
};

struct Span {
  uint64_t address, bytes;
};

struct FillSpan {
  uint64_t address, bytes,
      key;  // 8-byte word i of the span is synthetic_word(key, i), see digest.h
};

class Device {
 public:
  virtual ~Device() = default;
  virtual int32_t ordinal() const = 0;            // -1: host
  virtual uint64_t allocate(uint64_t bytes) = 0;  // zeroed; throws kOutOfMemory
  virtual void release(uint64_t address) noexcept = 0;
  virtual void write(uint64_t target, const void* source, uint64_t bytes) = 0;  // from host memory
  virtual void read(void* target, uint64_t source, uint64_t bytes) = 0;         // to host memory
  virtual void fill(const std::vector<FillSpan>& spans) = 0;
  virtual void digest(const std::vector<Span>& spans, uint64_t* digests) = 0;
  // Throws Error(EPLB_INVALID_ARGUMENT) when the caller's memory is not this device's.
  virtual void check_owned_by_caller(const Span& span) = 0;
};

std::shared_ptr<Device> open_host_device();
// Defined in device_cuda.cu, or in no_cuda.cc, where it throws EPLB_UNSUPPORTED.
std::shared_ptr<Device> open_cuda_device(int32_t ordinal);

}  // namespace eplb
