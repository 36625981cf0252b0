// SPDX-License-Identifier: Apache-2.0
// Copies of a run.
#include "memory/piece_lists.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace eplb {
namespace {

constexpr uint64_t kUploadBytes = uint64_t{1} << 20;  // all but the largest programs in one go

}  // namespace

PieceLists::PieceLists(std::shared_ptr<Device> device, uint64_t expected)
    : pinned_(kUploadBytes), memory_(std::move(device)) {
  memory_.reserve(expected * (sizeof(Piece) + sizeof(uint64_t)));
}

void PieceLists::assign(std::vector<Piece> kernel, std::vector<Piece> engine) {
  engine_pieces_ = std::move(engine);
  first_chunk_ = count_chunks(kernel);
  const uint64_t piece_bytes = kernel.size() * sizeof(Piece);
  const uint64_t chunk_bytes = first_chunk_.size() * sizeof(uint64_t);
  memory_.reserve(piece_bytes + chunk_bytes);
  chunks_ = memory_.address() + piece_bytes;
  write(memory_.address(), kernel.data(), piece_bytes);
  write(chunks_, first_chunk_.data(), chunk_bytes);
}

void PieceLists::copy(const Copies& copies, const Stream& stream, uint32_t blocks) {
  copy_by_kernel(copies.kernel, stream, blocks);
  copy_by_engine(copies.engine, stream);
}

void PieceLists::copy_by_kernel(const IndexRange& pieces, const Stream& stream, uint32_t blocks) {
  launch_copy({reinterpret_cast<const Piece*>(memory_.address()) + pieces.first,
               reinterpret_cast<const uint64_t*>(chunks_) + pieces.first,
               pieces.last - pieces.first, first_chunk_[pieces.first], first_chunk_[pieces.last]},
              stream, blocks);
}

void PieceLists::copy_by_engine(const IndexRange& pieces, const Stream& stream) {
  const Piece* all = engine_pieces_.data();
  engine_.submit(all + pieces.first, all + pieces.last, stream);
}

// Through page-locked memory.
void PieceLists::write(uint64_t target, const void* source, uint64_t bytes) {
  char* pinned = pinned_.as<char>();
  for (uint64_t done = 0; done < bytes;) {
    const uint64_t part = std::min(bytes - done, pinned_.bytes());
    std::memcpy(pinned, static_cast<const char*>(source) + done, part);
    EPLB_CUDA(cudaMemcpyAsync(reinterpret_cast<void*>(target + done), pinned, part,
                              cudaMemcpyHostToDevice, upload_));
    upload_.synchronize();
    done += part;
  }
}

}  // namespace eplb
