// SPDX-License-Identifier: Apache-2.0
// GPU memory of other ranks: see gpu_peers.h.
#include "pull/gpu_peers.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <mutex>
#include <set>
#include <utility>

#include "memory/cuda_check.h"
#include "memory/cuda_memory.h"

namespace eplb {
namespace {

static_assert(sizeof(cudaIpcMemHandle_t) == sizeof(GpuAllocation::ipc_handle));

constexpr char kWhatToDo[] =
    "; let the library allocate the weights, or take their memory from cudaMalloc "
    "(PyTorch: PYTORCH_CUDA_ALLOC_CONF=expandable_segments:False)";

std::string place(const WeightsView& weights, size_t i) {
  return text("layer ", i / weights.tensors, ", tensor ", i % weights.tensors);
}

std::string gpu_of(const RankBlob& blob) {
  return text("CUDA device ", blob.fixed.ordinal, " (", blob.fixed.gpu, ")");
}

[[noreturn]] void refuse(const RankBlob& own, const RankBlob& peer, const std::string& state) {
  throw Error(
      EPLB_UNSUPPORTED,
      text("Cannot pull from rank ", peer.fixed.rank, " to rank ", own.fixed.rank, ": ", state),
      peer.fixed.rank);
}

// Lets the calling thread's device, rank `own`'s, reach the GPU with this number.
void enable_peer_access(const RankBlob& own, const RankBlob& peer, int32_t ordinal) {
  int reachable = 0;
  EPLB_CUDA(cudaDeviceCanAccessPeer(&reachable, own.fixed.ordinal, ordinal));
  if (reachable == 0) {
    refuse(own, peer, text(gpu_of(own), " cannot reach memory of ", gpu_of(peer), "; use nccl"));
  }
  const cudaError_t status = cudaDeviceEnablePeerAccess(ordinal, 0);
  if (status == cudaErrorPeerAccessAlreadyEnabled) {
    (void)cudaGetLastError();
    return;
  }
  check_cuda(status, "cudaDeviceEnablePeerAccess");
}

// Peer access does not hold for memory of pools, nor for virtual memory, unless who made it says
// so; and a kernel that reads what it cannot reach leaves nothing of its process' GPU memory.
void require_readable(const RankBlob& own, const RankBlob& peer, const WeightsView& weights) {
  for (size_t i = 0; i < weights.address.size(); ++i) {
    if (is_one_allocation(weights.address[i]) || is_readable(weights.address[i])) continue;
    refuse(own, peer,
           text(place(weights, i), " is memory of a pool, or virtual memory, that ", gpu_of(own),
                " cannot reach", kWhatToDo));
  }
}

// Another process' allocation in the address space of one device. Ranks that need the same one
// share it, as a device of a process can map it only once.
class IpcMapping {
 public:
  // The calling thread's device is `ordinal`.
  IpcMapping(int32_t ordinal, const GpuAllocation& allocation)
      : key_(ordinal, std::string(allocation.ipc_handle, sizeof(allocation.ipc_handle))) {
    const std::lock_guard<std::mutex> lock(mutex());
    auto shared = all().find(key_);
    if (shared == all().end()) {
      cudaIpcMemHandle_t handle;
      std::memcpy(&handle, allocation.ipc_handle, sizeof(handle));
      void* memory = nullptr;
      EPLB_CUDA(cudaIpcOpenMemHandle(&memory, handle, cudaIpcMemLazyEnablePeerAccess));
      shared = all().emplace(key_, Shared{memory, 0}).first;
    }
    ++shared->second.users;
    address_ = reinterpret_cast<uint64_t>(shared->second.memory);
  }
  IpcMapping(const IpcMapping&) = delete;
  IpcMapping& operator=(const IpcMapping&) = delete;
  ~IpcMapping() {
    const std::lock_guard<std::mutex> lock(mutex());
    const auto shared = all().find(key_);
    if (--shared->second.users > 0) return;
    if (cudaSetDevice(key_.first) != cudaSuccess ||
        cudaIpcCloseMemHandle(shared->second.memory) != cudaSuccess) {
      (void)cudaGetLastError();
    }
    all().erase(shared);
  }
  uint64_t address() const { return address_; }

 private:
  using Key = std::pair<int32_t, std::string>;
  struct Shared {
    void* memory;
    size_t users;
  };

  // Never destroyed: other threads may be running while the process exits.
  static std::mutex& mutex() {
    static auto* mutex = new std::mutex;
    return *mutex;
  }
  static std::map<Key, Shared>& all() {
    static auto* all = new std::map<Key, Shared>;
    return *all;
  }

