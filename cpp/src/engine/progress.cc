// SPDX-License-Identifier: Apache-2.0
// Progress of runs.
#include "engine/progress.h"

#include <algorithm>

#include "base/backoff.h"
#include "base/text.h"

namespace eplb {

using Lock = std::unique_lock<std::mutex>;

RankCounts Progress::Run::least() const {
  RankCounts least = ranks.front();
  for (const RankCounts& rank : ranks) {
    least.agreed = std::min(least.agreed, rank.agreed);
    least.committed = std::min(least.committed, rank.committed);
  }
  return least;
}

Progress::Progress(size_t ranks) : run_(std::make_shared<Run>(ranks)) {}

void Progress::begin(uint32_t batches, bool held) {
  const Lock lock(mutex_);
  run_ = std::make_shared<Run>(run_->ranks.size());
  run_->batches = batches;
  run_->held = held;
  run_->ended = false;
  ++runs_;
}

void Progress::end(const std::optional<Error>& error) {
  const Lock lock(mutex_);
  run_->ended = true;
  if (error) {
    run_->status = error->status;
    run_->rank = error->rank;
    run_->reason = error->what();
  }
  changed_.notify_all();
}

void Progress::report(size_t rank, const RankCounts& counts) {
  const Lock lock(mutex_);
  run_->ranks[rank] = counts;
  changed_.notify_all();
}

bool Progress::permits(uint32_t batch) const {
  const Lock lock(mutex_);
  return batch < run_->permitted;
}

void Progress::rest(std::chrono::steady_clock::time_point until, const Cancellation& cancellation,
                    const uint32_t* batch) {
  Lock lock(mutex_);
  changed_.wait_until(lock, std::min(until, cancellation.deadline()), [&] {
    return (batch != nullptr && *batch < run_->permitted) || cancellation.cancelled();
  });
}

uint32_t Progress::most() const {
  const Lock lock(mutex_);
  uint32_t most = 0;
  for (const RankCounts& rank : run_->ranks) most = std::max(most, rank.committed);
  return most;
}

RunCounts Progress::counts() const {
  const Lock lock(mutex_);
  const RankCounts least = run_->least();
  return {least.agreed, least.committed, runs_};
}

void Progress::wake() {
  const Lock lock(mutex_);  // else it could come between a waiter's look and its sleep
  changed_.notify_all();
}

void Progress::permit(uint32_t batches) {
  const Lock lock(mutex_);
  if (run_->ended || !run_->held || batches > run_->batches) return;  // commit() says so
  run_->permitted = std::max(run_->permitted, batches);
}

void Progress::commit(uint32_t batches, std::chrono::steady_clock::time_point deadline,
                      uint32_t* committed) {
  const auto refuse = [&](int32_t status, const std::string& why) {
    throw Error(status, text("Cannot commit ", batches, " batches: ", why));
  };
  Lock lock(mutex_);
  const std::shared_ptr<Run> run = run_;
  *committed = run->least().committed;
  if (!run->ended && !run->held) {
    refuse(EPLB_INVALID_ARGUMENT, "the run in progress is not held");
  }
  if (!run->ended && batches > run->batches) {
    refuse(EPLB_INVALID_ARGUMENT, text("the run in progress has ", run->batches));
  }
  run->permitted = std::max(run->permitted, batches);
  changed_.notify_all();
  const auto is_over = [&] { return run->ended || run->least().committed >= batches; };
  for (Backoff backoff(kLandEager); !is_over() && backoff.is_eager();) {
    lock.unlock();
    backoff.pause();
    lock.lock();
  }
  changed_.wait_until(lock, deadline, is_over);
  const RankCounts least = run->least();
  *committed = least.committed;
  if (least.committed >= batches) return;
  if (run->status != EPLB_OK) throw Error(run->status, run->reason, run->rank);
  if (run->ended) {
    refuse(EPLB_INVALID_ARGUMENT,
           text("no held run is in progress, and the last run has committed ", least.committed));
  }
  refuse(EPLB_TIMEOUT, text("the time limit has passed; ", least.committed, " are in place, and ",
                            least.agreed, " staged by every rank"));
}

}  // namespace eplb
