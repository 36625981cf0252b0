// SPDX-License-Identifier: Apache-2.0
// What a program means to a rank that puts: its batches as lists of pieces to copy and puts into
// other ranks' landing zones, with every address worked out before the first byte moves.
//
//   landing zone  [sets][cells] experts: what other ranks put here, and what the rank copies inside
//                 itself
//   outbox        [2] halves, of a few experts each: NCCL puts from memory that it knows, and slots
//                 are not, so experts go through here
//
// An expert is all its tensors one after the other, each aligned for vector loads, in the landing
// zone and in the outbox. What one rank puts into another's set lies together there, so that the
// experts of a half that go to one rank are a single put. Where it begins only the receiver knows:
// it numbers its cells first, and tells the others (Landings).
#pragma once

#include <cstdint>
#include <vector>

#include "memory/device.h"
#include "nccl/nccl_batch.h"
#include "transport/mover.h"

namespace eplb {

// Where the experts of each rank land in a set: the first cell of batch b's experts from rank r is
// [b * world + r].
using Landings = std::vector<uint32_t>;

// The cells of one rank. Throws EPLB_INVALID_ARGUMENT for a batch that needs more cells than there
// are, or receives directly: other ranks put into landing zones only.
Landings number_landings(const std::vector<RankBatch>& batches, int32_t world, uint32_t cells);

struct PutTask {
  int32_t rank = 0, world = 0;
  WeightsView weights;
  StagingPlan staging;
  uint64_t landing = 0;     // address of this rank's landing zone
  uint64_t outbox = 0;      // address of its outbox,
  uint64_t half_bytes = 0;  // whose halves have this size, at least an expert's
  // Who copies what is large inside the rank: copy engines, or else the copy kernel.
  bool gather_by_engine = false, commit_by_engine = false;
};

struct Put {
  int32_t peer;
  uint64_t source;  // address in the outbox
  uint64_t offset;  // in the peer's landing zone
  uint64_t bytes;
};

// What one half of the outbox holds for once; bursts take turns with the halves.
struct Burst {
  Copies pack;      // slots -> outbox
  IndexRange puts;  // outbox -> landing zones, one NCCL group
};

struct PutBatch : NcclBatch {
  IndexRange bursts;
};

struct PutSchedule {
  std::vector<Piece> kernel_pieces, engine_pieces;
  std::vector<Put> puts;
  std::vector<Burst> bursts;
  std::vector<PutBatch> batches;
};

// `landings` [world]: of all ranks.
PutSchedule make_put_schedule(const std::vector<RankBatch>& batches,
                              const std::vector<Landings>& landings, const PutTask& task);

}  // namespace eplb
