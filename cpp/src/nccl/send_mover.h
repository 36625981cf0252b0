// SPDX-License-Identifier: Apache-2.0
// Moves expert weights between GPUs with grouped ncclSend and ncclRecv; what its neighbors have, if
// it has any (see are_neighbors in blob.h), a rank copies from their slots.
//
// Two streams beside those of nccl_mover.h; time goes from left to right:
//
//   pull       pull 0           pull 1
//   local      pack 0 · copy 0  pack 1 · copy 1
//   transfer          groups 0 · fence 0 · groups 1 · fence 1
//
// What is received or pulled directly into slots is no danger: those slots' bytes are given up.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "nccl/nccl_mover.h"
#include "nccl/send_schedule.h"
#include "pull/gpu_peers.h"

namespace eplb {

class SendMover : public NcclMover {
 public:
  // Waits for all ranks.
  SendMover(const MoverConfig& config, const NcclIdBlob& id, std::shared_ptr<const GpuPeers> peers,
            const Cancellation& cancellation);

 private:
  struct SendResources;

  void warm_up();
  void exchange_with_all(uint64_t bytes, const char* what);
  void lower(const std::vector<RankBatch>& batches, bool held) override;
  size_t batches() const override { return schedule_.batches.size(); }
  const NcclBatch& plan(size_t batch) const override { return schedule_.batches[batch]; }
  void prepare(size_t batch) override;
  void transfer(size_t batch, const char* what) override;
  void reserve_packs(uint64_t packed, uint64_t sent);

  SendResources& own_;
  const SendTask task_;
  SendSchedule schedule_;
};

}  // namespace eplb
