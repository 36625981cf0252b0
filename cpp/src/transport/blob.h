// SPDX-License-Identifier: Apache-2.0
// Bootstrap blobs: what one rank tells the others, carried between processes by the caller.
#pragma once

#include <cstdint>
#include <vector>

#include "memory/shared_memory.h"
#include "transport/mover.h"

namespace eplb {

// A process, told from all others that see the same shared memory.
struct ProcessIdentity {
  int32_t pid;
  uint64_t token;
  bool operator==(const ProcessIdentity& other) const {
    return pid == other.pid && token == other.token;
  }
};
ProcessIdentity this_process();

struct NcclIdBlob {  // ncclUniqueId, as bytes that travel in rank 0's blob
  char bytes[128];
};

// One allocation of GPU memory.
struct GpuAllocation {
  char ipc_handle[64];      // with which other processes map it
  uint64_t address, bytes;  // in its own process
};

struct RankBlob {
  // Plain bytes; the tables follow them in an encoded blob.
  struct Fixed {
    uint32_t magic, abi_version;
    int32_t rank, world, transport;
    int32_t layers, slots, tensors;
    int32_t ordinal;  // the device of the weights, -1: host
    uint32_t staging_cells, staging_sets;
    uint64_t small_bytes;
    uint32_t allocations;     // of GPU memory, if other ranks pull from there
    int32_t node;             // of the topology
    char gpu[32];             // its PCI bus id
    GpuAllocation staging;    // of a GPU that pulls: the allocation of its staging memory,
    uint64_t staging_offset;  // and where in that it begins
    HostIdentity host;
    ProcessIdentity process;
    SegmentReference weights;  // without a name: other processes cannot map them
    // Rank 0's, when a pull engine has ranks in other processes; the board for GPUs only.
    SegmentReference control, board;
    NcclIdBlob nccl_id;  // rank 0's, if NCCL is used
  } fixed = {};
  std::vector<uint64_t> tensor_bytes;  // [tensors]
  std::vector<GpuAllocation> allocations;
  // [layers * tensors], in the memory that other ranks can map: the segment `weights`, or all
  // allocations end to end. Empty if there is none.
  std::vector<uint64_t> offset, stride;

  // Fills `offset` and `stride` for weights that lie in `memory`, in this process.
  void offer(const WeightsView& view, const std::vector<Span>& memory);
  // Where this process has the weights, given where it has their memory: an address for the
  // segment, or for each allocation.
  WeightsView located(const std::vector<uint64_t>& addresses) const;

  std::vector<char> encode() const;
  // Throws EPLB_PEER_MISMATCH, naming the rank, for bytes that encode() does not make.
  static RankBlob decode(const char* bytes, uint64_t length, int32_t rank);
};

// Throws EPLB_PEER_MISMATCH, naming the peer and what differs, unless their weights agree.
void check_compatible(const RankBlob& own, const RankBlob& peer);

// Whether two ranks copy from each other's memory. Blobs alone decide, so that both ends agree
// which of them send and receive instead. Beside NCCL, ranks of one process never do: once its GPUs
// map each other's memory, an allocation on one of them waits for the kernels of all, and NCCL's
// wait for each other, launched by threads that the allocation in turn holds up.
bool are_neighbors(const RankBlob& a, const RankBlob& b);

// Throws EPLB_UNSUPPORTED, saying what to do, unless this process can map another's weights.
void check_reachable(const RankBlob& own, const RankBlob& peer);

}  // namespace eplb
