// SPDX-License-Identifier: Apache-2.0
// Runs a program on all local ranks: stage, agree, commit, and after a failure what was agreed on.
//
// A held run commits a batch only once the caller has permitted it, as a model may be reading the
// slots. Each rank stages as far ahead as in any run and learns that all others have, so that
// counts of batches go staged >= agreed >= committed. After a failure only fences are decided, so
// that no peer waits, and what was agreed on is left to settle().
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "base/crew.h"
#include "engine/program.h"
#include "engine/progress.h"
#include "transport/mover.h"

namespace eplb {

// How a program is run.
struct RunTerms {
  bool held = false;
  // The most that each rank gathers, see pace.h; 0: no bound.
  uint64_t bytes_per_second = 0;
  uint64_t expert_bytes = 0;
};

struct RunOutcome {
  uint32_t committed = 0;      // batches in place on every local rank
  double seconds = 0;          // first byte to last commit, or to the end that a bound sets
  std::optional<Error> error;  // what went wrong first
};

class Executor {
 public:
  struct Member {
    int32_t rank;
    std::unique_ptr<Mover> mover;
  };
  Executor(std::vector<Member> members, Cancellation& cancellation, Crew& crew, Progress& progress);
  ~Executor();

  RunOutcome run(Program program, const RunTerms& terms);
  // By any thread, during a run or after it: commits what progress permits, for ranks that rest.
  // Waits for them no longer than until the deadline.
  void commit_permitted(std::chrono::steady_clock::time_point deadline);
  // Commits what every rank has staged, up to `batches` in all; returns how many are committed.
  uint32_t settle(uint32_t batches);
  const Mover& mover(size_t member) const;

 private:
  class RankRun;
  std::optional<Error> take_first_error();

  std::vector<std::unique_ptr<RankRun>> ranks_;
  Crew& crew_;
  Progress& progress_;
  Program program_;  // the movers refer to it until the next run
};

}  // namespace eplb
