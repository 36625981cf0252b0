// SPDX-License-Identifier: Apache-2.0
// Moves expert weights between the GPUs of one NVLink domain with ncclPutSignal: copy engines carry
// the bytes into other ranks' landing zones (put_schedule.h), and no multiprocessor is taken for
// it.
//
// Streams of one rank beside those of nccl_mover.h; time goes from left to right:
//
//   pack       pack 0  pack 1    pack 2
//   transfer          puts 0 · fence 0 · puts 1 · fence 1
//   rooms                                    room 0
//
// Nothing in a stream waits for a signal of NCCL's, a wait for a value in memory, which no abort of
// the communicator writes if the rank that was to signal has died. When a stream has come past a
// put its bytes are there, so that fences do. That holds where GPUs write each other's memory.
// Between networks a thread of NCCL's stands in between, streams wait for that, and puts were
// reported to get lost (NVIDIA/nccl issues 2119, 2198): such ranks are refused.
//
// A set of a landing zone is put into again once every rank has committed what it had there. That
// is said by fences of their own (rooms), in a communicator of their own: in the first one they
// would come after the puts that are under way, and the next puts only after them. As any fence,
// the host sees it before it enqueues what stands behind it.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "nccl/nccl_mover.h"
#include "nccl/put_schedule.h"

namespace eplb {

class PutMover : public NcclMover {
 public:
  // Waits for all ranks. Throws EPLB_UNSUPPORTED where NCCL cannot put, or some GPU is out of
  // reach.
  PutMover(const MoverConfig& config, const NcclIdBlob& id, const Cancellation& cancellation);
  ~PutMover() override;

  bool has_room(size_t batch) override;

 private:
  struct PutResources;

  void open();
  void lower(const std::vector<RankBatch>& batches, bool held) override;
  std::vector<Landings> exchange(const Landings& own, size_t batches);
  size_t batches() const override { return schedule_.batches.size(); }
  const NcclBatch& plan(size_t batch) const override { return schedule_.batches[batch]; }
  void prepare(size_t batch) override;
  void transfer(size_t batch, const char* what) override;
  void abort_others() noexcept override;
  bool is_free(size_t batch);
  void pack_burst(uint32_t burst);

  PutResources& own_;
  std::unique_ptr<NcclCommunicator> rooms_;
  NcclOneSided::Window window_ = nullptr;
  PutTask task_;
  PutSchedule schedule_;
  size_t rooms_raised_ = 0;  // in this run
};

}  // namespace eplb
