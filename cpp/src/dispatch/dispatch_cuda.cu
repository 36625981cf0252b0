// SPDX-License-Identifier: Apache-2.0
// Dispatch on a GPU: one kernel per call, and copies ordered on the caller's stream.
#include <algorithm>
#include <vector>

#include "base/backoff.h"
#include "dispatch/dispatch.h"
#include "memory/cuda_check.h"
#include "memory/timed_event.h"

namespace eplb {
namespace {

// Launch geometry. A thread takes one id at a time. Each block counts loads in shared memory and at
// its end adds each count that is not 0 to the global one, so the additions grow with the blocks:
// 4,096 tokens x top 8 of 256 experts are 64 blocks, which see some 220 experts each. That is
// 14,000 additions instead of 32,768 and a third fewer than of 256 threads' blocks, while no thread
// takes a second id. From 2 blocks a multiprocessor on, threads take more ids instead.
constexpr uint32_t kThreads = 512;
constexpr uint32_t kBlocksPerProcessor = 2;
// What a block gets without asking; layers of more experts count in global memory.
constexpr uint32_t kMostBinBytes = 48 * 1024;

constexpr uint32_t kSnapshotThreads = 256, kUploadThreads = 256;
constexpr std::chrono::microseconds kEager{200};
constexpr uint32_t kLaunchesPerRepeat = 20;

using Counter = unsigned long long;  // what atomicAdd() takes
static_assert(sizeof(Counter) == sizeof(uint64_t));

// `logical` and `physical` may be the same. `loads` [experts] is null when nothing is counted.
template <class Id, bool kBins>
__global__ void __launch_bounds__(kThreads)
    route_kernel(RouteTable table, RouteTokens tokens, Counter* loads) {
  extern __shared__ uint32_t bins[];
  const bool use_bins = kBins && loads != nullptr;
  if (use_bins) {
    for (uint32_t i = threadIdx.x; i < table.experts; i += blockDim.x) bins[i] = 0;
    __syncthreads();
  }
  const Id* logical = static_cast<const Id*>(tokens.logical);
  Id* physical = static_cast<Id*>(tokens.physical);
  const uint32_t valid = count_valid(tokens) * tokens.top_k, salt = whole_salt(tokens);
  const uint32_t ids = tokens.tokens * tokens.top_k;
  for (uint32_t i = blockIdx.x * blockDim.x + threadIdx.x; i < ids; i += gridDim.x * blockDim.x) {
    const Id id = logical[i];
    Id chosen = -1;
    if (i < valid && is_expert(id, table.experts)) {
      const uint32_t expert = static_cast<uint32_t>(id);
      chosen = route(table, i / tokens.top_k, expert, salt);
      if (use_bins) {
        atomicAdd(bins + expert, 1u);
      } else if (loads != nullptr) {
        atomicAdd(loads + expert, Counter{1});
      }
    }
    physical[i] = chosen;
  }
  if (!use_bins) return;
  __syncthreads();
  for (uint32_t i = threadIdx.x; i < table.experts; i += blockDim.x) {
    if (bins[i] != 0) atomicAdd(loads + i, Counter{bins[i]});
  }
}

// Exchanged, so that a kernel of another stream that counts at this moment loses nothing.
__global__ void snapshot_kernel(Counter* loads, Counter* taken, uint32_t cells) {
  const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < cells) taken[i] = atomicExch(loads + i, Counter{0});
}

struct Tables {
  int32_t* physical;
  int32_t* count;
  uint32_t* threshold;
};

// From page-locked memory. A copy engine would have it wait behind weights that are on their way.
__global__ void upload_kernel(Tables target, Tables source, uint32_t cells, uint64_t places) {
  const uint64_t first = uint64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  for (uint64_t i = first; i < places; i += uint64_t{gridDim.x} * blockDim.x) {
    target.physical[i] = source.physical[i];
    target.threshold[i] = source.threshold[i];
    if (i < cells) target.count[i] = source.count[i];
  }
}

// Loads the kernels' code onto the current device. Else their first launch would, which may be
// inside a capture.
void load_kernels_of_dispatch() {
  cudaFuncAttributes attributes;
  EPLB_CUDA(cudaFuncGetAttributes(&attributes, route_kernel<int32_t, true>));
  EPLB_CUDA(cudaFuncGetAttributes(&attributes, route_kernel<int32_t, false>));
  EPLB_CUDA(cudaFuncGetAttributes(&attributes, route_kernel<int64_t, true>));
  EPLB_CUDA(cudaFuncGetAttributes(&attributes, route_kernel<int64_t, false>));
  EPLB_CUDA(cudaFuncGetAttributes(&attributes, snapshot_kernel));
  EPLB_CUDA(cudaFuncGetAttributes(&attributes, upload_kernel));
}

cudaStream_t stream_of(uint64_t stream) { return reinterpret_cast<cudaStream_t>(stream); }

// What a graph would do again in each replay, though it is meant to happen once.
void refuse_capture(cudaStream_t stream, const char* what) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  EPLB_CUDA(cudaStreamIsCapturing(stream, &status));
  if (status == cudaStreamCaptureStatusNone) return;
  throw Error(EPLB_INVALID_ARGUMENT,
              text("Cannot ", what, ": the stream is being captured into a graph"));
}

