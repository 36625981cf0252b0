// SPDX-License-Identifier: Apache-2.0
// Memory of a GPU without opening it: a CUDA context takes hundreds of megabytes of each GPU that a
// process looks at, and a second of its time.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace eplb {

struct GpuMemory {
  uint64_t total, free;
};

// Nothing where the driver's management library is not there or does not know the device.
std::optional<GpuMemory> nvml_memory(const std::string& pci_bus_id);

}  // namespace eplb
