// SPDX-License-Identifier: Apache-2.0
// Moves expert weights between GPUs with grouped ncclSend and ncclRecv; what its neighbors have, if
// it has any (see are_neighbors in blob.h), a rank copies from their slots.
//
// Four streams of one rank; time goes from left to right:
//
//   pull       pull 0            pull 1
//   local      pack 0 · copy 0   pack 1 · copy 1
//   transfer           groups 0 · fence 0 · groups 1 · fence 1
//   commit                                  commit 0           commit 1
//
// The fence of a batch is an all-reduce of one number per rank, behind the batch's groups and
// copies. It says that every rank has all its bytes, and has read all it needed of the others'
// slots. It must not be fooled by failures, and two things would fool a plain barrier:
//
//  - ncclCommAbort lets kernels leave early, and whatever is queued behind them in the stream runs.
//    So nothing that overwrites slots is ever queued behind a fence: commits are enqueued by the
//    host, once it has seen the fence's result.
//  - A kernel that leaves early still posts its steps to its peers, and *their* kernels complete as
//    if the bytes had come. So each rank contributes a number that no other rank, run or batch has,
//    and a kernel right before the all-reduce replaces it by 0 when this rank has begun to give up
//    (that flag is raised before ncclCommAbort is called). Only if no rank had given up by its
//    fence, and so all groups before it were genuine, does the sum come out right, whatever else is
//    in NCCL's buffers. A wrong sum is a peer that failed.
//
// What is received or pulled directly into slots is no danger: those slots' bytes are given up.
//
// Copies between neighbors know nothing of NCCL and always end. A rank that gives up waits for its
// own (flush), so that nothing reads its neighbors' memory once it has left the run.
//
// A right sum stays right: it may arrive after this rank has given up, and the batch is committed
// then (resolve). If another rank has seen it and this one has not, settling commits the batch:
// commits need their stream and the staging memory, and no NCCL.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "memory/allocation.h"
#include "memory/cuda_check.h"
#include "memory/kernels.h"
#include "nccl/nccl_communicator.h"
#include "nccl/nccl_schedule.h"
#include "pull/gpu_peers.h"
#include "transport/mover.h"

namespace eplb {

class NcclMover : public Mover {
 public:
  NcclMover(const MoverConfig& config, const NcclIdBlob& id, std::shared_ptr<const GpuPeers> peers,
            const Cancellation& cancellation);
  ~NcclMover() override;

  // Makes NCCL connect every pair of ranks that are no neighbors. Else it would at a pair's first
  // message: slowly, and taking memory that may be gone by then. Once, before the first run, on
  // every rank.
  void warm_up();

  void begin(const std::vector<RankBatch>& batches, bool held) override;
  size_t commits_before(size_t batch) const override {
    return config_.staging.commits_before(batch);
  }
  void stage(size_t batch) override;
  void arrive(size_t batch) override;
  void wait(size_t batch) override;
  bool agreed(size_t batch) override;
  bool resolve(size_t batch) override;
  void commit(size_t batch) override;
  bool landed(size_t batch) override;
  void flush() override;
  void finish() override;

 private:
  struct SetEvents {
    Event packed, pulled, copied, committed;
  };
  // What has to outlive every kernel.
  struct Resources;

  template <class Body>
  void guarded(Body body);
  void give_up() noexcept;
  bool drained(std::chrono::milliseconds limit) noexcept;
  SetEvents& events(size_t batch) const;
  FenceReport* report(size_t fence) const;
  uint64_t fence_number(size_t fence) const;
  uint64_t proof(size_t fence, int32_t rank) const;
  bool passed(size_t fence) const;
  void count_bytes(size_t batch);
  void raise_fence(size_t fence, const char* what);
  bool reached(size_t fence, const char* what);
  void await_fence(size_t fence, const char* what);
  void exchange_with_all(uint64_t bytes, const char* what);
  void grow(uint64_t* capacity, Allocation* memory, uint64_t bytes);
  void upload();
  void copy_up(uint64_t target, const void* source, uint64_t bytes);
  void copy(const Copies& copies, const Stream& stream, uint32_t blocks);
  void submit(const IndexRange& engine_pieces, const Stream& stream);
  WorkList<Piece> work(const IndexRange& range) const;

  const MoverConfig config_;
  const Cancellation& cancellation_;
  const StagingLayout layout_;
  const NcclTask task_;
  const uint32_t copy_blocks_;
  std::unique_ptr<Resources> gpu_;
  std::unique_ptr<NcclCommunicator> communicator_;
  Schedule schedule_;
  std::vector<uint64_t> first_chunk_;  // of schedule_.kernel_pieces
  uint32_t run_ = 0;
  uint32_t commit_blocks_ = 0;
};

}  // namespace eplb
