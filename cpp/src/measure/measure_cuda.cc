// SPDX-License-Identifier: Apache-2.0
// Measures copies between GPUs, with events on the device.
#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "measure/measure.h"
#include "memory/allocation.h"
#include "memory/cuda_check.h"
#include "memory/device.h"
#include "memory/kernels.h"
#include "memory/timed_event.h"

namespace eplb {
namespace {

constexpr uint32_t kMostPieces = 1 << 16;
constexpr uint32_t kMostRepeats = 1 << 16;
// Blocks of a copy kernel between GPUs; more do not make a link faster.
constexpr uint32_t kPullBlocks = 32;

[[noreturn]] void refuse(const std::string& message) {
  throw Error(EPLB_INVALID_ARGUMENT, message);
}

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
      EPLB_CUDA(
          cudaMemcpyAsync(targets_[i], sources_[i], sizes_[i], cudaMemcpyDeviceToDevice, *stream_));
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

}  // namespace eplb
