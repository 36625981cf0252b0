// SPDX-License-Identifier: Apache-2.0
// Where each tensor of an expert lies in a staging cell.
#pragma once

#include <cstdint>
#include <vector>

#include "base/round_up.h"

namespace eplb {

struct CellLayout {
  explicit CellLayout(const std::vector<uint64_t>& tensor_bytes) {
    constexpr uint64_t kAlignment = 16;  // for vector loads
    for (const uint64_t size : tensor_bytes) {
      offset.push_back(bytes);
      bytes += round_up(size, kAlignment);
    }
  }
  // Bytes that one tensor takes, padding included.
  uint64_t stride(size_t tensor) const {
    return (tensor + 1 < offset.size() ? offset[tensor + 1] : bytes) - offset[tensor];
  }
  std::vector<uint64_t> offset;  // [tensors]
  uint64_t bytes = 0;            // of a cell, padding included
};

}  // namespace eplb
