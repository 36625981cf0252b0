// SPDX-License-Identifier: Apache-2.0
// The executor.
#include "engine/executor.h"

#include <algorithm>
#include <mutex>
#include <utility>

#include "base/backoff.h"
#include "base/text.h"
#include "engine/pace.h"
#include "eplb.h"

namespace eplb {
namespace {

using Clock = std::chrono::steady_clock;

// Whether the rank that meets the error is the one to blame for it.
bool is_own_fault(const Error& error) {
  const bool of_machine = error.status <= EPLB_OUT_OF_MEMORY && error.status > EPLB_NCCL_ERROR;
  return error.rank < 0 && (of_machine || error.status == EPLB_INTERNAL_ERROR);
}

// How often a rank that waits for permission, or for its pace, looks at the next fence: soon if
// other ranks may have come to it, else only for a peer that has given up.
constexpr std::chrono::milliseconds kLookSoon{1}, kLookLate{10};

// Copies within a device: what takes longer is stuck.
constexpr std::chrono::seconds kLandLimit{60};

// How long a rank that has nothing to do in a run looks for something without a sleep.
constexpr std::chrono::microseconds kEager{200};

}  // namespace

// One rank's way through a run.
class Executor::RankRun {
 public:
  RankRun(Member member, Cancellation& cancellation, Progress& progress, size_t index)
      : rank_(member.rank),
        mover_(std::move(member.mover)),
        cancellation_(cancellation),
        progress_(progress),
        index_(index) {}

  // Before the ranks' threads start.
  void reset(const std::vector<RankBatch>& batches, const RunTerms& terms) {
    const std::lock_guard<std::mutex> turn(turn_);
    batches_ = &batches;
    terms_ = terms;
    staged_ = begun_ = 0;
    counts_ = {};
    started = ended = Clock::now();
    error.reset();
    gave_up_first = false;
  }

  // On the rank's own thread.
  void execute() {
    const std::lock_guard<std::mutex> turn(turn_);
    try {
      move();
    } catch (...) {
      moving_ = false;
      give_up(current_error());
      unwind();
    }
  }

  // By another thread: the turn to act for the rank's own, if that rests in a held run. To wake it
  // would take as long as a commit does.
  std::unique_lock<std::mutex> take_turn() {
    std::unique_lock<std::mutex> turn(turn_, std::try_to_lock);
    if (turn && !moving_) turn.unlock();
    return turn;
  }

  // For who has the turn: starts the commit of the next batch, if it is permitted.
  bool begin_permitted() {
    if (begun_ >= counts_.agreed || !progress_.permits(begun_)) return false;
    if (cancellation_.cancelled()) return false;
    mover_->commit(begun_);
    ++begun_;
    return true;
  }

  // And waits until it is in place; false if it is not by then.
  bool land_begun(Clock::time_point until) {
    for (Backoff backoff(kLandEager); !mover_->landed(begun_ - 1); backoff.pause()) {
      if (Clock::now() >= until) return false;
    }
    count_committed();
    return true;
  }

  // An error of what was done for the rank's own thread, which learns of it when it gets its turn.
  void fail(const Error& cause) {
    cancellation_.cancel(cause.status, is_own_fault(cause) ? rank_ : cause.rank, cause.what());
    progress_.wake();
  }

  // Commits staged batches, up to `batches` in all.
  void catch_up(uint32_t batches) {
    if (batches <= counts_.committed) return;
    while (begun_ < batches) commit_next();
    flush();
  }

  uint32_t staged() const { return staged_; }
  int32_t rank() const { return rank_; }
  const Mover& mover() const { return *mover_; }

  std::optional<Error> error;
  bool gave_up_first = false;  // before any other rank of the engine, and before eplb_engine_abort
  Clock::time_point started = {}, ended = {};

 private:
  void move() {
    mover_->begin(*batches_, terms_.held);
    started = ended = Clock::now();
    pace_.begin(started, terms_.expert_bytes, terms_.bytes_per_second);
    terms_.held ? move_as_permitted() : move_at_once();
    flush();
    keep_pace();
    ended = Clock::now();
    mover_->finish();
  }

  // After the last batch, as another run may follow. All is in place: time that the run does not
  // have is no reason for it to fail.
  void keep_pace() {
    if (pace_.is_due() || pace_.due() > cancellation_.deadline()) return;
    progress_.rest(pace_.due(), cancellation_, nullptr);
    cancellation_.check_cancelled("end the run");
  }

