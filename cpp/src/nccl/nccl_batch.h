// SPDX-License-Identifier: Apache-2.0
// What one batch means to a rank that uses NCCL, however its bytes travel.
#pragma once

#include <cstdint>

#include "memory/device.h"

namespace eplb {

struct NcclBatch {
  Copies copy;                           // what the rank copies itself, slots -> staging
  Copies commit;                         // staging -> slots
  uint64_t bytes_in = 0, bytes_out = 0;  // of tensors, without padding
};

}  // namespace eplb
