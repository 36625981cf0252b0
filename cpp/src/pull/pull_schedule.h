// SPDX-License-Identifier: Apache-2.0
// What a program means to GPUs that reach each other's memory: the copies of one rank, batch by
// batch, with every address worked out before the first byte moves.
//
//   push     what other ranks receive: from this rank's slots into their staging memory
//   pull     large tensors that are received directly: from other GPUs' slots into this rank's
//   gather   what else the batch stages: small tensors of both, and copies inside this GPU
//   commit   staging memory -> slots, and slots -> slots of the same rank, in steps
//
// Whoever has an expert writes it to where it is wanted, instead of being read: writes through a
// link are 5 % faster than reads, keep their rate beside copies inside the GPUs, where reads from
// other processes lose a quarter, and leave the order of transfers to the side that has to share
// its link. They go to staging memory alone: a rank that comes back late, after the others have
// given up on it, can still write there, and must not reach slots. So what is direct is read by
// the rank that it is for.
//
// The order of a commit is in commit_order.h, and what is staged where in staging_ring.h.
//
// What is direct takes no commit: pull and gather put it into its slot, also from inside the rank.
//
// A rank pushes to the next rank first, then to the one after it, and so on round the world, each
// in a lane of its own: if all do, no rank gets what several send at once. But a GPU's copy engines
// send to one other GPU after the other, whatever the streams, so that ranks wait for each other
// where one sends more than another: among several other GPUs, a kernel that writes to all of them
// at once is faster, if it may take multiprocessors.
//
// A small tensor is not worth a copy engine's start: all of a batch go with one launch of the copy
// kernel, which reaches other GPUs' memory where it is. Large ones of gather and commit go with
// them, or by copy engine, if no multiprocessor is to be taken from others.
//
// Staging memory holds its experts tensor by tensor, so that slots that follow each other at both
// ends are one copy.
#pragma once

#include <cstdint>
#include <vector>

#include "memory/device.h"
#include "pull/staging_ring.h"
#include "transport/mover.h"

namespace eplb {

// Another rank's memory, as this rank's GPU sees it; or this rank's own.
struct PullPeer {
  WeightsView weights;
  uint64_t staging = 0;  // [tensors][sets * cells]
  bool same_gpu = false;
};

struct PullTask {
  int32_t rank = 0;
  const std::vector<PullPeer>* peers = nullptr;  // [world], this rank's own included
  // [world]: the staging cell in which a rank wants the expert of each slot, [layers * slots], -1
  // where it wants none; see StagingRing. This rank's own is not used.
  std::vector<const int32_t*> cells;
  StagingPlan staging;
  // Who copies large tensors inside the GPU: its copy engines, or else the copy kernel.
  bool gather_by_engine = false, commit_by_engine = false;
  // Whether that kernel also writes them into other GPUs.
  bool push_by_kernel = false;
};

// To one rank.
struct Push {
  int32_t peer;
  uint32_t lane;      // 0 for the next rank, and so on round the world
  IndexRange pieces;  // of engine_pieces; what kernels copy, or stays on the GPU, is part of gather
};

struct PullBatch {
  std::vector<Push> push;
  IndexRange pull;  // of engine_pieces
  Copies gather;
  std::vector<Copies> commit;            // one after the other
  uint64_t bytes_in = 0, bytes_out = 0;  // from and to other ranks
};

struct PullSchedule {
  std::vector<Piece> kernel_pieces, engine_pieces;
  std::vector<PullBatch> batches;
};

PullSchedule make_pull_schedule(const std::vector<RankBatch>& batches, const StagingRing& ring,
                                const PullTask& task);

}  // namespace eplb