  const Key key_;
  uint64_t address_ = 0;
};

// Where an allocation of another process' rank is in the address space of this rank's GPU.
uint64_t map_allocation(const RankBlob& own, const RankBlob& peer, const GpuAllocation& allocation,
                        GpuPeers* peers) {
  try {
    const auto mapping = std::make_shared<const IpcMapping>(own.fixed.ordinal, allocation);
    peers->mappings.push_back(mapping);
    return mapping->address();
  } catch (const Error& error) {
    refuse(own, peer,
           text(gpu_of(own), " cannot map memory of ", gpu_of(peer), ": ", error.what(),
                "; use nccl"));
  }
}

WeightsView map_weights(const RankBlob& own, const RankBlob& peer, GpuPeers* peers) {
  std::vector<uint64_t> addresses;
  for (const GpuAllocation& one : peer.allocations)
    addresses.push_back(map_allocation(own, peer, one, peers));
  return peer.located(addresses);
}

// The number that a GPU has in this process, -1 if it is hidden here.
int32_t ordinal_of(const char* gpu) {
  int ordinal = -1;
  if (cudaDeviceGetByPCIBusId(&ordinal, gpu) == cudaSuccess) return ordinal;
  (void)cudaGetLastError();
  return -1;
}

// `local` is empty for ranks of other engines.
PullPeer reach(const RankBlob& own, const RankBlob& peer, const WeightsView& local,
               GpuPeers* peers) {
  const bool same_process = peer.fixed.process == own.fixed.process;
  PullPeer reached;
  reached.same_gpu = std::strcmp(own.fixed.gpu, peer.fixed.gpu) == 0;
  const int32_t ordinal = same_process ? peer.fixed.ordinal : ordinal_of(peer.fixed.gpu);
  if (!reached.same_gpu && ordinal >= 0) enable_peer_access(own, peer, ordinal);
  const GpuAllocation& staging = peer.fixed.staging;
  if (staging.address != 0) {
    reached.staging = peer.fixed.staging_offset +
                      (same_process ? staging.address : map_allocation(own, peer, staging, peers));
  }
  if (!same_process) {
    reached.weights = map_weights(own, peer, peers);
    return reached;
  }
  if (!local.address.empty()) {
    reached.weights = local;
  } else {
    std::vector<uint64_t> addresses;
    for (const GpuAllocation& one : peer.allocations) addresses.push_back(one.address);
    reached.weights = peer.located(addresses);
  }
  if (!reached.same_gpu) require_readable(own, peer, reached.weights);
  return reached;
}

}  // namespace

std::string pci_bus_id(int32_t ordinal) {
  char name[sizeof(RankBlob::Fixed::gpu)] = "";
  EPLB_CUDA(cudaDeviceGetPCIBusId(name, sizeof(name), ordinal));
  return name;
}

GpuAllocation export_gpu_allocation(uint64_t address, int32_t ordinal) {
  use_device(ordinal);  // the driver knows the allocations of one device at a time
  const Span span = mapping_of(address);
  GpuAllocation allocation = {};
  allocation.address = span.address;
  allocation.bytes = span.bytes;
  cudaIpcMemHandle_t handle;
  EPLB_CUDA(cudaIpcGetMemHandle(&handle, reinterpret_cast<void*>(span.address)));
  std::memcpy(allocation.ipc_handle, &handle, sizeof(handle));
  return allocation;
}

std::vector<GpuAllocation> export_gpu_memory(const WeightsView& weights, int32_t rank,
                                             int32_t ordinal) {
  use_device(ordinal);  // the driver knows the allocations of one device at a time
  std::map<uint64_t, GpuAllocation> allocations;  // by address
  for (size_t i = 0; i < weights.address.size(); ++i) {
    const auto refuse_memory = [&](const std::string& state) {
      throw Error(EPLB_UNSUPPORTED,
                  text("Cannot share the weights of rank ", rank,
                       " with other processes: ", place(weights, i), " is ", state, kWhatToDo));
    };
    const uint64_t address = weights.address[i];
    if (!is_one_allocation(address)) refuse_memory("memory of a pool, or virtual memory");
    const Span span = mapping_of(address);
    if (allocations.count(span.address) > 0) continue;
    try {
      allocations[span.address] = export_gpu_allocation(address, ordinal);
    } catch (const Error& error) {
      refuse_memory(text("memory that CUDA cannot share (", error.what(), ")"));
    }
  }
  std::vector<GpuAllocation> all;
  for (const auto& entry : allocations) all.push_back(entry.second);
  return all;
}

std::shared_ptr<const GpuPeers> map_gpu_peers(const std::vector<RankBlob>& blobs,
                                              const std::vector<WeightsView>& locals, int32_t own) {
  use_device(blobs[own].fixed.ordinal);
  auto peers = std::make_shared<GpuPeers>();
  std::set<std::string> others;
  for (const RankBlob& peer : blobs) {
    PullPeer& reached = peers->ranks.emplace_back();
    if (!are_neighbors(blobs[own], peer)) continue;
    reached = reach(blobs[own], peer, locals[peer.fixed.rank], peers.get());
    if (!reached.same_gpu) others.insert(peer.fixed.gpu);
  }
  peers->other_gpus = others.size();
  return peers;
}

}  // namespace eplb
