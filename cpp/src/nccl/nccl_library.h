// SPDX-License-Identifier: Apache-2.0
// NCCL's functions, found at run time: libeplb does not link NCCL, so that one libeplb.so loads on
// a laptop, and uses the NCCL that is there on a GPU node.
#pragma once

#include <nccl.h>

#include <cstdint>
#include <string>

namespace eplb {

// Older libraries lack what is needed to end a communicator that hangs.
constexpr int32_t kOldestNccl = 22000;

// Every function of NCCL that libeplb calls.
#define EPLB_NCCL_FUNCTIONS(X) \
  X(GetVersion)                \
  X(GetUniqueId)               \
  X(GetErrorString)            \
  X(GetLastError)              \
  X(CommInitRankConfig)        \
  X(CommGetAsyncError)         \
  X(CommFinalize)              \
  X(CommDestroy)               \
  X(CommAbort)                 \
  X(GroupStart)                \
  X(GroupEnd)                  \
  X(Send)                      \
  X(Recv)                      \
  X(AllReduce)                 \
  X(AllGather)                 \
  X(CommSplit)                 \
  X(MemAlloc)                  \
  X(MemFree)

// The part of NCCL that lets ranks put into each other's memory, since 2.29; declared here, as the
// header that is built against may be older.
struct NcclOneSided {
  using Window = void*;  // ncclWindow_t
  struct Team {          // ncclTeam_t
    int ranks, rank, stride;
  };
  static constexpr int kSymmetric = 1;  // NCCL_WIN_COLL_SYMMETRIC

  ncclResult_t (*CommWindowRegister)(ncclComm_t, void* memory, size_t bytes, Window*,
                                     int flags) = nullptr;
  ncclResult_t (*PutSignal)(const void* source, size_t count, ncclDataType_t, int peer, Window,
                            size_t offset, int signal, int context, unsigned flags, ncclComm_t,
                            cudaStream_t) = nullptr;
  Team (*TeamLsa)(ncclComm_t) = nullptr;  // the ranks whose memory this rank's GPU reaches
};

struct NcclLibrary {
#define EPLB_NCCL_MEMBER(name) decltype(&::nccl##name) name = nullptr;
  EPLB_NCCL_FUNCTIONS(EPLB_NCCL_MEMBER)
#undef EPLB_NCCL_MEMBER
  NcclOneSided one_sided;  // null where the library is too old
  int32_t version = 0;
  std::string file;
};

// The library of this process; opened by nccl_open(), or now, under the usual names. It stays open.
const NcclLibrary& nccl_library();
}  // namespace eplb
