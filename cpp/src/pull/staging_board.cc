// SPDX-License-Identifier: Apache-2.0
// The board of ranks that write into each other's staging memory.
#include "pull/staging_board.h"

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "base/round_up.h"
#include "base/text.h"
#include "eplb.h"

namespace eplb {
namespace {

using Word = std::atomic<uint64_t>;
static_assert(Word::is_always_lock_free && sizeof(Word) == sizeof(uint64_t), "shared by processes");

constexpr uint32_t kMagic = 0x4252'4F42;  // "BORB"
constexpr uint64_t kCacheLine = 64;

uint64_t join(uint32_t epoch, uint32_t batches) {
  return static_cast<uint64_t>(epoch) << 32 | batches;
}

uint64_t whole_lines(uint64_t bytes) { return round_up(bytes, kCacheLine); }

}  // namespace

struct StagingBoard::Header {
  uint32_t magic;
  BoardSize size;
};

// Followed by `after` [layers], as a batch has at least one, and `arrivals` [layers * slots].
struct StagingBoard::Part {
  Word landed;  // run, and its batches that are in place
  Word left;    // the latest run that the rank has left
  uint32_t* after() { return reinterpret_cast<uint32_t*>(this + 1); }
  int32_t* arrivals(const BoardSize& size) {
    return reinterpret_cast<int32_t*>(after() + size.layers);
  }
};

uint64_t StagingBoard::part_bytes(const BoardSize& size) {
  const uint64_t cells = uint64_t{1} * size.layers * size.slots;
  return whole_lines(sizeof(Part) + sizeof(int32_t) * (size.layers + cells));
}

uint64_t StagingBoard::bytes(const BoardSize& size) {
  return whole_lines(sizeof(Header)) + size.world * part_bytes(size);
}

StagingBoard::StagingBoard(SharedMemory segment, std::unique_ptr<uint64_t[]> heap)
    : segment_(std::move(segment)),
      heap_(std::move(heap)),
      header_(heap_ ? reinterpret_cast<Header*>(heap_.get())
                    : static_cast<Header*>(segment_.data())) {}

void StagingBoard::format(const BoardSize& size) {  // zeroes are valid words already
  header_->size = size;
  header_->magic = kMagic;
}

std::shared_ptr<StagingBoard> StagingBoard::create_local(const BoardSize& size) {
  const uint64_t words = bytes(size) / sizeof(uint64_t);
  std::shared_ptr<StagingBoard> board(new StagingBoard({}, std::make_unique<uint64_t[]>(words)));
  board->format(size);
  return board;
}

std::shared_ptr<StagingBoard> StagingBoard::create_shared(const BoardSize& size) {
  std::shared_ptr<StagingBoard> board(new StagingBoard(SharedMemory::create(bytes(size)), nullptr));
  board->format(size);
  return board;
}

std::shared_ptr<StagingBoard> StagingBoard::open_shared(const SegmentReference& reference,
                                                        const BoardSize& size) {
  SharedMemory segment = SharedMemory::open(reference);
  const Header* header = static_cast<const Header*>(segment.data());
  if (segment.bytes() != bytes(size) || header->magic != kMagic || !(header->size == size)) {
    throw Error(EPLB_PEER_MISMATCH,
                text("Cannot open staging board: it is not one of ", size.world, " ranks, ",
                     size.layers, " layers and ", size.slots, " slots"));
  }
  return std::shared_ptr<StagingBoard>(new StagingBoard(std::move(segment), nullptr));
}

StagingBoard::Part& StagingBoard::part(int32_t rank) const {
  char* first = reinterpret_cast<char*>(header_) + whole_lines(sizeof(Header));
  return *reinterpret_cast<Part*>(first + part_bytes(header_->size) * rank);
}

void StagingBoard::enter(int32_t rank, uint32_t epoch, const StagingRing& ring) {
  Part& own = part(rank);
  std::copy(ring.after.begin(), ring.after.end(), own.after());
  std::copy(ring.arrivals.begin(), ring.arrivals.end(), own.arrivals(header_->size));
  own.landed.store(join(epoch, 0), std::memory_order_release);
}

bool StagingBoard::has_entered(int32_t rank, uint32_t epoch) const {
  return has_landed(rank, epoch, 0);
}

const int32_t* StagingBoard::arrivals(int32_t rank) const {
  return part(rank).arrivals(header_->size);
}

uint32_t StagingBoard::after(int32_t rank, size_t batch) const { return part(rank).after()[batch]; }

void StagingBoard::land(int32_t rank, uint32_t epoch, uint32_t batches) {
  part(rank).landed.store(join(epoch, batches), std::memory_order_release);
}

bool StagingBoard::has_landed(int32_t rank, uint32_t epoch, uint32_t batches) const {
  return part(rank).landed.load(std::memory_order_acquire) >= join(epoch, batches);
}

void StagingBoard::leave(int32_t rank, uint32_t epoch) {
  part(rank).left.store(epoch, std::memory_order_release);
}

bool StagingBoard::has_left(int32_t rank, uint32_t epoch) const {
  return part(rank).left.load(std::memory_order_acquire) >= epoch;
}

}  // namespace eplb
