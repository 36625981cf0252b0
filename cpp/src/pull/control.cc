// SPDX-License-Identifier: Apache-2.0
// The fences of a pull engine.
#include "pull/control.h"

#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <climits>
#include <cstring>
#include <utility>

#include "base/round_up.h"
#include "base/text.h"

namespace eplb {
namespace {

using Word = std::atomic<uint64_t>;
static_assert(Word::is_always_lock_free && sizeof(Word) == sizeof(uint64_t), "shared by processes");
static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "a futex is a fence's first half");

constexpr uint32_t kMagic = 0x4C54'4345;  // "ECTL"
constexpr uint64_t kCacheLine = 64;
constexpr std::chrono::nanoseconds kSlice = std::chrono::milliseconds(10);

// A fence: run in the upper half; decision and arrivals in the lower half, which is the futex.
enum Decision : uint32_t { kUndecided = 0, kCommit = 1, kAbort = 2 };
constexpr uint32_t kDecisionShift = 30;

uint64_t join(uint32_t upper, uint32_t lower) { return static_cast<uint64_t>(upper) << 32 | lower; }
uint32_t upper(uint64_t word) { return static_cast<uint32_t>(word >> 32); }
uint32_t lower(uint64_t word) { return static_cast<uint32_t>(word); }

// What a fence says about run `epoch`. Its word may be left over from an earlier run; or be taken
// by a later one, into which no rank goes before all fences of this one are committed.
Decision decision_in(uint64_t word, uint32_t epoch) {
  if (upper(word) > epoch) return kCommit;
  return upper(word) == epoch ? static_cast<Decision>(lower(word) >> kDecisionShift) : kUndecided;
}

uint32_t arrivals_in(uint64_t word, uint32_t epoch) {
  return upper(word) == epoch ? lower(word) & ((1u << kDecisionShift) - 1) : 0;
}

uint64_t fence_of(uint32_t epoch, Decision decision, uint32_t arrivals) {
  return join(epoch, decision << kDecisionShift | arrivals);
}

// Replaces the word by next(word) and returns what it became.
template <class Next>
uint64_t change(Word& word, Next next) {
  uint64_t seen = word.load(std::memory_order_acquire);
  for (;;) {
    const uint64_t wanted = next(seen);
    if (wanted == seen || word.compare_exchange_weak(seen, wanted, std::memory_order_acq_rel)) {
      return wanted;
    }
  }
}

void futex(Word& word, int operation, uint32_t value, const timespec* timeout) {
  // Failures are wake-ups that find nothing new: callers look again.
  ::syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), operation, value, timeout, nullptr, 0);
}

void wake_all(Word& word) { futex(word, FUTEX_WAKE, INT_MAX, nullptr); }

// Sleeps while the word's lower half is that of `seen`; a slice at most, so that cancellations
// show.
void sleep_on(Word& word, uint64_t seen, std::chrono::steady_clock::time_point deadline) {
  const std::chrono::nanoseconds left = deadline - std::chrono::steady_clock::now();
  const timespec timeout = {0, static_cast<long>(std::clamp(left, left.zero(), kSlice).count())};
  futex(word, FUTEX_WAIT, lower(seen), &timeout);
}

}  // namespace

struct Control::Header {
  uint32_t magic, world, fences, zero;
  Word run;  // the latest run, and its program's batches
  // Why the first rank to give up did so. `note` says whose run it is about, and whether it is
  // complete (kWritten) or being written.
  Word note;
  int32_t failed_rank;  // the rank to blame
  int32_t witness;      // the rank that says so
  char reason[232];
};

namespace {
enum NoteState : uint32_t { kWriting = 1, kWritten = 2 };
}  // namespace

uint64_t Control::bytes(uint32_t world, uint32_t fences) {
  // Fences on cache lines of their own; the arrivals are looked at after failures only.
  const uint64_t head = sizeof(Header) + sizeof(Word) * world;
  return round_up(head, kCacheLine) + kCacheLine * fences;
}

Control::Control(SharedMemory segment, std::unique_ptr<uint64_t[]> heap)
    : segment_(std::move(segment)),
      heap_(std::move(heap)),
      header_(heap_ ? reinterpret_cast<Header*>(heap_.get())
                    : static_cast<Header*>(segment_.data())) {}

void Control::format(uint32_t world, uint32_t fences) {  // zeroes are valid words already
  header_->world = world;
  header_->fences = fences;
  header_->magic = kMagic;
}

std::shared_ptr<Control> Control::create_local(uint32_t world, uint32_t fences) {
  const uint64_t words = bytes(world, fences) / sizeof(uint64_t);
  std::shared_ptr<Control> control(new Control({}, std::make_unique<uint64_t[]>(words)));
  control->format(world, fences);
  return control;
}

std::shared_ptr<Control> Control::create_shared(uint32_t world, uint32_t fences) {
  std::shared_ptr<Control> control(
      new Control(SharedMemory::create(bytes(world, fences)), nullptr));
  control->format(world, fences);
  return control;
}

std::shared_ptr<Control> Control::open_shared(const SegmentReference& reference, uint32_t world,
                                              uint32_t fences) {
  SharedMemory segment = SharedMemory::open(reference);
  const Header* header = static_cast<const Header*>(segment.data());
  if (segment.bytes() != bytes(world, fences) || header->magic != kMagic ||
      header->world != world || header->fences != fences) {
    throw Error(EPLB_PEER_MISMATCH, text("Cannot open control block: it is not one of ", world,
                                         " ranks and ", fences, " fences"));
  }
  return std::shared_ptr<Control>(new Control(std::move(segment), nullptr));
}

