// SPDX-License-Identifier: Apache-2.0
// One rank's NCCL communicator, none of whose calls can hang.
//
// It is of NCCL's nonblocking kind: calls return at once, and are finished by looking at the state
// of the communicator, at the time limit and at the cancellation in turn.
#pragma once

#include <chrono>
#include <cstdint>

#include "memory/cuda_check.h"
#include "nccl/nccl_factory.h"
#include "nccl/nccl_library.h"
#include "nccl/nccl_schedule.h"
#include "transport/mover.h"

namespace eplb {

class NcclCommunicator {
 public:
  // Waits for all ranks.
  NcclCommunicator(const MoverConfig& config, const NcclIdBlob& id,
                   const Cancellation& cancellation);
  NcclCommunicator(const NcclCommunicator&) = delete;
  NcclCommunicator& operator=(const NcclCommunicator&) = delete;
  // Takes leave of the other ranks, for a limited time; then aborts.
  ~NcclCommunicator();

  // The calls below return when the work is on the stream. `what` completes "Cannot …" in errors;
  // after an error only abort() is left.

  // Sends and receives as one group.
  void exchange(const Message* first, const Message* last, cudaStream_t stream, const char* what);
  // *sum = sum over all ranks of *value, modulo 2^64; device memory.
  void all_reduce(uint64_t* sum, const uint64_t* value, cudaStream_t stream, const char* what);
  // Throws when the communicator has failed on its own.
  void check(const char* what);
  // Ends everything that runs. Kernels end early then, see nccl_mover.h.
  void abort() noexcept;

 private:
  void settle(ncclResult_t result, const char* function, const char* what);
  void expect(ncclResult_t result, const char* function, const char* what);
  ncclResult_t state();
  bool finalize(std::chrono::milliseconds limit) noexcept;

  const NcclLibrary& nccl_;
  const Cancellation& cancellation_;
  const int32_t ordinal_;
  ncclComm_t communicator_ = nullptr;
};

}  // namespace eplb
