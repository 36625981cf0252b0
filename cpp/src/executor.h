// SPDX-License-Identifier: Apache-2.0
// Runs a program on all local ranks: stage, agree, commit, and after a failure what was agreed on.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "crew.h"
#include "mover.h"
#include "program.h"

namespace eplb {

struct RunOutcome {
  uint32_t committed = 0;      // batches in place on every local rank
  double seconds = 0;          // first byte to last commit
  std::optional<Error> error;  // what went wrong first
};

// Batches that each local rank has committed. Any thread may look.
class Progress {
 public:
  explicit Progress(size_t ranks) : committed_(ranks) {}
  std::atomic<uint32_t>& of(size_t rank) { return committed_[rank]; }
  uint32_t least() const;
  uint32_t most() const;

 private:
  std::vector<std::atomic<uint32_t>> committed_;
};

class Executor {
 public:
  struct Member {
    int32_t rank;
    std::unique_ptr<Mover> mover;
  };
  Executor(std::vector<Member> members, uint32_t sets, Cancellation& cancellation, Crew& crew,
           Progress& progress);
  ~Executor();

  RunOutcome run(Program program);
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