Word& Control::arrived(uint32_t rank) const { return reinterpret_cast<Word*>(header_ + 1)[rank]; }

Word& Control::fence_word(uint32_t fence) const {
  char* base = reinterpret_cast<char*>(header_) + bytes(header_->world, 0);
  return *reinterpret_cast<Word*>(base + kCacheLine * fence);
}

void Control::enter(uint32_t epoch, uint32_t batches) {
  const uint64_t run = change(header_->run, [&](uint64_t seen) {
    return upper(seen) < epoch ? join(epoch, batches) : seen;
  });
  if (run == join(epoch, batches)) return;
  throw Error(EPLB_PEER_MISMATCH,
              text("Cannot begin run ", epoch, " of ", batches, " batches: another rank is in run ",
                   upper(run), " of ", lower(run), " batches"));
}

void Control::arrive(uint32_t epoch, uint32_t fence, int32_t rank) {
  Word& word = fence_word(fence);
  const uint64_t now = change(word, [&](uint64_t seen) {
    const uint32_t arrivals = arrivals_in(seen, epoch) + 1;
    Decision decision = decision_in(seen, epoch);
    if (decision == kUndecided && arrivals == header_->world) decision = kCommit;
    return fence_of(epoch, decision, arrivals);
  });
  arrived(static_cast<uint32_t>(rank)).store(join(epoch, fence + 1), std::memory_order_relaxed);
  if (decision_in(now, epoch) == kCommit) wake_all(word);
  if (decision_in(now, epoch) == kAbort) throw peer_failure(epoch, fence);
}

void Control::wait(uint32_t epoch, uint32_t fence, int32_t rank, const Cancellation& cancellation,
                   const std::function<bool()>& meanwhile) {
  Word& word = fence_word(fence);
  for (;;) {
    const uint64_t seen = word.load(std::memory_order_acquire);
    if (decision_in(seen, epoch) == kCommit) return;
    if (decision_in(seen, epoch) == kAbort) throw peer_failure(epoch, fence);
    try {
      cancellation.check("wait for other ranks");
    } catch (const Error& error) {
      const Error cause = error.status == EPLB_TIMEOUT ? timeout(epoch, fence) : error;
      if (resolve(epoch, fence, rank, cause)) return;  // the last rank came first
      throw cause;
    }
    if (meanwhile && meanwhile()) {
      ::sched_yield();
    } else {
      sleep_on(word, seen, cancellation.deadline());
    }
  }
}

bool Control::passed(uint32_t epoch, uint32_t fence) const {
  const uint64_t seen = fence_word(fence).load(std::memory_order_acquire);
  if (decision_in(seen, epoch) == kAbort) throw peer_failure(epoch, fence);
  return decision_in(seen, epoch) == kCommit;
}

bool Control::resolve(uint32_t epoch, uint32_t fence, int32_t rank, const Error& cause) {
  Word& word = fence_word(fence);
  if (decision_in(word.load(std::memory_order_acquire), epoch) == kUndecided) {
    leave_note(epoch, rank, cause);  // before the decision, for those who read it
    change(word, [&](uint64_t seen) {
      if (decision_in(seen, epoch) != kUndecided) return seen;
      return fence_of(epoch, kAbort, arrivals_in(seen, epoch));
    });
    wake_all(word);
  }
  return decision_in(word.load(std::memory_order_acquire), epoch) == kCommit;
}

void Control::leave_note(uint32_t epoch, int32_t rank, const Error& cause) {
  uint64_t seen = header_->note.load(std::memory_order_acquire);
  if (upper(seen) == epoch) return;  // the first one counts
  if (!header_->note.compare_exchange_strong(seen, join(epoch, kWriting))) return;
  header_->failed_rank = cause.rank >= 0 ? cause.rank : rank;
  header_->witness = rank;
  const size_t length = std::min(std::strlen(cause.what()), sizeof(header_->reason) - 1);
  std::memcpy(header_->reason, cause.what(), length);
  header_->reason[length] = '\0';
  header_->note.store(join(epoch, kWritten), std::memory_order_release);
}

std::string Control::describe(uint32_t fence) const {
  const uint32_t batches = lower(header_->run.load(std::memory_order_relaxed));
  return fence < batches ? text("Cannot commit batch ", fence, ": ") : "Cannot finish the run: ";
}

Error Control::peer_failure(uint32_t epoch, uint32_t fence) const {
  // A note that is being written is there soon; one whose writer was killed never is.
  for (int i = 0; i < 1000; ++i) {
    if (header_->note.load(std::memory_order_acquire) == join(epoch, kWritten)) {
      return Error(EPLB_PEER_FAILED,
                   text(describe(fence), "rank ", header_->witness, " gave up: ", header_->reason),
                   header_->failed_rank);
    }
    ::sched_yield();
  }
  return Error(EPLB_PEER_FAILED, describe(fence) + "another rank gave up and left no reason");
}

Error Control::timeout(uint32_t epoch, uint32_t fence) const {
  int32_t first = -1, late = 0;
  for (uint32_t rank = 0; rank < header_->world; ++rank) {
    if (arrived(rank).load(std::memory_order_relaxed) >= join(epoch, fence + 1)) continue;
    if (late++ == 0) first = static_cast<int32_t>(rank);
  }
  const std::string others = late > 1 ? text(" and ", late - 1, " more have") : " has";
  return Error(EPLB_TIMEOUT,
               text(describe(fence), "the time limit has passed, and rank ", first, others,
                    " not come so far"),
               first);
}

}  // namespace eplb