  // Batches are committed as all ranks have staged them, also while the next one is not due, or
  // other ranks have no room for it yet: they may be waiting for this one.
  void move_at_once() {
    Backoff backoff(kEager);
    while (counts_.committed < batches_->size()) {
      if (may_stage()) {
        stage_next();
      } else if (!can_stage()) {
        agree_next();
        commit_next();
      } else if (mover_->agreed(counts_.agreed)) {
        count_agreed();
        commit_next();
      } else if (!pace_.is_due()) {
        rest();
      } else if (Clock::now() < cancellation_.deadline()) {
        backoff.pause();
        continue;
      } else {
        agree_next();  // says which rank is late
      }
      backoff = Backoff(kEager);
    }
  }

  // Whatever can be done is done, the permitted commit before the next stage; a look at the next
  // fence, which takes no time, comes first and ends the run when a peer has given up.
  void move_as_permitted() {
    moving_ = true;
    while (counts_.committed < batches_->size()) {
      if (counts_.committed < begun_) {
        land();  // what another thread has begun, and no time was left to wait for
      } else if (mover_->agreed(counts_.agreed)) {
        count_agreed();
      } else if (counts_.committed < counts_.agreed && progress_.permits(counts_.committed)) {
        commit_next();
      } else if (may_stage()) {
        stage_next();
      } else if (counts_.committed == counts_.agreed && !can_stage()) {
        agree_next();  // there is nothing that a permission could be for
      } else {
        rest();
      }
    }
    moving_ = false;
  }

  // Other ranks may need staging memory that this one has done with: a reason to wait, unless there
  // is nothing else to do.
  bool may_stage() {
    if (!can_stage() || !pace_.is_due()) return false;
    return counts_.committed == staged_ || mover_->has_room(staged_);
  }

  // Until the next batch is due, or a commit permitted, or it is time to look at the next fence.
  void rest() {
    const bool soon = counts_.agreed < staged_ || (can_stage() && pace_.is_due());
    auto until = Clock::now() + (soon ? kLookSoon : kLookLate);
    if (can_stage() && !pace_.is_due()) until = std::min(until, pace_.due());
    const bool needs_permission = counts_.committed < counts_.agreed;
    const uint32_t next = counts_.committed;
    turn_.unlock();
    progress_.rest(until, cancellation_, needs_permission ? &next : nullptr);
    turn_.lock();
    cancellation_.check(
        needs_permission ? text("commit batch ", counts_.committed, " without permission").c_str()
                         : text("stage batch ", staged_, " within ", pace_.bytes_per_second(),
                                " bytes per second")
                               .c_str());
  }

  bool can_stage() const {
    return staged_ < batches_->size() && begun_ >= mover_->commits_before(staged_);
  }

  void stage_next() {
    pace_.count((*batches_)[staged_]);
    mover_->stage(staged_);
    ++staged_;
    mover_->arrive(staged_ - 1);
  }

  void agree_next() {
    mover_->wait(counts_.agreed);
    count_agreed();
  }

  void count_agreed() {
    ++counts_.agreed;
    progress_.report(index_, counts_);
  }

  // What a held run counts as committed is in place, for those who wait for it.
  void commit_next() {
    mover_->commit(begun_);
    ++begun_;
    if (terms_.held) return land();
    count_committed();
  }

  void land() {
    if (land_begun(Clock::now() + kLandLimit)) return;
    throw Error(EPLB_CUDA_ERROR,
                text("Cannot commit batch ", begun_ - 1, ": it is not in place after ",
                     kLandLimit.count(), " seconds"));
  }

  void flush() {
    mover_->flush();
    count_committed();
  }

  void count_committed() {
    counts_.committed = begun_;
    counts_.agreed = std::max(counts_.agreed, begun_);
    progress_.report(index_, counts_);
  }

  // Stops the engine's other ranks, too.
  void give_up(Error cause) {
    if (is_own_fault(cause)) cause.rank = rank_;
    gave_up_first = cancellation_.cancel(cause.status, cause.rank, cause.what());
    progress_.wake();
    error = cause;
  }

  // Batches that every rank has staged are committed everywhere, hence here; the first that is not
  // decided is decided against, so that no peer waits for this rank. In a held run they are only
  // counted: whoever reads the slots does not expect a commit any more, so that it is for
  // settle() to decide.
  void unwind() {
    try {
      if (terms_.held) {
        while (mover_->resolve(counts_.agreed) && counts_.agreed < staged_) count_agreed();
      } else {
        while (mover_->resolve(counts_.committed) && counts_.committed < staged_) commit_next();
      }
      flush();
    } catch (...) {
      // The first error is the one to report; what is committed is in progress.
    }
    ended = Clock::now();
  }

