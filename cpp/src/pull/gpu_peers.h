// SPDX-License-Identifier: Apache-2.0
// GPU memory of other ranks: their weights, to read, and their staging memory, to write. Defined in
// gpu_peers.cc, or in no_cuda.cc.
//
// A rank of the same process is reached by its own addresses, once the GPUs may reach each other. A
// rank of another process offers each allocation that holds its weights, and its staging memory, by
// CUDA IPC, and the others map them. So memory must come from cudaMalloc: pools and virtual memory
// are refused, with a text that says what to do. What is mapped must live until it is unmapped,
// which is when the last engine that uses it is destroyed.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "pull/pull_schedule.h"
#include "transport/blob.h"
#include "transport/mover.h"

namespace eplb {

// The allocation of this GPU that holds `address`, for other processes to map.
GpuAllocation export_gpu_allocation(uint64_t address, int32_t ordinal);

// What names a GPU in all processes of a machine.
std::string pci_bus_id(int32_t ordinal);

// The allocations of this GPU that hold a rank's weights, each once. Throws EPLB_UNSUPPORTED,
// naming rank, layer and tensor, for memory that other processes cannot map.
std::vector<GpuAllocation> export_gpu_memory(const WeightsView& weights, int32_t rank,
                                             int32_t ordinal);

// The memory of ranks that this one reaches as one GPU of this process sees it.
struct GpuPeers {
  std::vector<PullPeer> ranks;  // [world]; without addresses where a rank is no neighbor
  size_t other_gpus = 0;        // that these ranks are on
  std::vector<std::shared_ptr<const void>> mappings;
};

// As seen by the GPU of rank `own`. `locals` [world]: weights of this engine's ranks, empty for the
// others. Throws EPLB_UNSUPPORTED, naming both, for a rank that this one cannot pull from.
std::shared_ptr<const GpuPeers> map_gpu_peers(const std::vector<RankBlob>& blobs,
                                              const std::vector<WeightsView>& locals, int32_t own);

}  // namespace eplb
