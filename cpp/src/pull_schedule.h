// SPDX-License-Identifier: Apache-2.0
// What a program means to a GPU that pulls: the copies of one rank, batch by batch, with every
// address worked out before the first byte moves.
//
//   pull     large tensors from other GPUs into the staging set: the copy engine's, always, as it
//            alone fills a link, and beside anything else
//   gather   what else the batch stages: small tensors, and those of other ranks of this GPU
//   commit   staging set -> slots, and slots -> slots of the same rank, in steps
//
// What stays in a rank need not be staged: nobody else reads its slots once a batch is committed. A
// copy waits for those that read what it overwrites, which is what the steps are for; copies in a
// circle would wait for each other, so one of each circle is staged.
//
// What is direct takes no commit: pull and gather put it into its slot, also from inside the rank.
//
// A rank pulls from the next rank first, then from the one after it, and so on round the world: if
// all do, no rank's memory is read by several at once.
//
// A small tensor is not worth a copy engine's start: all of a batch go with one launch of the copy
// kernel, which reads other GPUs' memory where it is. Large ones of gather and commit go with them,
// or by copy engine, if no multiprocessor is to be taken from others.
//
// A staging set holds its experts tensor by tensor, so that slots that follow each other at both
// ends are one copy.
#pragma once

#include <cstdint>
#include <vector>

#include "device.h"
#include "mover.h"

namespace eplb {

// Where a rank pulls from.
struct PullSource {
  WeightsView weights;  // as seen by this process
  bool same_gpu = false;
};

struct PullTask {
  int32_t rank = 0;
  const std::vector<PullSource>* sources = nullptr;  // [world], this rank's own included
  StagingPlan staging;
  uint64_t staging_address = 0;  // [sets][tensors][cells]
  bool copy_engine_only = false;
};

struct PullBatch {
  IndexRange pull;  // of engine_pieces
  Copies gather;
  std::vector<Copies> commit;            // one after the other
  uint64_t bytes_in = 0, bytes_out = 0;  // from and to other ranks
};

struct PullSchedule {
  std::vector<Piece> kernel_pieces, engine_pieces;
  std::vector<PullBatch> batches;
};

PullSchedule make_pull_schedule(const std::vector<RankBatch>& batches, const PullTask& task);

}  // namespace eplb
