// SPDX-License-Identifier: Apache-2.0
// Matrix products by cuBLAS, timed with events on the device.
#include <dlfcn.h>

#include <memory>
#include <vector>

#include "base/error.h"
#include "base/text.h"
#include "measure/products.h"
#include "memory/allocation.h"
#include "memory/cuda_check.h"
#include "memory/device.h"
#include "memory/digest.h"
#include "memory/timed_event.h"

namespace eplb {
namespace {

constexpr uint32_t kMostProducts = 1 << 16;

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

  // c[m, n] = a[m, k] b[k, n], bf16 with float32 sums; row major, so that cuBLAS sees c^T = b^T
  // a^T.
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

class CudaProducts : public Products {
 public:
  explicit CudaProducts(const eplb_product_measure& what)
      : what_(what),
        device_(open_cuda_device(what.ordinal)),
        a_(matrix(what.m, what.k)),
        b_(matrix(what.k, what.n)),
        c_(matrix(what.m, what.n)) {
    // Bits of all kinds: products of zeros take less power, and so run faster than a model's.
    device_->fill({{a_.address(), uint64_t{what.m} * what.k * 2, mix(1)},
                   {b_.address(), uint64_t{what.k} * what.n * 2, mix(2)}});
    use_device(what.ordinal);
    stream_ = std::make_unique<Stream>();
    cublas_ = std::make_unique<Cublas>();
    cublas_->use(*stream_);
    events_ = std::vector<TimedEvent>(what.count + 1);
    for (int warm_up = 0; warm_up < 3; ++warm_up) multiply();
    stream_->synchronize();
  }
  ~CudaProducts() override { (void)cudaSetDevice(what_.ordinal); }

  void run(double* seconds) override {
    use_device(what_.ordinal);
    events_[0].record(*stream_);
    for (uint32_t i = 1; i <= what_.count; ++i) {
      multiply();
      events_[i].record(*stream_);
    }
    stream_->synchronize();
    for (uint32_t i = 0; i < what_.count; ++i) {
      seconds[i] = events_[i + 1].seconds_since(events_[i]);
    }
  }

 private:
  Allocation matrix(uint64_t rows, uint64_t columns) const {
    return Allocation(device_, rows * columns * 2);
  }
  void multiply() {
    cublas_->multiply(reinterpret_cast<const void*>(a_.address()),
                      reinterpret_cast<const void*>(b_.address()),
                      reinterpret_cast<void*>(c_.address()), what_);
  }

  const eplb_product_measure what_;
  const std::shared_ptr<Device> device_;
  const Allocation a_, b_, c_;
  std::unique_ptr<Stream> stream_;
  std::unique_ptr<Cublas> cublas_;
  std::vector<TimedEvent> events_;
};

}  // namespace

std::shared_ptr<Products> make_products(const eplb_product_measure& what) {
  if (what.m < 1 || what.n < 1 || what.k < 1 || what.count < 1 || what.count > kMostProducts) {
    throw Error(EPLB_INVALID_ARGUMENT,
                text("Cannot measure products: ", what.count, " of [", what.m, ", ", what.k,
                     "] x [", what.k, ", ", what.n, "]"));
  }
  return std::make_shared<CudaProducts>(what);
}

}  // namespace eplb
