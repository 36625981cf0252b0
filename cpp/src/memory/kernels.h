// SPDX-License-Identifier: Apache-2.0
// Kernels: copy, fill and digest over lists of very different sizes, and the two ends of a fence.
//
// An expert has a few tensors, some of 30 MB and some of 3 KB. To keep every thread block busy with
// one launch, a list is cut into chunks, and each block takes an equal run of consecutive chunks:
// it finds its first item by binary search over the running sum of chunks and walks on from there.
// So the time goes with the bytes, not with the number of items, and a block reads memory in order.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <vector>

#include "memory/device.h"

namespace eplb {

// The unit in which blocks share work: small, so that they finish together, yet many vector loads.
constexpr uint64_t kChunkBytes = 32 * 1024;

// Launch geometry of copies. 64 blocks occupy under half of a data-center GPU, and have 64 blocks x
// 512 threads x 8 loads x 16 bytes = 4 MiB in flight, more than latency x bandwidth of its memory
// (about 3 MiB). More would take multiprocessors from NCCL's kernels, where they run beside these;
// and where these write to other GPUs themselves, four H200s get 303 GB/s each with 64 blocks, 280
// with 32 and 271 with all 132. A parameter of launch_copy(), so that it can be measured.
constexpr uint32_t kCopyBlocks = 64;
// For copies that have the device to themselves: a block for each of its multiprocessors.
uint32_t all_blocks(int32_t ordinal);
// Beside copy engines that fill the links: 32 copy 1.4 TB/s inside an H200, more than those bring
// in, and leave the rest of its memory's rate to them.
constexpr uint32_t kCopyBlocksBesidePulls = 32;

// A list in device memory: item i is chunks first_chunk[i] … first_chunk[i + 1] - 1. The numbers
// may start anywhere (`begin`), so that many lists can share one running sum and one upload.
template <class Item>
struct WorkList {
  const Item* items = nullptr;            // [count]
  const uint64_t* first_chunk = nullptr;  // [count + 1]
  uint32_t count = 0;
  uint64_t begin = 0, end = 0;  // first_chunk[0], first_chunk[count]
};

// The running sum of chunks over `items`: [items + 1], from 0.
template <class Item>
std::vector<uint64_t> count_chunks(const std::vector<Item>& items) {
  std::vector<uint64_t> first_chunk(1, 0);
  first_chunk.reserve(items.size() + 1);
  for (const Item& item : items) {
    first_chunk.push_back(first_chunk.back() + (item.bytes + kChunkBytes - 1) / kChunkBytes);
  }
  return first_chunk;
}

// Copies every piece; targets must not overlap sources or each other. Vector loads where source and
// target are aligned to 16 bytes, single bytes otherwise.
void launch_copy(const WorkList<Piece>& work, cudaStream_t stream, uint32_t blocks = kCopyBlocks);
// Writes synthetic_word(key, i) into word i of every span, see digest.h.
void launch_fill(const WorkList<FillSpan>& work, cudaStream_t stream);
// Adds the sum of a span's digest_term()s to digests[span]. The caller puts mix(bytes) there first.
void launch_digest(const WorkList<Span>& work, uint64_t* digests, cudaStream_t stream);

// What a fence leaves in host memory: `sum` is valid once `fence` is the number that is waited for.
struct FenceReport {
  uint64_t sum, fence;
};

// *contribution = `proof`, or 0 when *giving_up (host memory) is set by then.
void launch_announce(uint64_t* contribution, uint64_t proof, const uint32_t* giving_up,
                     cudaStream_t stream);
// *report = {*sum, fence}, in that order for who reads `fence` first.
void launch_report(FenceReport* report, const uint64_t* sum, uint64_t fence, cudaStream_t stream);

// Loads the kernels' code onto the current device. Else their first launch would, and that may wait
// for kernels that run, such as NCCL's, which wait for other ranks.
void load_kernels();

}  // namespace eplb
