// SPDX-License-Identifier: Apache-2.0
// Questions about the GPUs of this machine. Defined in device_cuda.cu, or in no_cuda.cc.
#pragma once

#include <cstdint>
#include <string>

#include "eplb.h"

namespace eplb {

// 0 where there is no driver or no device; `why_none` (may be null) then says why.
int32_t cuda_device_count(std::string* why_none);
// Fills everything but size and version.
void cuda_device_describe(int32_t ordinal, eplb_device_info* info);
// Can `ordinal` map memory of `peer`?
bool cuda_peer_access(int32_t ordinal, int32_t peer);

}  // namespace eplb
