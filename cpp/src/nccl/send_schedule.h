// SPDX-License-Identifier: Apache-2.0
// What a program means to a rank that sends and receives: its batches as lists of pieces to copy
// and messages for sends and receives, with every address worked out before the first byte moves.
//
// Large tensors travel one by one, from their slot straight into a staging cell. A launch or a send
// for each of an expert's small tensors would cost more than their bytes, so all small tensors that
// go from one rank to another in one round travel as one message: a kernel packs them, they arrive
// packed, and the commit unpacks them.
//
//   staging set   [cells] x large tensors, each aligned to 256 bytes
//   packs         [experts packed in a batch] x small tensors, each aligned to 16 bytes
//   send packs    [experts sent in a batch] x the same
//
// A direct operation takes no cell: its large tensors go straight into the slot. But its small ones
// are part of a message whose sender does not know of the flag, so they take a pack; the commit
// unpacks them, too. A direct copy inside a rank takes neither.
//
// Both ends derive the same messages in the same order from the operations between them.
//
// From its neighbors a rank copies itself, and sends them nothing: large tensors by copy engine,
// first from the next rank and so on round the world (as in pull_schedule.h), small ones by kernel,
// along with what it copies inside itself. A direct operation between neighbors takes no pack.
#pragma once

#include <cstdint>
#include <vector>

#include "nccl/nccl_batch.h"
#include "transport/mover.h"

namespace eplb {

struct StagingLayout {
  StagingLayout(const WeightsView& weights, const StagingPlan& plan);
  uint64_t set_bytes() const;

  uint64_t cells;
  std::vector<bool> small;       // [tensors]
  std::vector<uint64_t> offset;  // [tensors] inside a cell, or inside a pack if small
  uint64_t cell_bytes = 0;       // large tensors of one expert, padding included
  uint64_t pack_bytes = 0;       // small tensors of one expert, padding included
};

// Where the staging memory of a rank is.
struct StagingAddresses {
  uint64_t cells = 0;       // [sets] staging sets
  uint64_t packs = 0;       // [sets][pack_experts] packs
  uint64_t send_packs = 0;  // [sets][send_experts] packs
  uint64_t sets = 0, pack_experts = 0, send_experts = 0;
};

struct Message {
  bool sends;
  int32_t peer;
  uint64_t address, bytes;
};

struct SendBatch : NcclBatch {
  IndexRange pack;                 // kernel pieces: slots -> send packs, before the sends
  IndexRange pull;                 // engine pieces: slots of neighbors -> staging
  std::vector<IndexRange> rounds;  // messages; each round is one NCCL group
};

struct SendSchedule {
  std::vector<Piece> kernel_pieces, engine_pieces;
  std::vector<Message> messages;
  std::vector<SendBatch> batches;
};

// Whose programs are lowered, and how.
struct SendTask {
  int32_t rank = 0;
  WeightsView weights;
  // [world]: weights of neighbors as this process sees them, null for other ranks; or empty: there
  // are no neighbors.
  std::vector<const WeightsView*> neighbors;
  // Who copies what is large inside the rank: copy engines, or else the copy kernel.
  bool gather_by_engine = false, commit_by_engine = false;

  const WeightsView* neighbor(int32_t peer) const {
    return neighbors.empty() ? nullptr : neighbors[peer];
  }
};

// The most experts that one batch sends, and the most whose small tensors it holds in packs.
uint64_t most_sent(const std::vector<RankBatch>& batches, const SendTask& task);
uint64_t most_packed(const std::vector<RankBatch>& batches, const SendTask& task);
// Throws EPLB_INVALID_ARGUMENT for a batch that needs more cells than there are.
SendSchedule make_send_schedule(const std::vector<RankBatch>& batches, const SendTask& task,
                                const StagingLayout& layout, const StagingAddresses& staging);

}  // namespace eplb
