// SPDX-License-Identifier: Apache-2.0
// Fences of the ranks of a communicator, in stream order: an all-reduce of one number per rank,
// whose sum the host looks at. A fence must not be fooled by failures, and two things would fool a
// plain barrier:
//
//  - ncclCommAbort lets kernels leave early, and whatever is queued behind them in the stream runs.
//    So nothing that overwrites what another rank may need is ever queued behind a fence: the host
//    enqueues it once it has seen the fence's result.
//  - A kernel that leaves early still posts its steps to its peers, and *their* kernels complete as
//    if the bytes had come. So each rank contributes a number that no other rank, run or fence has,
//    and a kernel right before the all-reduce replaces it by 0 when this rank has begun to give up
//    (that flag is raised before ncclCommAbort is called). Only if no rank had given up by its
//    fence, and so all that was queued before it was genuine, does the sum come out right, whatever
//    else is in NCCL's buffers. A wrong sum is a peer that failed.
//
// A right sum stays right: it may arrive after this rank has given up.
#pragma once

#include <cstdint>

#include "memory/allocation.h"
#include "memory/cuda_check.h"
#include "memory/kernels.h"
#include "nccl/nccl_communicator.h"
#include "transport/mover.h"

namespace eplb {

class NcclFences {
 public:
  // At most `open` fences that are raised and not yet looked at. `giving_up` (page-locked) is what
  // the rank sets when it gives up.
  NcclFences(const MoverConfig& config, uint64_t open, const uint32_t* giving_up);

  // A new run, in which every rank is to have the same `program` number: ranks with different
  // programs do not pass.
  void begin(uint64_t program);
  // Fences are raised in the same order by all ranks of `communicator`, on one stream.
  void raise(size_t fence, NcclCommunicator& communicator, const Stream& stream, const char* what);
  // Whether it is known that every rank has raised the fence, and had not given up by then.
  bool passed(size_t fence) const;
  // The same, for a rank that waits for it. Throws if it will never be, or `cancellation` ends the
  // wait.
  bool reached(size_t fence, NcclCommunicator& communicator, const Cancellation& cancellation,
               const char* what) const;

 private:
  FenceReport* report(size_t fence) const { return reports_.as<FenceReport>() + fence % open_; }
  uint64_t number(size_t fence) const { return (uint64_t{run_} << 32) + fence + 1; }
  uint64_t proof(size_t fence, int32_t rank) const;
  bool reported(size_t fence) const;

  const int32_t rank_, world_;
  const uint64_t open_;
  const uint32_t* const giving_up_;
  const PinnedMemory reports_;  // [open]
  const Allocation scratch_;    // what this rank contributes, and the sum
  uint64_t program_ = 0;
  uint32_t run_ = 0;
};

}  // namespace eplb
