// SPDX-License-Identifier: Apache-2.0
// Kernels over chunked lists: see kernels.h.
#include <algorithm>

#include "memory/cuda_check.h"
#include "memory/digest.h"
#include "memory/kernels.h"

namespace eplb {
namespace {

constexpr uint32_t kCopyThreads = 512;
constexpr uint32_t kInFlight = 8;  // loads of one thread before its first store
// Fills and digests have the device to themselves, and digests compute as much as they load.
constexpr uint32_t kWideBlocks = 1024;
constexpr uint32_t kWideThreads = 256;

// The last item whose first chunk is not after `chunk`: the one that holds it.
__device__ uint32_t find_item(const uint64_t* first_chunk, uint32_t count, uint64_t chunk) {
  uint32_t low = 0;
  uint32_t high = count;
  while (high - low > 1) {
    const uint32_t middle = low + (high - low) / 2;
    (first_chunk[middle] <= chunk ? low : high) = middle;
  }
  return low;
}

// Calls visit(item index, offset, bytes) for each part of an item that falls to this block.
template <class Item, class Visit>
__device__ void for_each_part(const WorkList<Item>& work, Visit visit) {
  const uint64_t chunks = work.end - work.begin;
  uint64_t chunk = work.begin + chunks * blockIdx.x / gridDim.x;
  const uint64_t stop = work.begin + chunks * (blockIdx.x + 1) / gridDim.x;
  if (chunk == stop) return;
  for (uint32_t i = find_item(work.first_chunk, work.count, chunk); chunk < stop; ++i) {
    const uint64_t first = work.first_chunk[i];
    const uint64_t last = min(work.first_chunk[i + 1], stop);
    const uint64_t offset = (chunk - first) * kChunkBytes;
    const uint64_t bytes = min(work.items[i].bytes, (last - first) * kChunkBytes) - offset;
    visit(i, offset, bytes);
    chunk = last;
  }
}

// Streaming loads and stores: nothing here is read twice, so nothing is worth a place in a cache.
template <class Word>
__device__ void copy_words(Word* target, const Word* source, uint64_t words) {
  for (uint64_t i = threadIdx.x; i < words; i += kInFlight * blockDim.x) {
    Word held[kInFlight];
#pragma unroll
    for (uint32_t k = 0; k < kInFlight; ++k) {
      if (i + k * blockDim.x < words) held[k] = __ldcs(source + i + k * blockDim.x);
    }
#pragma unroll
    for (uint32_t k = 0; k < kInFlight; ++k) {
      if (i + k * blockDim.x < words) __stcs(target + i + k * blockDim.x, held[k]);
    }
  }
}

__global__ void __launch_bounds__(kCopyThreads) copy_kernel(WorkList<Piece> work) {
  for_each_part(work, [&](uint32_t i, uint64_t offset, uint64_t bytes) {
    const uint64_t target = work.items[i].target + offset;
    const uint64_t source = work.items[i].source + offset;
    const uint64_t vectors = (target | source) % sizeof(uint4) == 0 ? bytes / sizeof(uint4) : 0;
    copy_words(reinterpret_cast<uint4*>(target), reinterpret_cast<const uint4*>(source), vectors);
    const uint64_t done = vectors * sizeof(uint4);
    copy_words(reinterpret_cast<unsigned char*>(target + done),
               reinterpret_cast<const unsigned char*>(source + done), bytes - done);
  });
}

__device__ uint64_t gather_word(const unsigned char* bytes, uint32_t count) {
  uint64_t word = 0;
  for (uint32_t k = 0; k < count; ++k) word |= static_cast<uint64_t>(bytes[k]) << (8 * k);
  return word;
}

__device__ void scatter_word(unsigned char* bytes, uint64_t word, uint32_t count) {
  for (uint32_t k = 0; k < count; ++k) bytes[k] = static_cast<unsigned char>(word >> (8 * k));
}

__global__ void __launch_bounds__(kWideThreads) fill_kernel(WorkList<FillSpan> work) {
  for_each_part(work, [&](uint32_t i, uint64_t offset, uint64_t bytes) {
    const uint64_t address = work.items[i].address + offset;
    const uint64_t key = work.items[i].key;
    const uint64_t first_word = offset / sizeof(uint64_t);  // chunks are whole words
    const uint64_t words = bytes / sizeof(uint64_t);
    const uint32_t rest = static_cast<uint32_t>(bytes % sizeof(uint64_t));
    unsigned char* base = reinterpret_cast<unsigned char*>(address);
    if (address % sizeof(uint64_t) == 0) {
      for (uint64_t k = threadIdx.x; k < words; k += blockDim.x) {
        reinterpret_cast<uint64_t*>(address)[k] = synthetic_word(key, first_word + k);
      }
    } else {
      for (uint64_t k = threadIdx.x; k < words; k += blockDim.x) {
        scatter_word(base + k * sizeof(uint64_t), synthetic_word(key, first_word + k),
                     sizeof(uint64_t));
      }
    }
    if (rest != 0 && threadIdx.x == 0) {
      scatter_word(base + words * sizeof(uint64_t), synthetic_word(key, first_word + words), rest);
    }
  });
}

// Thread 0 gets the sum over the block. Every thread of the block must call it.
__device__ uint64_t sum_over_block(uint64_t value) {
  constexpr uint32_t kWarp = 32;
  __shared__ uint64_t warps[kWideThreads / kWarp];
  for (uint32_t step = kWarp / 2; step > 0; step /= 2) {
    value += __shfl_down_sync(0xffffffffu, value, step);
  }
  __syncthreads();  // the last sum has been read
  if (threadIdx.x % kWarp == 0) warps[threadIdx.x / kWarp] = value;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (uint32_t w = 1; w < kWideThreads / kWarp; ++w) value += warps[w];
  }
  return value;
}

__global__ void __launch_bounds__(kWideThreads)
    digest_kernel(WorkList<Span> work, unsigned long long* digests) {
  for_each_part(work, [&](uint32_t i, uint64_t offset, uint64_t bytes) {
    const uint64_t address = work.items[i].address + offset;
    const uint64_t first_word = offset / sizeof(uint64_t);
    const uint64_t words = bytes / sizeof(uint64_t);
    const uint32_t rest = static_cast<uint32_t>(bytes % sizeof(uint64_t));
    const unsigned char* base = reinterpret_cast<const unsigned char*>(address);
    uint64_t sum = 0;
    if (address % sizeof(uint64_t) == 0) {
#pragma unroll 4
      for (uint64_t k = threadIdx.x; k < words; k += blockDim.x) {
        const uint64_t word = __ldcs(reinterpret_cast<const unsigned long long*>(address) + k);
        sum += digest_term(word, first_word + k);
      }
    } else {
      for (uint64_t k = threadIdx.x; k < words; k += blockDim.x) {
        sum +=
            digest_term(gather_word(base + k * sizeof(uint64_t), sizeof(uint64_t)), first_word + k);
      }
    }
    if (rest != 0 && threadIdx.x == 0) {
      sum += digest_term(gather_word(base + words * sizeof(uint64_t), rest), first_word + words);
    }
    sum = sum_over_block(sum);
    if (threadIdx.x == 0) atomicAdd(digests + i, static_cast<unsigned long long>(sum));
  });
}

__global__ void announce_kernel(uint64_t* contribution, uint64_t proof,
                                const volatile uint32_t* giving_up) {
  *contribution = *giving_up != 0 ? 0 : proof;
}

__global__ void report_kernel(volatile FenceReport* report, const uint64_t* sum, uint64_t fence) {
  report->sum = *sum;
  __threadfence_system();
  report->fence = fence;
}

// One block per chunk, up to `most`.
template <class Item>
uint32_t blocks_for(const WorkList<Item>& work, uint32_t most) {
  return static_cast<uint32_t>(std::min<uint64_t>(work.end - work.begin, most));
}

}  // namespace

