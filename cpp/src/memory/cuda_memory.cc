// SPDX-License-Identifier: Apache-2.0
// Questions to the CUDA driver about an address.
#include "memory/cuda_memory.h"

#include <cuda.h>

#include "memory/cuda_check.h"

namespace eplb {
namespace {

// A function of the driver, found through the runtime: libeplb does not link libcuda, so that it
// loads on machines without a driver.
void* driver_function(const char* name) {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
#if CUDART_VERSION >= 12050
  EPLB_CUDA(cudaGetDriverEntryPointByVersion(name, &function, 12000, cudaEnableDefault, &found));
#else
  EPLB_CUDA(cudaGetDriverEntryPoint(name, &function, cudaEnableDefault, &found));
#endif
  if (found != cudaDriverEntryPointSuccess || function == nullptr) {
    throw Error(EPLB_CUDA_ERROR, text("Cannot find ", name, " in the CUDA driver"));
  }
  return function;
}

// 0 also where the driver does not know the attribute.
unsigned attribute(CUpointer_attribute which, uint64_t address) {
  using GetAttribute = CUresult (*)(void*, CUpointer_attribute, CUdeviceptr);
  static const auto get_attribute =
      reinterpret_cast<GetAttribute>(driver_function("cuPointerGetAttribute"));
  unsigned value = 0;
  return get_attribute(&value, which, address) == CUDA_SUCCESS ? value : 0;
}

}  // namespace

Span mapping_of(uint64_t address) {
  using GetAddressRange = CUresult (*)(CUdeviceptr*, size_t*, CUdeviceptr);
  static const auto get_address_range =
      reinterpret_cast<GetAddressRange>(driver_function("cuMemGetAddressRange"));
  CUdeviceptr base = 0;
  size_t bytes = 0;
  if (get_address_range(&base, &bytes, address) != CUDA_SUCCESS) return {address, 0};
  return {base, bytes};
}

bool is_one_allocation(uint64_t address) {
  return attribute(CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE, address) != 0;
}

bool is_readable(uint64_t address) {
  constexpr unsigned kReadable = 1;  // CU_POINTER_ATTRIBUTE_ACCESS_FLAG_READ, of CUDA 12
  return (attribute(CU_POINTER_ATTRIBUTE_ACCESS_FLAGS, address) & kReadable) != 0;
}

}  // namespace eplb
