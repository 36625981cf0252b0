// SPDX-License-Identifier: Apache-2.0
// Measures copies between GPUs, and matrix products, with events on the device.
#include <dlfcn.h>

#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "allocation.h"
#include "cuda_check.h"
#include "device.h"
#include "digest.h"
#include "kernels.h"
#include "measure.h"
#include "timed_event.h"

namespace eplb {
namespace {

constexpr uint32_t kMostPieces = 1 << 16;
constexpr uint32_t kMostRepeats = 1 << 16;
// Blocks of a copy kernel between GPUs; more do not make a link faster.
constexpr uint32_t kPullBlocks = 32;

[[noreturn]] void refuse(const std::string& message) { throw Error(EPLB_INVALID_ARGUMENT, message); }

void enable_peer(int32_t ordinal, int32_t peer) {
  use_device(ordinal);
  const cudaError_t status = cudaDeviceEnablePeerAccess(peer, 0);
  if (status == cudaErrorPeerAccessAlreadyEnabled) {
    (void)cudaGetLastError();
    return;
  }
  check_cuda(status, "cudaDeviceEnablePeerAccess");
}

// One direction: pieces from `source` memory into `ordinal`, over and over.
class Direction {
 public:
  Direction(const eplb_copy_measure& what, int32_t ordinal, uint64_t source)
      : what_(what), ordinal_(ordinal) {
    use_device(ordinal);
    stream_ = std::make_unique<Stream>();
    target_ = Allocation(open_cuda_device(ordinal), what.piece_bytes * what.pieces);
    std::vector<Piece> pieces;
    for (uint32_t i = 0; i < what.pieces; ++i) {
      const uint64_t offset = what.piece_bytes * i;
      pieces.push_back({target_.address() + offset, source + offset, what.piece_bytes});
      targets_.push_back(reinterpret_cast<void*>(pieces.back().target));
      sources_.push_back(reinterpret_cast<const void*>(pieces.back().source));
      sizes_.push_back(what.piece_bytes);
    }
    upload(pieces);
    for (uint32_t i = 0; i <= what.repeats; ++i) events_.emplace_back();
  }

  void enqueue_all() {
    use_device(ordinal_);
    enqueue();  // the first one finds cold links and tables
    events_[0].record(*stream_);
    for (uint32_t i = 1; i <= what_.repeats; ++i) {
      enqueue();
      events_[i].record(*stream_);
    }
  }

  void collect(double* seconds) {
    use_device(ordinal_);
    stream_->synchronize();
    for (uint32_t i = 0; i < what_.repeats; ++i) {
      seconds[i] = std::max(seconds[i], events_[i + 1].seconds_since(events_[i]));
    }
  }

 private:
  void upload(const std::vector<Piece>& pieces) {
    const std::vector<uint64_t> chunks = count_chunks(pieces);
    const uint64_t piece_bytes = pieces.size() * sizeof(Piece);
    const auto device = open_cuda_device(ordinal_);
    list_ = Allocation(device, piece_bytes + chunks.size() * sizeof(uint64_t));
    device->write(list_.address(), pieces.data(), piece_bytes);
    device->write(list_.address() + piece_bytes, chunks.data(), chunks.size() * sizeof(uint64_t));
    work_ = {reinterpret_cast<const Piece*>(list_.address()),
             reinterpret_cast<const uint64_t*>(list_.address() + piece_bytes),
             static_cast<uint32_t>(pieces.size()), chunks.front(), chunks.back()};
  }

  void enqueue() {
    if (what_.engine == EPLB_ENGINE_KERNEL) return launch_copy(work_, *stream_, kPullBlocks);
#if CUDART_VERSION >= 13000
    cudaMemcpyAttributes attributes = {};
    attributes.srcAccessOrder = cudaMemcpySrcAccessOrderStream;
    attributes.flags = cudaMemcpyFlagPreferOverlapWithCompute;
    size_t first = 0;
    EPLB_CUDA(cudaMemcpyBatchAsync(targets_.data(), sources_.data(), sizes_.data(), sizes_.size(),
                                   &attributes, &first, 1, *stream_));
#else
    for (size_t i = 0; i < sizes_.size(); ++i) {
      EPLB_CUDA(cudaMemcpyAsync(targets_[i], sources_[i], sizes_[i], cudaMemcpyDeviceToDevice,
                                *stream_));
    }
#endif
  }

  const eplb_copy_measure what_;
  const int32_t ordinal_;
  std::unique_ptr<Stream> stream_;
  Allocation target_, list_;
  std::vector<void*> targets_;
  std::vector<const void*> sources_;
  std::vector<size_t> sizes_;
  WorkList<Piece> work_;
  std::vector<TimedEvent> events_;
};

// The few functions of cuBLAS that a product takes; opened at run time, as it is needed here only.
class Cublas {
 public:
  Cublas() {
    for (const char* name : {"libcublas.so.13", "libcublas.so.12", "libcublas.so"}) {
      library_ = dlopen(name, RTLD_NOW | RTLD_LOCAL);
      if (library_ != nullptr) break;
    }
    if (library_ == nullptr) {
      throw Error(EPLB_UNSUPPORTED, text("Cannot measure matrix products: ", dlerror()));
    }
    find("cublasCreate_v2", &create_);
    find("cublasDestroy_v2", &destroy_);
    find("cublasSetStream_v2", &set_stream_);
    find("cublasGemmEx", &gemm_);
    check(create_(&handle_), "cublasCreate");
  }
  Cublas(const Cublas&) = delete;
  Cublas& operator=(const Cublas&) = delete;
  ~Cublas() { (void)destroy_(handle_); }