// While it lives, this thread may ask for the state of events without breaking a capture that
// another thread has begun.
class BesideCaptures {
 public:
  BesideCaptures() { EPLB_CUDA(cudaThreadExchangeStreamCaptureMode(&mode_)); }
  BesideCaptures(const BesideCaptures&) = delete;
  BesideCaptures& operator=(const BesideCaptures&) = delete;
  ~BesideCaptures() { (void)cudaThreadExchangeStreamCaptureMode(&mode_); }

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

void wait_for(const Event& event, const Cancellation& patience, const char* what) {
  const BesideCaptures beside;
  for (Backoff backoff(kEager); !event.done(); backoff.pause()) patience.check(what);
}

// A graph of launches, which then follow each other as fast as the GPU takes them.
class Graph {
 public:
  template <class Enqueue>
  Graph(const Stream& stream, Enqueue enqueue) {
    cudaGraph_t graph = nullptr;
    EPLB_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed));
    try {
      enqueue();
    } catch (...) {
      (void)cudaStreamEndCapture(stream, &graph);
      if (graph != nullptr) (void)cudaGraphDestroy(graph);
      throw;
    }
    EPLB_CUDA(cudaStreamEndCapture(stream, &graph));
    const cudaError_t status = cudaGraphInstantiate(&graph_, graph, 0);
    (void)cudaGraphDestroy(graph);
    check_cuda(status, "cudaGraphInstantiate");
  }
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;
  ~Graph() { (void)cudaGraphExecDestroy(graph_); }
  void launch(const Stream& stream) const { EPLB_CUDA(cudaGraphLaunch(graph_, stream)); }

 private:
  cudaGraphExec_t graph_ = nullptr;
};

int32_t select(int32_t ordinal) {
  use_device(ordinal);
  return ordinal;
}

