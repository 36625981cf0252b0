// SPDX-License-Identifier: Apache-2.0
// Copies by a GPU's copy engines.
#pragma once

#include <cuda_runtime_api.h>

#include <vector>

#include "memory/device.h"

namespace eplb {

class CopyEngine {
 public:
  CopyEngine();
  // Enqueues copies that do not depend on each other: as one batch where runtime and driver know
  // how (CUDA 12.8), which fills a link better than one call each, else as one call each.
  void submit(const Piece* first, const Piece* last, cudaStream_t stream);

 private:
  bool batches_;
  std::vector<void*> targets_;  // of the last batch; kept for their memory
  std::vector<void*> sources_;
  std::vector<size_t> bytes_;
};

}  // namespace eplb
