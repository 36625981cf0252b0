// SPDX-License-Identifier: Apache-2.0
// Copies by a GPU's copy engines.
#include "memory/copy_engine.h"

#include "memory/cuda_check.h"

namespace eplb {
namespace {

constexpr int kFirstBatchVersion = 12080;

#if CUDART_VERSION >= 12080
// Throws what the runtime says; the calls of CUDA 12 and 13 differ.
void copy_batch(std::vector<void*>& targets, std::vector<void*>& sources,
                std::vector<size_t>& bytes, cudaStream_t stream) {
  cudaMemcpyAttributes attributes = {};
  attributes.srcAccessOrder = cudaMemcpySrcAccessOrderStream;
  attributes.flags = cudaMemcpyFlagPreferOverlapWithCompute;
  size_t all = 0;  // the attributes hold from piece 0 on
#if CUDART_VERSION >= 13000
  EPLB_CUDA(cudaMemcpyBatchAsync(targets.data(), sources.data(), bytes.data(), bytes.size(),
                                 &attributes, &all, 1, stream));
#else
  size_t failed = 0;
  EPLB_CUDA(cudaMemcpyBatchAsync(targets.data(), sources.data(), bytes.data(), bytes.size(),
                                 &attributes, &all, 1, &failed, stream));
#endif
}
#endif

}  // namespace

CopyEngine::CopyEngine() {
  int driver = 0;
  EPLB_CUDA(cudaDriverGetVersion(&driver));
  batches_ = CUDART_VERSION >= kFirstBatchVersion && driver >= kFirstBatchVersion;
}

void CopyEngine::submit(const Piece* first, const Piece* last, cudaStream_t stream) {
  if (first == last) return;
#if CUDART_VERSION >= 12080
  if (batches_) {
    targets_.clear();
    sources_.clear();
    bytes_.clear();
    for (const Piece* piece = first; piece != last; ++piece) {
      targets_.push_back(reinterpret_cast<void*>(piece->target));
      sources_.push_back(reinterpret_cast<void*>(piece->source));
      bytes_.push_back(piece->bytes);
    }
    return copy_batch(targets_, sources_, bytes_, stream);
  }
#endif
  for (const Piece* piece = first; piece != last; ++piece) {
    EPLB_CUDA(cudaMemcpyAsync(reinterpret_cast<void*>(piece->target),
                              reinterpret_cast<const void*>(piece->source), piece->bytes,
                              cudaMemcpyDeviceToDevice, stream));
  }
}

}  // namespace eplb