  const int32_t rank_;
  const std::unique_ptr<Mover> mover_;
  std::mutex turn_;      // to act for the rank; its own thread has it during a run, but for rests
  bool moving_ = false;  // in a held run, between its beginning and its end

  Cancellation& cancellation_;
  Progress& progress_;
  const size_t index_;
  const std::vector<RankBatch>* batches_ = nullptr;
  RunTerms terms_;
  Pace pace_;
  uint32_t staged_ = 0;
  uint32_t begun_ = 0;  // batches whose commit was started
  RankCounts counts_;   // as reported last
};

Executor::Executor(std::vector<Member> members, Cancellation& cancellation, Crew& crew,
                   Progress& progress)
    : crew_(crew), progress_(progress) {
  for (Member& member : members) {
    ranks_.push_back(
        std::make_unique<RankRun>(std::move(member), cancellation, progress, ranks_.size()));
  }
}

Executor::~Executor() {
  // Together, as ranks may have to leave a transport together.
  crew_.run([this](size_t i) { ranks_[i].reset(); });
}

RunOutcome Executor::run(Program program, const RunTerms& terms) {
  program_ = std::move(program);
  for (size_t i = 0; i < ranks_.size(); ++i) ranks_[i]->reset(program_[i], terms);
  progress_.begin(static_cast<uint32_t>(program_[0].size()), terms.held);
  crew_.run([this](size_t i) { ranks_[i]->execute(); });

  RunOutcome outcome;
  outcome.error = take_first_error();
  if (outcome.error) {
    // A rank that has committed a batch proves that all had staged it; and, in a held run, that it
    // was permitted, which is said to all ranks of an engine at once.
    try {
      settle(progress_.most());
    } catch (...) {
      // Reported is the first error, and what is in place on every rank.
    }
  }
  outcome.committed = progress_.least();
  Clock::time_point started = Clock::time_point::max(), ended = Clock::time_point::min();
  for (const auto& rank : ranks_) {
    started = std::min(started, rank->started);
    ended = std::max(ended, rank->ended);
  }
  outcome.seconds = std::chrono::duration<double>(ended - started).count();
  progress_.end(outcome.error);
  return outcome;
}

// All ranks begin before the first one is waited for.
void Executor::commit_permitted(std::chrono::steady_clock::time_point deadline) {
  std::vector<std::pair<RankRun*, std::unique_lock<std::mutex>>> resting;
  for (const auto& rank : ranks_) {
    if (auto turn = rank->take_turn()) resting.emplace_back(rank.get(), std::move(turn));
  }
  RankRun* current = nullptr;
  try {
    for (std::vector<RankRun*> begun(1); !begun.empty();) {
      begun.clear();
      for (const auto& [rank, turn] : resting) {
        current = rank;
        if (rank->begin_permitted()) begun.push_back(rank);
      }
      for (RankRun* rank : begun) {
        if (!(current = rank)->land_begun(deadline)) return;  // its own thread goes on
      }
    }
  } catch (...) {
    current->fail(current_error());
  }
}

uint32_t Executor::settle(uint32_t batches) {
  for (const auto& rank : ranks_) {
    if (batches > rank->staged()) {
      throw Error(EPLB_INVALID_ARGUMENT, text("Cannot settle ", batches, " batches: rank ",
                                              rank->rank(), " has staged ", rank->staged()));
    }
  }
  for (const auto& rank : ranks_) rank->catch_up(batches);
  return progress_.least();
}

const Mover& Executor::mover(size_t member) const { return ranks_[member]->mover(); }

// The root cause: the error of the rank that gave up first. Only "a peer gave up" can come first
// and yet be the echo of another local rank's error, which that rank has still to report.
std::optional<Error> Executor::take_first_error() {
  std::optional<Error> first, root;
  for (const auto& rank : ranks_) {
    if (!rank->error) continue;
    if (!first || rank->gave_up_first) first = rank->error;
    if (!root && rank->error->status != EPLB_PEER_FAILED) root = rank->error;
    rank->error.reset();
  }
  return first && first->status == EPLB_PEER_FAILED && root ? root : first;
}

}  // namespace eplb
