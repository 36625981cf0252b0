// SPDX-License-Identifier: Apache-2.0
// Device memory that frees itself.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>

#include "memory/device.h"

namespace eplb {

class Allocation {
 public:
  Allocation() = default;
  Allocation(std::shared_ptr<Device> device, uint64_t bytes)
      : device_(std::move(device)), address_(device_->allocate(bytes)) {}
  Allocation(Allocation&& other) noexcept { swap(other); }
  Allocation& operator=(Allocation&& other) noexcept {
    swap(other);
    return *this;
  }
  ~Allocation() {
    if (device_ != nullptr) device_->release(address_);
  }

  uint64_t address() const { return address_; }

 private:
  void swap(Allocation& other) noexcept {
    std::swap(device_, other.device_);
    std::swap(address_, other.address_);
  }

  std::shared_ptr<Device> device_;
  uint64_t address_ = 0;
};

}  // namespace eplb
