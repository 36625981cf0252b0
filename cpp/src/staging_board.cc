// SPDX-License-Identifier: Apache-2.0
// The board of ranks that write into each other's staging memory.
#include "staging_board.h"

#include <algorithm>
#include <utility>

#include "eplb.h"
#include "error.h"
#include "text.h"

namespace eplb {
namespace {

using Word = std::atomic<uint64_t>;
static_assert(Word::is_always_lock_free && sizeof(Word) == sizeof(uint64_t), "shared by processes");

constexpr uint32_t kMagic = 0x4252'4F42;  // "BORB"
constexpr uint64_t kCacheLine = 64;

uint64_t join(uint32_t epoch, uint32_t batches) {
  return static_cast<uint64_t>(epoch) << 32 | batches;
}

uint64_t whole_lines(uint64_t bytes) { return (bytes + kCacheLine - 1) / kCacheLine * kCacheLine; }

}  // namespace

struct StagingBoard::Header {
  uint32_t magic, world;
  uint64_t experts;
};

// Followed by the cells.
struct StagingBoard::Part {
  Word landed;  // run, and its batches that are in place
  Word left;    // the latest run that the rank has left
  int32_t* cells() { return reinterpret_cast<int32_t*>(this + 1); }
};

uint64_t StagingBoard::part_bytes(uint64_t experts) {
  return whole_lines(sizeof(Part) + sizeof(int32_t) * experts);
}

uint64_t StagingBoard::bytes(uint32_t world, uint64_t experts) {
  return whole_lines(sizeof(Header)) + world * part_bytes(experts);
}

StagingBoard::StagingBoard(SharedMemory segment, std::unique_ptr<uint64_t[]> heap)
    : segment_(std::move(segment)),
      heap_(std::move(heap)),
      header_(heap_ ? reinterpret_cast<Header*>(heap_.get())
                    : static_cast<Header*>(segment_.data())) {}

void StagingBoard::format(uint32_t world, uint64_t experts) {  // zeroes are valid words already
  header_->world = world;
  header_->experts = experts;
  header_->magic = kMagic;
}

std::shared_ptr<StagingBoard> StagingBoard::create_local(uint32_t world, uint64_t experts) {
  const uint64_t words = bytes(world, experts) / sizeof(uint64_t);
  std::shared_ptr<StagingBoard> board(new StagingBoard({}, std::make_unique<uint64_t[]>(words)));
  board->format(world, experts);
  return board;
}

std::shared_ptr<StagingBoard> StagingBoard::create_shared(uint32_t world, uint64_t experts) {
  std::shared_ptr<StagingBoard> board(
      new StagingBoard(SharedMemory::create(bytes(world, experts)), nullptr));
  board->format(world, experts);
  return board;
}

std::shared_ptr<StagingBoard> StagingBoard::open_shared(const SegmentReference& reference,
                                                        uint32_t world, uint64_t experts) {
  SharedMemory segment = SharedMemory::open(reference);
  const Header* header = static_cast<const Header*>(segment.data());
  if (segment.bytes() != bytes(world, experts) || header->magic != kMagic ||
      header->world != world || header->experts != experts) {
    throw Error(EPLB_PEER_MISMATCH, text("Cannot open staging board: it is not one of ", world,
                                         " ranks with ", experts, " experts each"));
  }
  return std::shared_ptr<StagingBoard>(new StagingBoard(std::move(segment), nullptr));
}

StagingBoard::Part& StagingBoard::part(int32_t rank) const {
  char* first = reinterpret_cast<char*>(header_) + whole_lines(sizeof(Header));
  return *reinterpret_cast<Part*>(first + part_bytes(header_->experts) * rank);
}

void StagingBoard::enter(int32_t rank, uint32_t epoch, const std::vector<int32_t>& cells) {
  Part& own = part(rank);
  std::copy(cells.begin(), cells.end(), own.cells());
  own.landed.store(join(epoch, 0), std::memory_order_release);
}

bool StagingBoard::has_entered(int32_t rank, uint32_t epoch) const {
  return has_landed(rank, epoch, 0);
}

const int32_t* StagingBoard::cells(int32_t rank) const { return part(rank).cells(); }

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