class CudaDispatch : public DispatchDevice {
 public:
  CudaDispatch(int32_t ordinal, const DispatchShape& shape, const DispatchArrays& arrays)
      : ordinal_(select(ordinal)),
        shape_(shape),
        arrays_(arrays),
        physical_(shape.places() * sizeof(int32_t)),
        count_(shape.cells() * sizeof(int32_t)),
        threshold_(shape.places() * sizeof(uint32_t)),
        taken_(shape.cells() * sizeof(uint64_t)),
        uploaded_(shape.layers) {
    int processors = 0;
    EPLB_CUDA(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, ordinal));
    most_blocks_ = static_cast<uint32_t>(processors) * kBlocksPerProcessor;
    load_kernels_of_dispatch();
  }

  ~CudaDispatch() override {
    // Page-locked memory must outlive the copies from and to it.
    if (cudaSetDevice(ordinal_) == cudaSuccess) (void)cudaDeviceSynchronize();
    (void)cudaGetLastError();
  }

  // Each layer has a place of its own in page-locked memory, so that an update waits only where the
  // same layer's last one has not left for the GPU yet.
  void update(const LayerTables& tables, uint64_t stream, const Cancellation& patience) override {
    use_device(ordinal_);
    const uint32_t end = tables.first_layer + tables.layers;
    refuse_capture(stream_of(stream), "update dispatch tables");
    for (uint32_t layer = tables.first_layer; layer < end; ++layer) {
      wait_for(uploaded_[layer], patience, "update dispatch tables");
    }
    const uint32_t cells = tables.layers * shape_.experts;
    const uint64_t cell = uint64_t{tables.first_layer} * shape_.experts;
    const uint64_t most = shape_.max_replicas, place = cell * most;
    const uint64_t places = cells * most;
    std::copy_n(tables.physical, places, physical_.as<int32_t>() + place);
    std::copy_n(tables.count, cells, count_.as<int32_t>() + cell);
    std::copy_n(tables.threshold, places, threshold_.as<uint32_t>() + place);
    const uint32_t blocks = static_cast<uint32_t>(
        std::min<uint64_t>((places + kUploadThreads - 1) / kUploadThreads, most_blocks_));
    upload_kernel<<<blocks, kUploadThreads, 0, stream_of(stream)>>>(
        {arrays_.physical + place, arrays_.count + cell, arrays_.threshold + place},
        {physical_.as<int32_t>() + place, count_.as<int32_t>() + cell,
         threshold_.as<uint32_t>() + place},
        cells, places);
    EPLB_CUDA(cudaGetLastError());
    for (uint32_t layer = tables.first_layer; layer < end; ++layer) {
      uploaded_[layer].record(stream_of(stream));
    }
  }

  void launch(const eplb_dispatch_call& call) override {
    use_device(ordinal_);
    enqueue(call, stream_of(call.stream));
  }

  void snapshot(uint64_t stream) override {
    use_device(ordinal_);
    refuse_capture(stream_of(stream), "take snapshot of dispatch loads");
    const uint32_t cells = static_cast<uint32_t>(shape_.cells());
    const uint32_t blocks = (cells + kSnapshotThreads - 1) / kSnapshotThreads;
    snapshot_kernel<<<blocks, kSnapshotThreads, 0, stream_of(stream)>>>(
        reinterpret_cast<Counter*>(arrays_.loads), taken_.as<Counter>(), cells);
    EPLB_CUDA(cudaGetLastError());
    snapshot_done_.record(stream_of(stream));
  }

  const uint64_t* wait_snapshot(const Cancellation& patience) override {
    use_device(ordinal_);
    wait_for(snapshot_done_, patience, "read dispatch loads");
    return taken_.as<uint64_t>();
  }

  void measure(const eplb_dispatch_call& call, uint32_t repeats, double* seconds) override {
    use_device(ordinal_);
    const Stream stream;
    const Graph graph(stream, [&] {
      for (uint32_t i = 0; i < kLaunchesPerRepeat; ++i) enqueue(call, stream);
    });
    const std::vector<TimedEvent> events(repeats + 1);
    graph.launch(stream);  // the first one finds cold caches
    events[0].record(stream);
    for (uint32_t i = 1; i <= repeats; ++i) {
      graph.launch(stream);
      events[i].record(stream);
    }
    stream.synchronize();
    for (uint32_t i = 0; i < repeats; ++i) {
      seconds[i] = events[i + 1].seconds_since(events[i]) / kLaunchesPerRepeat;
    }
  }

 private:
  void enqueue(const eplb_dispatch_call& call, cudaStream_t stream) {
    if (call.id_bytes == sizeof(int32_t)) {
      enqueue_ids<int32_t>(call, stream);
    } else {
      enqueue_ids<int64_t>(call, stream);
    }
  }

  template <class Id>
  void enqueue_ids(const eplb_dispatch_call& call, cudaStream_t stream) {
    const RouteTable table = layer_table(shape_, arrays_, call.layer);
    const RouteTokens tokens = tokens_of(call);
    Counter* loads = reinterpret_cast<Counter*>(layer_loads(shape_, arrays_, call));
    const uint32_t blocks =
        std::min((call.tokens * call.top_k + kThreads - 1) / kThreads, most_blocks_);
    const uint64_t bin_bytes = uint64_t{shape_.experts} * sizeof(uint32_t);
    if (bin_bytes <= kMostBinBytes) {
      route_kernel<Id, true><<<blocks, kThreads, bin_bytes, stream>>>(table, tokens, loads);
    } else {
      route_kernel<Id, false><<<blocks, kThreads, 0, stream>>>(table, tokens, loads);
    }
    EPLB_CUDA(cudaGetLastError());
  }

  const int32_t ordinal_;
  const DispatchShape shape_;
  const DispatchArrays arrays_;
  PinnedMemory physical_, count_, threshold_;  // where tables are on their way, like the arrays
  PinnedMemory taken_;                         // loads of the last snapshot
  std::vector<Event> uploaded_;                // [layers]: the layer's last tables have left
  Event snapshot_done_;
  uint32_t most_blocks_ = 0;
};

}  // namespace

std::unique_ptr<DispatchDevice> make_cuda_dispatch(int32_t ordinal, const DispatchShape& shape,
                                                   const DispatchArrays& arrays) {
  return std::make_unique<CudaDispatch>(ordinal, shape, arrays);
}

}  // namespace eplb
