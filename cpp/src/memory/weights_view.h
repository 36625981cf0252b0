// SPDX-License-Identifier: Apache-2.0
// Where the weights of a rank are.
#pragma once

#include <cstddef>
#include <cstdint>
#include <numeric>
#include <vector>

namespace eplb {

// Addresses of one rank's weights, as seen by this process.
struct WeightsView {
  int32_t layers = 0, slots = 0, tensors = 0;
  std::vector<uint64_t> tensor_bytes;     // [tensors]
  std::vector<uint64_t> address, stride;  // [layers * tensors]; slot 0, and slot to slot
  uint64_t at(int32_t layer, int32_t tensor, int32_t slot) const {
    const size_t i = static_cast<size_t>(layer) * tensors + tensor;
    return address[i] + stride[i] * slot;
  }
  uint64_t expert_bytes() const {
    return std::accumulate(tensor_bytes.begin(), tensor_bytes.end(), uint64_t{0});
  }
};

}  // namespace eplb