  void use(cudaStream_t stream) { check(set_stream_(handle_, stream), "cublasSetStream"); }

  // c[m, n] = a[m, k] b[k, n], bf16 with float32 sums; row major, so that cuBLAS sees c^T = b^T a^T.
  void multiply(const void* a, const void* b, void* c, const eplb_product_measure& size) {
    const float one = 1, zero = 0;
    check(gemm_(handle_, kNoTranspose, kNoTranspose, static_cast<int>(size.n),
                static_cast<int>(size.m), static_cast<int>(size.k), &one, b, kBf16,
                static_cast<int>(size.n), a, kBf16, static_cast<int>(size.k), &zero, c, kBf16,
                static_cast<int>(size.n), kFloatSums, kAnyAlgorithm),
          "cublasGemmEx");
  }

 private:
  // Values of cuBLAS's enumerations, which never change.
  static constexpr int kNoTranspose = 0, kBf16 = 14, kFloatSums = 68, kAnyAlgorithm = -1;

  template <class Function>
  void find(const char* name, Function* function) {
    *function = reinterpret_cast<Function>(dlsym(library_, name));
    if (*function == nullptr) {
      throw Error(EPLB_UNSUPPORTED, text("Cannot measure matrix products: ", dlerror()));
    }
  }
  static void check(int status, const char* function) {
    if (status != 0) throw Error(EPLB_CUDA_ERROR, text(function, " failed with status ", status));
  }

  void* library_ = nullptr;
  void* handle_ = nullptr;
  int (*create_)(void**) = nullptr;
  int (*destroy_)(void*) = nullptr;
  int (*set_stream_)(void*, cudaStream_t) = nullptr;
  int (*gemm_)(void*, int, int, int, int, int, const void*, const void*, int, int, const void*, int,
               int, const void*, void*, int, int, int, int) = nullptr;
};

}  // namespace

void measure_copies(const eplb_copy_measure& what, double* seconds) {
  if (what.pieces < 1 || what.pieces > kMostPieces || what.repeats < 1 ||
      what.repeats > kMostRepeats || what.piece_bytes < 1) {
    refuse(text("Cannot measure copies: ", what.repeats, " repeats of ", what.pieces, " pieces of ",
                what.piece_bytes, " bytes"));
  }
  if (what.engine != EPLB_ENGINE_COPY && what.engine != EPLB_ENGINE_KERNEL) {
    refuse(text("Cannot measure copies: engine ", what.engine, " is unknown"));
  }
  if (what.ordinal != what.peer) {
    enable_peer(what.ordinal, what.peer);
    if (what.both_ways) enable_peer(what.peer, what.ordinal);
  }
  const uint64_t bytes = what.piece_bytes * what.pieces;
  const Allocation theirs(open_cuda_device(what.peer), bytes);
  const Allocation ours(open_cuda_device(what.ordinal), what.both_ways ? bytes : 1);
  std::vector<Direction> directions;
  directions.reserve(2);
  directions.emplace_back(what, what.ordinal, theirs.address());
  if (what.both_ways) directions.emplace_back(what, what.peer, ours.address());
  std::fill_n(seconds, what.repeats, 0.0);
  for (Direction& direction : directions) direction.enqueue_all();
  for (Direction& direction : directions) direction.collect(seconds);
}

void measure_products(const eplb_product_measure& what, double* seconds) {
  if (what.m < 1 || what.n < 1 || what.k < 1 || what.count < 1 || what.count > kMostRepeats) {
    refuse(text("Cannot measure products: ", what.count, " of [", what.m, ", ", what.k, "] x [",
                what.k, ", ", what.n, "]"));
  }
  const auto device = open_cuda_device(what.ordinal);
  const auto matrix = [&](uint64_t rows, uint64_t columns) {
    return Allocation(device, rows * columns * 2);
  };
  const Allocation a = matrix(what.m, what.k), b = matrix(what.k, what.n), c = matrix(what.m, what.n);
  // Bits of all kinds: products of zeros take less power, and so run faster than a model's.
  device->fill({{a.address(), uint64_t{what.m} * what.k * 2, mix(1)},
                {b.address(), uint64_t{what.k} * what.n * 2, mix(2)}});
  use_device(what.ordinal);
  const Stream stream;
  Cublas cublas;
  cublas.use(stream);
  const auto multiply = [&] {
    cublas.multiply(reinterpret_cast<const void*>(a.address()),
                    reinterpret_cast<const void*>(b.address()),
                    reinterpret_cast<void*>(c.address()), what);
  };
  std::vector<TimedEvent> events(what.count + 1);
  for (int warm_up = 0; warm_up < 3; ++warm_up) multiply();
  events[0].record(stream);
  for (uint32_t i = 1; i <= what.count; ++i) {
    multiply();
    events[i].record(stream);
  }
  stream.synchronize();
  for (uint32_t i = 0; i < what.count; ++i) seconds[i] = events[i + 1].seconds_since(events[i]);
}

}  // namespace eplb
