// SPDX-License-Identifier: Apache-2.0
// What moves between GPUs by NCCL have in common; how the bytes travel is send_mover.h's and
// put_mover.h's.
//
// Time goes from left to right, in streams of one rank:
//
//   local      copy 0              copy 1
//   transfer   bytes 0 · fence 0 · bytes 1 · fence 1
//   commit                         commit 0          commit 1
//
// The fence of a batch is raised behind all that brings its bytes, and says that every rank has
// them. See nccl_fences.h for why commits are enqueued by the host, once it has seen the fence's
// result, and for why that result can be relied on.
//
// If another rank has seen a fence and this one has not, settling commits the batch: commits need
// their stream and the staging memory, and no NCCL.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <vector>

#include "base/text.h"
#include "memory/cuda_check.h"
#include "memory/piece_lists.h"
#include "nccl/nccl_batch.h"
#include "nccl/nccl_communicator.h"
#include "nccl/nccl_fences.h"
#include "transport/mover.h"

namespace eplb {

class NcclMover : public Mover {
 public:
  ~NcclMover() override;

  void begin(const std::vector<RankBatch>& batches, bool held) final;
  size_t commits_before(size_t batch) const final { return config_.staging.commits_before(batch); }
  void stage(size_t batch) final;
  void arrive(size_t batch) final;
  void wait(size_t batch) final;
  bool agreed(size_t batch) final;
  bool resolve(size_t batch) final;
  void commit(size_t batch) final;
  bool landed(size_t batch) final;
  void flush() final;
  void finish() final;

 protected:
  // What has to outlive every kernel. Made on the rank's device, before the communicator is joined:
  // once NCCL's kernels wait for other ranks, an allocation might wait for them.
  struct Resources {
    explicit Resources(const MoverConfig& config);
    virtual ~Resources() = default;
    // Whether nothing is under way that would end without NCCL, but for commits.
    virtual bool copies_idle() const { return local.idle(); }
    // Whether nothing is under way, or all of it has failed.
    virtual bool drained() const;

    struct SetEvents {
      Event copied, committed;
    };
    PieceLists pieces;
    const Stream transfer, local, commit;
    const std::unique_ptr<SetEvents[]> sets;  // [sets]
    const PinnedMemory giving_up;             // one word
    NcclFences fences;
  };

  NcclMover(const MoverConfig& config, std::unique_ptr<Resources> resources,
            const Cancellation& cancellation);
  // Waits for all ranks. Before everything below; called by the derived class' constructor.
  void join(const NcclIdBlob& id);

  // Works out what the batches mean, and keeps it for the calls below.
  virtual void lower(const std::vector<RankBatch>& batches, bool held) = 0;
  virtual size_t batches() const = 0;
  virtual const NcclBatch& plan(size_t batch) const = 0;
  // Starts what goes before the batch's copies inside the rank, and what brings its bytes from
  // other ranks: all is there when the transfer stream has come to its end.
  virtual void prepare(size_t batch) = 0;
  virtual void transfer(size_t batch, const char* what) = 0;
  // Communicators beside the first.
  virtual void abort_others() noexcept {}

  // Runs `body`; gives up if it fails, or has before.
  template <class Body>
  void guarded(Body body);
  // Until every rank has come to the fence.
  void await_fence(size_t fence, const char* what);

  NcclCommunicator& communicator() { return *communicator_; }
  const Resources::SetEvents& events(size_t batch) const {
    return gpu_->sets[batch % config_.staging.sets];
  }

  const MoverConfig config_;
  const Cancellation& cancellation_;
  std::unique_ptr<Resources> gpu_;
  uint32_t copy_blocks_ = kCopyBlocks;

 private:
  void give_up() noexcept;
  bool drained(std::chrono::milliseconds limit) noexcept;
  void count_bytes(size_t batch);

  std::unique_ptr<NcclCommunicator> communicator_;
  uint32_t commit_blocks_ = 0;
};

template <class Body>
void NcclMover::guarded(Body body) {
  if (communicator_->left()) {
    throw Error(EPLB_BROKEN, text("Cannot move expert weights: rank ", config_.rank,
                                  " has left the NCCL communicator"));
  }
  try {
    body();
  } catch (...) {
    give_up();
    throw;
  }
}

}  // namespace eplb
