// SPDX-License-Identifier: Apache-2.0
// A GPU as a device, and questions about the GPUs of this machine.
#include <algorithm>
#include <cstring>
#include <memory>

#include "memory/cuda_check.h"
#include "memory/cuda_memory.h"
#include "memory/cuda_query.h"
#include "memory/device.h"
#include "memory/digest.h"
#include "memory/kernels.h"
#include "memory/nvml.h"

namespace eplb {
namespace {

template <class T>
T* pointer(uint64_t address) {
  return reinterpret_cast<T*>(address);
}

std::string describe(const cudaPointerAttributes& attributes) {
  switch (attributes.type) {
    case cudaMemoryTypeDevice:
      return text("memory of CUDA device ", attributes.device);
    case cudaMemoryTypeManaged:
      return "managed memory";
    case cudaMemoryTypeHost:
      return "page-locked host memory";
    default:
      return "not known to CUDA";
  }
}

// Device memory for the time of one call.
class Scratch {
 public:
  Scratch(Device* device, uint64_t bytes) : device_(device), address_(device->allocate(bytes)) {}
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { device_->release(address_); }
  uint64_t address() const { return address_; }

 private:
  Device* device_;
  uint64_t address_;
};

template <class T>
uint64_t bytes_of(const std::vector<T>& values) {
  return values.size() * sizeof(T);
}

// Items and their running sum of chunks, in device memory.
template <class Item>
class UploadedList {
 public:
  UploadedList(const std::vector<Item>& items, Device* device)
      : UploadedList(items, count_chunks(items), device) {}
  const WorkList<Item>& list() const { return list_; }

 private:
  UploadedList(const std::vector<Item>& items, const std::vector<uint64_t>& first_chunk,
               Device* device)
      : items_(device, bytes_of(items)), first_chunk_(device, bytes_of(first_chunk)) {
    device->write(items_.address(), items.data(), bytes_of(items));
    device->write(first_chunk_.address(), first_chunk.data(), bytes_of(first_chunk));
    list_ = {pointer<const Item>(items_.address()), pointer<const uint64_t>(first_chunk_.address()),
             static_cast<uint32_t>(items.size()), first_chunk.front(), first_chunk.back()};
  }

  Scratch items_, first_chunk_;
  WorkList<Item> list_;
};

class CudaDevice : public Device {
 public:
  explicit CudaDevice(int32_t ordinal) : ordinal_(ordinal) {
    use_device(ordinal);
    stream_ = std::make_unique<Stream>();
  }

  int32_t ordinal() const override { return ordinal_; }

  // One cudaMalloc each, so that a CUDA IPC handle covers exactly one allocation.
  uint64_t allocate(uint64_t bytes) override {
    use_device(ordinal_);
    void* memory = nullptr;
    const cudaError_t status = cudaMalloc(&memory, bytes);
    if (status == cudaErrorMemoryAllocation) {
      (void)cudaGetLastError();
      throw Error(EPLB_OUT_OF_MEMORY,
                  text("Cannot allocate ", bytes, " bytes of memory of CUDA device ", ordinal_));
    }
    check_cuda(status, "cudaMalloc");
    try {
      EPLB_CUDA(cudaMemsetAsync(memory, 0, bytes, *stream_));
      stream_->synchronize();
    } catch (...) {
      (void)cudaFree(memory);
      throw;
    }
    return reinterpret_cast<uint64_t>(memory);
  }

  void release(uint64_t address) noexcept override {
    if (cudaSetDevice(ordinal_) != cudaSuccess || cudaFree(pointer<void>(address)) != cudaSuccess) {
      (void)cudaGetLastError();
    }
  }

  void write(uint64_t target, const void* source, uint64_t bytes) override {
    use_device(ordinal_);
    EPLB_CUDA(
        cudaMemcpyAsync(pointer<void>(target), source, bytes, cudaMemcpyHostToDevice, *stream_));
    stream_->synchronize();
  }

  void read(void* target, uint64_t source, uint64_t bytes) override {
    use_device(ordinal_);
    EPLB_CUDA(cudaMemcpyAsync(target, pointer<const void>(source), bytes, cudaMemcpyDeviceToHost,
                              *stream_));
    stream_->synchronize();
  }

  void fill(const std::vector<FillSpan>& spans) override {
    if (spans.empty()) return;
    const UploadedList<FillSpan> work(spans, this);
    launch_fill(work.list(), *stream_);
    stream_->synchronize();
  }