uint32_t all_blocks(int32_t ordinal) {
  int count = 0;
  EPLB_CUDA(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, ordinal));
  return static_cast<uint32_t>(count);
}

void launch_copy(const WorkList<Piece>& work, cudaStream_t stream, uint32_t blocks) {
  if (work.begin == work.end) return;
  copy_kernel<<<blocks_for(work, blocks), kCopyThreads, 0, stream>>>(work);
  EPLB_CUDA(cudaGetLastError());
}

void launch_fill(const WorkList<FillSpan>& work, cudaStream_t stream) {
  if (work.begin == work.end) return;
  fill_kernel<<<blocks_for(work, kWideBlocks), kWideThreads, 0, stream>>>(work);
  EPLB_CUDA(cudaGetLastError());
}

void launch_digest(const WorkList<Span>& work, uint64_t* digests, cudaStream_t stream) {
  if (work.begin == work.end) return;
  static_assert(sizeof(uint64_t) == sizeof(unsigned long long));
  digest_kernel<<<blocks_for(work, kWideBlocks), kWideThreads, 0, stream>>>(
      work, reinterpret_cast<unsigned long long*>(digests));
  EPLB_CUDA(cudaGetLastError());
}

void launch_announce(uint64_t* contribution, uint64_t proof, const uint32_t* giving_up,
                     cudaStream_t stream) {
  announce_kernel<<<1, 1, 0, stream>>>(contribution, proof, giving_up);
  EPLB_CUDA(cudaGetLastError());
}

void launch_report(FenceReport* report, const uint64_t* sum, uint64_t fence, cudaStream_t stream) {
  report_kernel<<<1, 1, 0, stream>>>(report, sum, fence);
  EPLB_CUDA(cudaGetLastError());
}

void load_kernels() {
  cudaFuncAttributes attributes;
  EPLB_CUDA(cudaFuncGetAttributes(&attributes, copy_kernel));
  EPLB_CUDA(cudaFuncGetAttributes(&attributes, fill_kernel));
  EPLB_CUDA(cudaFuncGetAttributes(&attributes, digest_kernel));
  EPLB_CUDA(cudaFuncGetAttributes(&attributes, announce_kernel));
  EPLB_CUDA(cudaFuncGetAttributes(&attributes, report_kernel));
}

}  // namespace eplb
