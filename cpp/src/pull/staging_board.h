// SPDX-License-Identifier: Apache-2.0
// What ranks that write into each other's staging memory tell each other: where in it their experts
// are to arrive, and what of it is free again.
//
// A rank's part is written by that rank alone. Its word says in which run it is, and how many
// batches of it are in place: from then on their cells may be written again. The tables are
// complete before the word says that the rank is in a run.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

#include "memory/shared_memory.h"
#include "pull/staging_ring.h"

namespace eplb {

struct BoardSize {
  uint32_t world, layers, slots;
  bool operator==(const BoardSize& other) const {
    return world == other.world && layers == other.layers && slots == other.slots;
  }
};

class StagingBoard {
 public:
  // On the heap, for ranks that are all in this process.
  static std::shared_ptr<StagingBoard> create_local(const BoardSize& size);
  // In shared memory: made by one process, opened by the others.
  static std::shared_ptr<StagingBoard> create_shared(const BoardSize& size);
  static std::shared_ptr<StagingBoard> open_shared(const SegmentReference& reference,
                                                   const BoardSize& size);
  SegmentReference reference() const { return segment_.reference(); }

  // `rank` enters run `epoch` (1, 2, …), with the ring's `arrivals` and `after`. No rank reads
  // those of an earlier run any more.
  void enter(int32_t rank, uint32_t epoch, const StagingRing& ring);
  bool has_entered(int32_t rank, uint32_t epoch) const;
  // Of the run that the rank is in.
  const int32_t* arrivals(int32_t rank) const;
  uint32_t after(int32_t rank, size_t batch) const;

  // The rank's first `batches` are in place.
  void land(int32_t rank, uint32_t epoch, uint32_t batches);
  bool has_landed(int32_t rank, uint32_t epoch, uint32_t batches) const;

  // The rank writes nothing more into others' memory in this run.
  void leave(int32_t rank, uint32_t epoch);
  bool has_left(int32_t rank, uint32_t epoch) const;

 private:
  struct Header;
  struct Part;
  StagingBoard(SharedMemory segment, std::unique_ptr<uint64_t[]> heap);
  static uint64_t part_bytes(const BoardSize& size);
  static uint64_t bytes(const BoardSize& size);
  void format(const BoardSize& size);
  Part& part(int32_t rank) const;

  SharedMemory segment_;
  std::unique_ptr<uint64_t[]> heap_;
  Header* header_;
};

}  // namespace eplb
