// SPDX-License-Identifier: Apache-2.0
// One rank's NCCL communicator, none of whose calls can hang.
//
// It is of NCCL's nonblocking kind: calls return at once, and are finished by looking at the state
// of the communicator, at the time limit and at the cancellation in turn.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>

#include "memory/cuda_check.h"
#include "nccl/nccl_factory.h"
#include "nccl/nccl_library.h"
#include "nccl/put_schedule.h"
#include "nccl/send_schedule.h"
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
  // Another one of the same ranks, for what must not wait for this one's work. Of few thread
  // blocks, as fences need no more.
  std::unique_ptr<NcclCommunicator> split(const char* what);

  // The calls below return when the work is on the stream. `what` completes "Cannot …" in errors;
  // after an error only abort() is left.

  // Sends and receives as one group.
  void exchange(const Message* first, const Message* last, cudaStream_t stream, const char* what);
  // *sum = sum over all ranks of *value, modulo 2^64; device memory.
  void all_reduce(uint64_t* sum, const uint64_t* value, cudaStream_t stream, const char* what);
  // gathered[r * count] … = what rank r has at `values`, [count]; device memory.
  void all_gather(uint32_t* gathered, const uint32_t* values, uint64_t count, cudaStream_t stream,
                  const char* what);
  // Throws when the communicator has failed on its own.
  void check(const char* what);
  // Ends everything that runs. Kernels end early then, see nccl_fences.h.
  void abort() noexcept;
  bool left() const { return communicator_ == nullptr; }

  // One-sided transfers, see nccl_library.h. All ranks open windows together, over memory of
  // ncclMemAlloc of the same size; they end with the communicator.
  NcclOneSided::Window open_window(uint64_t address, uint64_t bytes, const char* what);
  // How many ranks' windows this rank's GPU writes itself, this rank's own included; once a window
  // is open.
  int32_t reachable_ranks() const;
  // As one group. The bytes are there when the stream has come to its end; nothing in the stream
  // waits for another rank.
  void put(const Put* first, const Put* last, NcclOneSided::Window window, cudaStream_t stream,
           const char* what);

 private:
  NcclCommunicator(const NcclCommunicator& parent, ncclComm_t communicator)
      : nccl_(parent.nccl_),
        cancellation_(parent.cancellation_),
        rank_(parent.rank_),
        ordinal_(parent.ordinal_),
        communicator_(communicator) {}
  void settle(ncclResult_t result, const char* function, const char* what);
  void expect(ncclResult_t result, const char* function, const char* what);
  ncclResult_t state();
  bool finalize(std::chrono::milliseconds limit) noexcept;

  const NcclLibrary& nccl_;
  const Cancellation& cancellation_;
  const int32_t rank_, ordinal_;
  ncclComm_t communicator_ = nullptr;
};

}  // namespace eplb
