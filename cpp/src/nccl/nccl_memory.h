// SPDX-License-Identifier: Apache-2.0
// Device memory that NCCL allocates, and can therefore share. It frees itself.
#pragma once

#include <cstdint>

#include "base/error.h"
#include "base/text.h"
#include "nccl/nccl_library.h"

namespace eplb {

class NcclMemory {
 public:
  // On the current device.
  explicit NcclMemory(uint64_t bytes) : bytes_(bytes) {
    const ncclResult_t result = nccl_library().MemAlloc(&memory_, bytes);
    if (result == ncclSuccess) return;
    throw Error(EPLB_OUT_OF_MEMORY, text("Cannot allocate ", bytes, " bytes with ncclMemAlloc: ",
                                         nccl_library().GetErrorString(result)));
  }
  NcclMemory(const NcclMemory&) = delete;
  NcclMemory& operator=(const NcclMemory&) = delete;
  ~NcclMemory() { (void)nccl_library().MemFree(memory_); }

  uint64_t address() const { return reinterpret_cast<uint64_t>(memory_); }
  uint64_t bytes() const { return bytes_; }

 private:
  void* memory_ = nullptr;
  const uint64_t bytes_;
};

}  // namespace eplb
