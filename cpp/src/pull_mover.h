// SPDX-License-Identifier: Apache-2.0
// Host memory: every rank copies what it needs from its peers' slots, mapped into this process.
#pragma once

#include <memory>
#include <vector>

#include "control.h"
#include "mover.h"

namespace eplb {

// Where each tensor lies in a staging cell.
struct CellLayout {
  explicit CellLayout(const std::vector<uint64_t>& tensor_bytes);
  // Bytes that one tensor takes, padding included.
  uint64_t stride(size_t tensor) const {
    return (tensor + 1 < offset.size() ? offset[tensor + 1] : bytes) - offset[tensor];
  }
  std::vector<uint64_t> offset;  // [tensors]
  uint64_t bytes = 0;            // of a cell, padding included
};

// `views` [world]: every rank's weights as this process sees them.
std::unique_ptr<Mover> make_pull_mover(const MoverConfig& config,
                                       std::shared_ptr<const std::vector<WeightsView>> views,
                                       std::shared_ptr<Control> control,
                                       const Cancellation& cancellation);

}  // namespace eplb
