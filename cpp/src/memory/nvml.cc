// SPDX-License-Identifier: Apache-2.0
// NVML, opened at run time: it comes with the driver, its header with a part of the toolkit.
#include "memory/nvml.h"

#include <dlfcn.h>

namespace eplb {
namespace {

// As in nvml.h, whose ABI is stable.
using Result = int;  // 0: success
using Handle = void*;
struct Memory {
  unsigned long long total, free, used;
};

class Nvml {
 public:
  // Stays open: the driver keeps what it has learned about the devices.
  static const Nvml& get() {
    static const auto* nvml = new Nvml;
    return *nvml;
  }

  std::optional<GpuMemory> memory(const std::string& pci_bus_id) const {
    Handle device = nullptr;
    Memory memory = {};
    if (!ready_ || find_(pci_bus_id.c_str(), &device) != 0 || read_(device, &memory) != 0) {
      return std::nullopt;
    }
    return GpuMemory{memory.total, memory.free};
  }

 private:
  Nvml() {
    void* library = dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) return;
    const auto start = reinterpret_cast<Result (*)()>(dlsym(library, "nvmlInit_v2"));
    find_ = reinterpret_cast<Result (*)(const char*, Handle*)>(
        dlsym(library, "nvmlDeviceGetHandleByPciBusId_v2"));
    read_ =
        reinterpret_cast<Result (*)(Handle, Memory*)>(dlsym(library, "nvmlDeviceGetMemoryInfo"));
    ready_ = start != nullptr && find_ != nullptr && read_ != nullptr && start() == 0;
  }

  bool ready_ = false;
  Result (*find_)(const char*, Handle*) = nullptr;
  Result (*read_)(Handle, Memory*) = nullptr;
};

}  // namespace

std::optional<GpuMemory> nvml_memory(const std::string& pci_bus_id) {
  return Nvml::get().memory(pci_bus_id);
}

}  // namespace eplb