  void digest(const std::vector<Span>& spans, uint64_t* digests) override {
    if (spans.empty()) return;
    const UploadedList<Span> work(spans, this);
    std::vector<uint64_t> sums;
    for (const Span& span : spans) sums.push_back(mix(span.bytes));
    const Scratch device_sums(this, bytes_of(sums));
    write(device_sums.address(), sums.data(), bytes_of(sums));
    launch_digest(work.list(), pointer<uint64_t>(device_sums.address()), *stream_);
    read(digests, device_sums.address(), bytes_of(sums));
  }

  // A span may lie in several mappings of virtual memory: frameworks that grow their memory so put
  // them side by side. Past the end of what cudaMalloc made, the neighbour is someone else's.
  void check_owned_by_caller(const Span& span) override {
    use_device(ordinal_);
    for (uint64_t at = span.address; at - span.address < span.bytes;) {
      cudaPointerAttributes attributes{};
      EPLB_CUDA(cudaPointerGetAttributes(&attributes, pointer<const void>(at)));
      if (attributes.type != cudaMemoryTypeDevice || attributes.device != ordinal_) {
        refuse(span, text("address ", at, " is ", describe(attributes)));
      }
      const Span mapping = mapping_of(at);
      const uint64_t end = mapping.address + mapping.bytes;
      if (end <= at || (end - span.address < span.bytes && is_one_allocation(at))) {
        refuse(span, text("the allocation there ends at address ", end));
      }
      at = end;
    }
  }

 private:
  [[noreturn]] void refuse(const Span& span, const std::string& state) const {
    throw Error(EPLB_INVALID_ARGUMENT,
                text("Cannot use the ", span.bytes, " bytes at address ", span.address,
                     " as memory of CUDA device ", ordinal_, ": ", state));
  }

  const int32_t ordinal_;
  std::unique_ptr<Stream> stream_;
};

void copy_text(const std::string& from, char* to, size_t capacity) {
  const size_t length = std::min(from.size(), capacity - 1);
  std::memcpy(to, from.data(), length);
  to[length] = '\0';
}

void check_ordinal(int32_t ordinal) {
  std::string why_none;
  const int32_t count = cuda_device_count(&why_none);
  if (ordinal >= 0 && ordinal < count) return;
  throw Error(EPLB_INVALID_ARGUMENT,
              text("Cannot use CUDA device ", ordinal, ": ",
                   count == 0 ? why_none : text("this machine has ", count, " of them")));
}

GpuMemory memory_of(int32_t ordinal, const std::string& pci_bus_id) {
  if (const auto memory = nvml_memory(pci_bus_id)) return *memory;
  use_device(ordinal);
  size_t free_bytes = 0, total_bytes = 0;
  EPLB_CUDA(cudaMemGetInfo(&free_bytes, &total_bytes));
  return {total_bytes, free_bytes};
}

}  // namespace

std::shared_ptr<Device> open_cuda_device(int32_t ordinal) {
  check_ordinal(ordinal);
  return std::make_shared<CudaDevice>(ordinal);
}

int32_t cuda_device_count(std::string* why_none) {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status == cudaSuccess && count > 0) return count;
  (void)cudaGetLastError();
  if (why_none != nullptr) {
    *why_none = text("Cannot find CUDA devices: ",
                     status == cudaSuccess ? "there is none" : cudaGetErrorString(status));
  }
  return 0;
}

void cuda_device_describe(int32_t ordinal, eplb_device_info* info) {
  check_ordinal(ordinal);
  cudaDeviceProp properties{};
  EPLB_CUDA(cudaGetDeviceProperties(&properties, ordinal));
  char pci_bus_id[sizeof(info->pci_bus_id)] = {};
  EPLB_CUDA(cudaDeviceGetPCIBusId(pci_bus_id, sizeof(pci_bus_id), ordinal));
  const GpuMemory memory = memory_of(ordinal, pci_bus_id);
  info->ordinal = ordinal;
  info->compute_major = properties.major;
  info->compute_minor = properties.minor;
  info->multiprocessors = properties.multiProcessorCount;
  info->total_bytes = memory.total;
  info->free_bytes = memory.free;
  copy_text(properties.name, info->name, sizeof(info->name));
  copy_text(pci_bus_id, info->pci_bus_id, sizeof(info->pci_bus_id));
}

bool cuda_peer_access(int32_t ordinal, int32_t peer) {
  check_ordinal(ordinal);
  check_ordinal(peer);
  if (ordinal == peer) return true;
  int reachable = 0;
  EPLB_CUDA(cudaDeviceCanAccessPeer(&reachable, ordinal, peer));
  return reachable != 0;
}

}  // namespace eplb
