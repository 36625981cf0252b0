// SPDX-License-Identifier: Apache-2.0
// The fences of a pull engine: how ranks agree on which batches are committed.
//
// A fence is one 64-bit word in memory that all ranks see: the run it belongs to, how many ranks
// have arrived, and a decision. It changes by compare-and-swap alone, and a decision is final:
//
//   - the arrival of the last rank *is* the decision to commit, in the same step;
//   - a rank that gives up decides to abort, unless the fence is decided already.
//
// So there is exactly one decision per fence, every rank reads the same one, and a process that is
// killed, at whatever instant, has either arrived or not: nobody can be left to differ. A rank that
// finds "commit" may overwrite its slots, since all ranks have gathered what they need from them;
// a rank that finds "abort" never will. As ranks pass fences in order, what is committed is the
// same run of leading batches on every surviving rank.
//
// Fence b is passed by batch b, and the one after the last batch by the end of the run.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/cancellation.h"
#include "memory/shared_memory.h"

namespace eplb {

class Control {
 public:
  // On the heap, for ranks that are all in this process.
  static std::shared_ptr<Control> create_local(uint32_t world, uint32_t fences);
  // In shared memory: made by one process, opened by the others.
  static std::shared_ptr<Control> create_shared(uint32_t world, uint32_t fences);
  static std::shared_ptr<Control> open_shared(const SegmentReference& reference, uint32_t world,
                                              uint32_t fences);
  SegmentReference reference() const { return segment_.reference(); }

  // A rank enters run `epoch` (1, 2, …) with a program of this many batches. Throws
  // EPLB_PEER_MISMATCH when another rank entered it with another number.
  void enter(uint32_t epoch, uint32_t batches);
  // `rank` has staged batch `fence` of the run. Throws when a peer gave up.
  void arrive(uint32_t epoch, uint32_t fence, int32_t rank);
  // Returns once the fence is committed. Throws, and then it is aborted, when a peer gave up, the
  // deadline passes or `cancellation` is cancelled. Calls `meanwhile` from time to time: at once
  // again, if it says so.
  void wait(uint32_t epoch, uint32_t fence, int32_t rank, const Cancellation& cancellation,
            const std::function<bool()>& meanwhile = {});
  // wait() without waiting: whether the fence is committed. Throws when a peer gave up.
  bool passed(uint32_t epoch, uint32_t fence) const;
  // Decides now: true when committed. Else `cause` is what peers are told, if they were not yet.
  bool resolve(uint32_t epoch, uint32_t fence, int32_t rank, const Error& cause);

 private:
  struct Header;
  Control(SharedMemory segment, std::unique_ptr<uint64_t[]> heap);
  static uint64_t bytes(uint32_t world, uint32_t fences);
  void format(uint32_t world, uint32_t fences);
  std::atomic<uint64_t>& arrived(uint32_t rank) const;  // by rank: run, and fences reached in it
  std::atomic<uint64_t>& fence_word(uint32_t fence) const;
  void leave_note(uint32_t epoch, int32_t rank, const Error& cause);
  std::string describe(uint32_t fence) const;
  Error peer_failure(uint32_t epoch, uint32_t fence) const;
  Error timeout(uint32_t epoch, uint32_t fence) const;

  SharedMemory segment_;
  std::unique_ptr<uint64_t[]> heap_;
  Header* header_;
};

}  // namespace eplb
