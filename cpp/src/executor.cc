// SPDX-License-Identifier: Apache-2.0
// The executor.
#include "executor.h"

#include <algorithm>
#include <utility>

#include "eplb.h"
#include "text.h"

namespace eplb {
namespace {

using Clock = std::chrono::steady_clock;

// Whether the rank that meets the error is the one to blame for it.
bool is_own_fault(const Error& error) {
  const bool of_machine = error.status <= EPLB_OUT_OF_MEMORY && error.status > EPLB_NCCL_ERROR;
  return error.rank < 0 && (of_machine || error.status == EPLB_INTERNAL_ERROR);
}

}  // namespace

uint32_t Progress::least() const {
  uint32_t least = UINT32_MAX;
  for (const auto& committed : committed_) least = std::min(least, committed.load());
  return least;
}

uint32_t Progress::most() const {
  uint32_t most = 0;
  for (const auto& committed : committed_) most = std::max(most, committed.load());
  return most;
}

// One rank's way through a run.
class Executor::RankRun {
 public:
  RankRun(Member member, uint32_t sets, Cancellation& cancellation,
          std::atomic<uint32_t>& committed)
      : rank_(member.rank),
        mover_(std::move(member.mover)),
        sets_(sets),
        cancellation_(cancellation),
        committed_(committed) {}

  // Before the ranks' threads start, so that nobody sees an earlier run's count.
  void reset(const std::vector<RankBatch>& batches) {
    batches_ = &batches;
    staged_ = 0;
    committed_ = 0;
    started = ended = Clock::now();
    error.reset();
    gave_up_first = false;
  }

  // On the rank's own thread.
  void execute() {
    try {
      move();
    } catch (...) {
      give_up(current_error());
      unwind();
    }
  }

  // Commits staged batches, up to `batches` in all.
  void catch_up(uint32_t batches) {
    if (batches <= committed()) return;
    while (committed() < batches) commit_next();
    mover_->flush();
  }

  uint32_t committed() const { return committed_.load(std::memory_order_relaxed); }
  uint32_t staged() const { return staged_; }
  int32_t rank() const { return rank_; }
  const Mover& mover() const { return *mover_; }

  std::optional<Error> error;
  bool gave_up_first = false;  // before any other rank of the engine, and before eplb_engine_abort
  Clock::time_point started = {}, ended = {};

 private:
  void move() {
    mover_->begin(*batches_);
    started = ended = Clock::now();
    for (size_t batch = 0; batch < batches_->size(); ++batch) {
      if (staged_ - committed() == sets_) agree_and_commit();
      mover_->stage(batch);
      ++staged_;
      mover_->arrive(batch);
    }
    while (committed() < staged_) agree_and_commit();
    mover_->flush();
    ended = Clock::now();
    mover_->finish();
  }

  void agree_and_commit() {
    mover_->wait(committed());
    commit_next();
  }

  void commit_next() {
    mover_->commit(committed());
    committed_.store(committed() + 1, std::memory_order_relaxed);
  }

  // Stops the engine's other ranks, too.
  void give_up(Error cause) {
    if (is_own_fault(cause)) cause.rank = rank_;
    gave_up_first = cancellation_.cancel(cause.status, cause.rank, cause.what());
    error = cause;
  }

  // Batches that every rank has staged are committed everywhere, hence here; the first that is not
  // decided is decided against, so that no peer waits for this rank.
  void unwind() {
    try {
      while (mover_->resolve(committed()) && committed() < staged_) commit_next();
      mover_->flush();
    } catch (...) {
      // The first error is the one to report; what is committed is in progress.
    }
    ended = Clock::now();
  }

  const int32_t rank_;
  const std::unique_ptr<Mover> mover_;
  const uint32_t sets_;
  Cancellation& cancellation_;
  const std::vector<RankBatch>* batches_ = nullptr;
  uint32_t staged_ = 0;
  std::atomic<uint32_t>& committed_;  // only this rank writes it
};

Executor::Executor(std::vector<Member> members, uint32_t sets, Cancellation& cancellation,
                   Crew& crew, Progress& progress)
    : crew_(crew), progress_(progress) {
  for (Member& member : members) {
    ranks_.push_back(std::make_unique<RankRun>(std::move(member), sets, cancellation,
                                               progress.of(ranks_.size())));
  }
}

Executor::~Executor() {
  // Together, as ranks may have to leave a transport together.
  crew_.run([this](size_t i) { ranks_[i].reset(); });
}

RunOutcome Executor::run(Program program) {
  program_ = std::move(program);
  for (size_t i = 0; i < ranks_.size(); ++i) ranks_[i]->reset(program_[i]);
  crew_.run([this](size_t i) { ranks_[i]->execute(); });

  RunOutcome outcome;
  outcome.error = take_first_error();
  if (outcome.error) {
    // A rank that has committed a batch proves that all had staged it.
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
  return outcome;
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
