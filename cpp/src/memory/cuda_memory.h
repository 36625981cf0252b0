// SPDX-License-Identifier: Apache-2.0
// Questions to the CUDA driver about an address.
#pragma once

#include <cstdint>

#include "memory/device.h"

namespace eplb {

// The allocation, or the mapping of virtual memory, that holds `address`; of 0 bytes if none of the
// calling thread's device does.
Span mapping_of(uint64_t address);
// Did cudaMalloc make the memory at `address`, rather than a pool or the driver's virtual memory
// calls? Only such memory can be shared with other processes, and by cudaDeviceEnablePeerAccess.
bool is_one_allocation(uint64_t address);
// Can the calling thread's device read the memory at `address`?
bool is_readable(uint64_t address);

}  // namespace eplb
