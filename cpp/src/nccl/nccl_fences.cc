// SPDX-License-Identifier: Apache-2.0
// Fences by all-reduce.
#include "nccl/nccl_fences.h"

#include "base/text.h"
#include "memory/digest.h"

namespace eplb {

NcclFences::NcclFences(const MoverConfig& config, uint64_t open, const uint32_t* giving_up)
    : rank_(config.rank),
      world_(config.world),
      open_(open),
      giving_up_(giving_up),
      reports_(open * sizeof(FenceReport)),
      scratch_(config.device, 2 * sizeof(uint64_t)) {}

void NcclFences::begin(uint64_t program) {
  ++run_;
  program_ = program;
}

void NcclFences::raise(size_t fence, NcclCommunicator& communicator, const Stream& stream,
                       const char* what) {
  auto* value = reinterpret_cast<uint64_t*>(scratch_.address());
  launch_announce(value, proof(fence, rank_), giving_up_, stream);
  communicator.all_reduce(value + 1, value, stream, what);
  launch_report(report(fence), value + 1, number(fence), stream);
}

bool NcclFences::passed(size_t fence) const {
  if (!reported(fence)) return false;
  uint64_t sum = 0;
  for (int32_t rank = 0; rank < world_; ++rank) sum += proof(fence, rank);
  return report(fence)->sum == sum;
}

bool NcclFences::reached(size_t fence, NcclCommunicator& communicator,
                         const Cancellation& cancellation, const char* what) const {
  if (!reported(fence)) {
    cancellation.check(what);
    communicator.check(what);
    return false;
  }
  if (!passed(fence)) {
    throw Error(EPLB_PEER_FAILED,
                text("Cannot ", what, ": another rank gave up before, or runs another program"));
  }
  return true;
}

uint64_t NcclFences::proof(size_t fence, int32_t rank) const {
  return mix(mix(mix(number(fence)) + program_) + static_cast<uint64_t>(rank));
}

bool NcclFences::reported(size_t fence) const {
  return __atomic_load_n(&report(fence)->fence, __ATOMIC_ACQUIRE) == number(fence);
}

}  // namespace eplb
