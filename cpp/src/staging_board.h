// SPDX-License-Identifier: Apache-2.0
// What ranks that write into each other's staging memory tell each other: where in it their experts
// are to arrive, and which staging sets are free again.
//
// A rank's part is written by that rank alone. Its word says in which run it is, and how many
// batches of it are in place: from then on their staging sets may be written again. The table of
// cells is complete before the word says that the rank is in a run.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "shared_memory.h"

namespace eplb {

class StagingBoard {
 public:
  // On the heap, for ranks that are all in this process. `experts`: layers x slots of a rank.
  static std::shared_ptr<StagingBoard> create_local(uint32_t world, uint64_t experts);
  // In shared memory: made by one process, opened by the others.
  static std::shared_ptr<StagingBoard> create_shared(uint32_t world, uint64_t experts);
  static std::shared_ptr<StagingBoard> open_shared(const SegmentReference& reference,
                                                   uint32_t world, uint64_t experts);
  SegmentReference reference() const { return segment_.reference(); }

  // `rank` enters run `epoch` (1, 2, …). `cells` [layers * slots]: the staging cell in which the
  // expert of a slot is to arrive, -1 where none is. No rank reads those of an earlier run any
  // more.
  void enter(int32_t rank, uint32_t epoch, const std::vector<int32_t>& cells);
  bool has_entered(int32_t rank, uint32_t epoch) const;
  // Those of the run that the rank is in.
  const int32_t* cells(int32_t rank) const;

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
  static uint64_t part_bytes(uint64_t experts);
  static uint64_t bytes(uint32_t world, uint64_t experts);
  void format(uint32_t world, uint64_t experts);
  Part& part(int32_t rank) const;

  SharedMemory segment_;
  std::unique_ptr<uint64_t[]> heap_;
  Header* header_;
};

}  // namespace eplb
