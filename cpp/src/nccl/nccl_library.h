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
  X(AllReduce)

struct NcclLibrary {
#define EPLB_NCCL_MEMBER(name) decltype(&::nccl##name) name = nullptr;
  EPLB_NCCL_FUNCTIONS(EPLB_NCCL_MEMBER)
#undef EPLB_NCCL_MEMBER
  int32_t version = 0;
  std::string file;
};

// The library of this process; opened by nccl_open(), or now, under the usual names. It stays open.
const NcclLibrary& nccl_library();

}  // namespace eplb
