// SPDX-License-Identifier: Apache-2.0
// What one run copies on a GPU: the pieces for its copy kernel, in device memory, and those for its
// copy engines.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "memory/copy_engine.h"
#include "memory/cuda_check.h"
#include "memory/growing_memory.h"
#include "memory/kernels.h"

namespace eplb {

class PieceLists {
 public:
  // For `expected` pieces of the kernel to begin with.
  PieceLists(std::shared_ptr<Device> device, uint64_t expected);

  // The lists of the next run. Waits for nothing but the upload, on a stream of its own: whatever
  // else runs on the device may be waiting for this rank.
  void assign(std::vector<Piece> kernel, std::vector<Piece> engine);

  // Enqueue copies of the current run.
  void copy(const Copies& copies, const Stream& stream, uint32_t blocks);
  void copy_by_kernel(const IndexRange& pieces, const Stream& stream, uint32_t blocks);
  void copy_by_engine(const IndexRange& pieces, const Stream& stream);

 private:
  void write(uint64_t target, const void* source, uint64_t bytes);

  const Stream upload_;
  const PinnedMemory pinned_;
  CopyEngine engine_;
  GrowingMemory memory_;  // pieces of the kernel, then their running sum of chunks
  uint64_t chunks_ = 0;
  std::vector<uint64_t> first_chunk_;
  std::vector<Piece> engine_pieces_;
};

}  // namespace eplb
