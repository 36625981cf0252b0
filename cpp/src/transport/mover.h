// SPDX-License-Identifier: Apache-2.0
// What a transport does for one local rank. The executor drives it on the rank's own thread:
//
//   begin · (stage · arrive) for each batch, as far ahead as commits_before() lets it · (wait ·
//   commit) · flush · finish
//
// and, after a failure, resolve · commit for the batches that were already decided. In held and in
// bounded runs (executor.h) agreed() stands beside wait(); in held ones commits come later, and
// landed() is asked after each.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "base/cancellation.h"
#include "eplb.h"
#include "memory/device.h"
#include "memory/weights_view.h"

namespace eplb {

// One operation of a program, for one rank; fields as in eplb.h, the code without its flag.
struct Operation {
  int32_t round, code, layer, slot, peer, peer_slot;
  bool direct = false;  // the slot may be written while the batch is staged
  bool takes_cell() const { return code != EPLB_OP_SEND && !direct; }
};

// What one rank does in one batch of layers. Receives and copies that are not direct each take one
// staging cell, in the order of `operations`: cell c holds the c-th of them.
struct RankBatch {
  std::vector<Operation> operations;  // SEND, RECEIVE and COPY, sorted by round
  struct Commit {
    int32_t layer, slot, cell;
  };
  std::vector<Commit> commits;  // every slot that changes, duplicates included; not direct ones
};

// Staging memory of one rank: `sets` sets of `cells` cells, each of which holds one expert.
struct StagingPlan {
  uint32_t cells = 0, sets = 0;
  uint32_t all_cells() const { return cells * sets; }
  size_t commits_before(size_t batch) const { return batch < sets ? 0 : batch + 1 - sets; }
  uint64_t small_bytes = 0;  // tensors up to this size are packed instead of sent one by one
};

// What a transport is told about the local rank it serves.
struct MoverConfig {
  int32_t rank = 0, world = 0;
  std::shared_ptr<Device> device;
  WeightsView weights;
  StagingPlan staging;
  int32_t max_ctas = 0;
  bool copy_engine_only = false;
};

class Mover {
 public:
  virtual ~Mover() = default;
  // The program of one run. Uploads what the device needs; moves nothing. In a held run a commit
  // has the device to itself, as the model stands still for it, and should be over soon.
  virtual void begin(const std::vector<RankBatch>& batches, bool held) = 0;
  // Starts gathering the batch into staging set `batch % sets`. May return before the bytes are
  // there. Waits until has_room().
  virtual void stage(size_t batch) = 0;
  // Commits of this rank that have to be begun before stage() of the batch, as those batches have
  // the staging memory until then.
  virtual size_t commits_before(size_t batch) const = 0;
  // Whether other ranks, too, are done with the staging memory that stage() of the batch would
  // fill.
  virtual bool has_room(size_t) { return true; }
  // Tells every rank, once the bytes are there, that this rank has staged the batch; wait() of the
  // batch may do so instead.
  virtual void arrive(size_t batch) = 0;
  // Returns once every rank has staged the batch: from then on it will be committed everywhere.
  // Throws on timeout, cancellation or a peer's failure; then resolve() says how it ended.
  virtual void wait(size_t batch) = 0;
  // wait() without waiting: true where it would return now. Throws where wait() would, but for the
  // time limit, which is for the executor to check where it rests. A batch that this rank has not
  // staged yet may be asked for, as peers may have given up on it.
  virtual bool agreed(size_t batch) = 0;
  // After a failure, without waiting: is the batch known to be staged everywhere? Once false was
  // answered for a batch, no rank of this process' shared control block will ever commit it.
  virtual bool resolve(size_t batch) = 0;
  // Starts copying the staged batch into the slots. Ordered before each stage() that has to come
  // after it.
  virtual void commit(size_t batch) = 0;
  // Whether the commit of the batch, the latest that was started, is in place here.
  virtual bool landed(size_t batch) = 0;
  // Returns when every commit is in place here.
  virtual void flush() = 0;
  // Waits until every rank has flushed: peers' slots may be read again.
  virtual void finish() = 0;
  // Bytes from and to other ranks in this run.
  uint64_t bytes_in = 0, bytes_out = 0;
  // Staging memory that the mover has allocated; set by its constructor.
  uint64_t staging_bytes = 0;
};

}  // namespace eplb
