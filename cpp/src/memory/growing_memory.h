// SPDX-License-Identifier: Apache-2.0
// Device memory that grows with what it has to hold, and forgets it then.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "memory/allocation.h"

namespace eplb {

class GrowingMemory {
 public:
  explicit GrowingMemory(std::shared_ptr<Device> device) : device_(std::move(device)) {}

  // Makes sure that there are `bytes`. What is outgrown is kept: to free it might wait for kernels
  // of other ranks of this process, which may already wait for this rank.
  void reserve(uint64_t bytes) {
    if (bytes <= bytes_) return;
    const uint64_t more = std::max(bytes, 2 * bytes_);
    allocations_.emplace_back(device_, more);
    bytes_ = more;
  }

  uint64_t address() const { return allocations_.empty() ? 0 : allocations_.back().address(); }
  uint64_t bytes() const { return bytes_; }

 private:
  const std::shared_ptr<Device> device_;
  std::vector<Allocation> allocations_;  // the last one is in use
  uint64_t bytes_ = 0;
};

}  // namespace eplb
