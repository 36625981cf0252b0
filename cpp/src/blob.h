// SPDX-License-Identifier: Apache-2.0
// Bootstrap blobs: what one rank tells the others, carried between processes by the caller.
#pragma once

#include <cstdint>
#include <vector>

#include "mover.h"
#include "nccl_factory.h"
#include "shared_memory.h"

namespace eplb {

struct RankBlob {
  // Plain bytes; the tables follow them in an encoded blob.
  struct Fixed {
    uint32_t magic, abi_version;
    int32_t rank, world, transport;
    int32_t layers, slots, tensors;
    int32_t ordinal;  // the device of the weights, -1: host
    uint32_t staging_sets;
    uint64_t small_bytes;
    HostIdentity host;
    SegmentReference weights;  // without a name: other processes cannot map them
    SegmentReference control;  // rank 0's, when a pull engine has ranks in other processes
    NcclIdBlob nccl_id;        // rank 0's, for NCCL
  } fixed = {};
  std::vector<uint64_t> tensor_bytes;    // [tensors]
  std::vector<uint64_t> offset, stride;  // [layers * tensors], in the segment `weights`

  std::vector<char> encode() const;
  // Throws EPLB_PEER_MISMATCH, naming the rank, for bytes that encode() does not make.
  static RankBlob decode(const char* bytes, uint64_t length, int32_t rank);
};

// Throws EPLB_PEER_MISMATCH, naming the peer and what differs, unless their weights agree.
void check_compatible(const RankBlob& own, const RankBlob& peer);

// Throws EPLB_UNSUPPORTED, saying what to do, unless this process can map another's weights.
void check_reachable(const RankBlob& own, const RankBlob& peer);

// The peer's weights, given where its segment is in this process.
WeightsView mapped_view(const RankBlob& peer, const SharedMemory& segment);

}  // namespace eplb
