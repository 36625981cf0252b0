// SPDX-License-Identifier: Apache-2.0
// The executor's order of calls, and what it does after failures, with movers that only take notes.
// Unlike fences in shared memory, these can leave ranks with different knowledge, as NCCL does.
#include <atomic>
#include <functional>
#include <thread>

#include "check.h"
#include "engine/executor.h"

using eplb::Cancellation;
using eplb::Crew;
using eplb::Error;
using eplb::Executor;
using eplb::Mover;
using eplb::Progress;
using eplb::RankBatch;
using eplb::RunCounts;
using eplb::RunOutcome;
using eplb::RunTerms;

namespace {

using Clock = std::chrono::steady_clock;

// Writes down its calls as "s0 a0 w0 c0 f e"; `fault` may throw at any of them. Of agreed() only
// the answers "yes" are written down, as "g0".
class NotingMover : public Mover {
 public:
  struct Notes {
    std::string calls;
    std::function<void(const std::string&)> fault = [](const std::string&) {};
    std::function<bool(size_t)> known = [](size_t) { return false; };  // resolve()'s answers
    std::function<bool(size_t)> seen = [](size_t) { return true; };    // agreed()'s, once staged
    std::function<bool(size_t)> lands = [](size_t) { return true; };   // landed()'s
    std::atomic<size_t> staged{0};
  };
  NotingMover(Notes& notes, uint32_t sets) : notes_(notes), sets_(sets) {}

  void begin(const std::vector<RankBatch>&, bool) override { note("b"); }
  size_t commits_before(size_t batch) const override {
    return eplb::StagingPlan{1, sets_}.commits_before(batch);
  }
  void stage(size_t batch) override {
    note("s", batch);
    notes_.staged = batch + 1;
  }
  void arrive(size_t batch) override { note("a", batch); }
  void wait(size_t batch) override { note("w", batch); }
  bool agreed(size_t batch) override {
    if (batch >= notes_.staged || !notes_.seen(batch)) return false;
    note("g", batch);
    return true;
  }
  bool resolve(size_t batch) override {
    note("r", batch);
    return notes_.known(batch);
  }
  void commit(size_t batch) override { note("c", batch); }
  bool landed(size_t batch) override {
    if (!notes_.lands(batch)) return false;
    note("l", batch);
    return true;
  }
  void flush() override { note("f"); }
  void finish() override { note("e"); }

 private:
  void note(const std::string& call) {
    notes_.calls += (notes_.calls.empty() ? "" : " ") + call;
    notes_.fault(call);
  }
  void note(const char* call, size_t batch) { note(call + std::to_string(batch)); }

  Notes& notes_;
  const uint32_t sets_;
};

struct Team {
  Team(size_t ranks, uint32_t sets) : notes(ranks), progress(ranks), crew(ranks) {
    std::vector<Executor::Member> members;
    for (size_t i = 0; i < ranks; ++i) {
      members.push_back(
          {static_cast<int32_t>(10 + i), std::make_unique<NotingMover>(notes[i], sets)});
    }
    executor = std::make_unique<Executor>(std::move(members), cancellation, crew, progress);
  }

  // Every batch gathers one expert.
  RunOutcome run(size_t batches, const RunTerms& terms = {}) {
    const RankBatch batch = {{{0, EPLB_OP_COPY, 0, 0, 0, 0}}, {}};
    return executor->run(eplb::Program(notes.size(), std::vector<RankBatch>(batches, batch)),
                         terms);
  }

  std::vector<NotingMover::Notes> notes;
  Cancellation cancellation;
  Progress progress;
  Crew crew;
  std::unique_ptr<Executor> executor;
};

TEST("Executor::run() commits each batch before the next with one staging set") {
  Team team(1, 1);
  const RunOutcome outcome = team.run(3);
  CHECK(!outcome.error);
  CHECK_EQ(outcome.committed, 3u);
  CHECK_EQ(team.notes[0].calls, "b s0 a0 w0 c0 s1 a1 w1 c1 s2 a2 w2 c2 f e");
}

TEST("Executor::run() stages one batch ahead with two staging sets") {
  Team team(1, 2);
  CHECK(!team.run(4).error);
  CHECK_EQ(team.notes[0].calls, "b s0 a0 s1 a1 w0 c0 s2 a2 w1 c1 s3 a3 w2 c2 w3 c3 f e");
}

TEST("Executor::run() without batches only meets the others") {
  Team team(1, 2);
  const RunOutcome outcome = team.run(0);
  CHECK(!outcome.error);
  CHECK_EQ(team.notes[0].calls, "b f e");
}

TEST("Executor::run() commits after a failure what is known to be staged everywhere, in order") {
  Team team(1, 2);
  team.notes[0].fault = [](const std::string& call) {
    if (call == "s2") throw Error(EPLB_CUDA_ERROR, "test");
  };
  team.notes[0].known = [](size_t batch) { return batch == 1; };
  const RunOutcome outcome = team.run(4);
  CHECK_EQ(team.notes[0].calls, "b s0 a0 s1 a1 w0 c0 s2 r1 c1 r2 f");
  CHECK_EQ(outcome.committed, 2u);
  CHECK_EQ(outcome.error->status, EPLB_CUDA_ERROR);
  CHECK_EQ(outcome.error->rank, 10);  // its own fault
}

TEST("Executor::run() never commits what is not staged here, whatever resolve() says") {
  Team team(1, 1);
  team.notes[0].fault = [](const std::string& call) {
    if (call == "s1") throw Error(EPLB_ABORTED, "test", 3);
  };
  team.notes[0].known = [](size_t) { return true; };
  const RunOutcome outcome = team.run(3);
  CHECK_EQ(team.notes[0].calls, "b s0 a0 w0 c0 s1 r1 f");
  CHECK_EQ(outcome.committed, 1u);
  CHECK_EQ(outcome.error->rank, 3);
}

TEST("Executor::run() stops at a batch that is decided against, though a later one is staged") {
  Team team(1, 2);
  team.notes[0].fault = [](const std::string& call) {
    if (call == "w0") throw Error(EPLB_TIMEOUT, "test", 7);
  };
  team.notes[0].known = [](size_t batch) { return batch == 1; };
  const RunOutcome outcome = team.run(3);
  CHECK_EQ(team.notes[0].calls, "b s0 a0 s1 a1 w0 r0 f");
  CHECK_EQ(outcome.committed, 0u);
  CHECK_EQ(outcome.error->rank, 7);
}

TEST("Executor::run() brings local ranks to the batch that the farthest of them has committed") {
  Team team(3, 2);
  std::atomic<bool> far{false};
  team.notes[0].fault = [&](const std::string& call) {  // learns that batch 0 and 1 are staged
    if (call == "c1") far = true;
    if (call == "s3") throw Error(EPLB_NCCL_ERROR, "test");
  };
  for (const size_t behind : {1, 2}) {
    team.notes[behind].fault = [&, behind](const std::string& call) {  // never learns of batch 1
      if (call != "w" + std::to_string(behind - 1)) return;
      while (!far) std::this_thread::yield();
      throw Error(EPLB_NCCL_ERROR, "test");
    };
  }
  const RunOutcome outcome = team.run(4);
  CHECK_EQ(outcome.committed, 2u);
  CHECK_EQ(team.notes[0].calls, "b s0 a0 s1 a1 w0 c0 s2 a2 w1 c1 s3 r2 f");
  CHECK_EQ(team.notes[1].calls, "b s0 a0 s1 a1 w0 r0 f c0 c1 f");
  CHECK_EQ(team.notes[2].calls, "b s0 a0 s1 a1 w0 c0 s2 a2 w1 r1 f c1 f");

  // What another process reports as committed is staged here too; what is not staged is refused.
  CHECK_EQ(team.executor->settle(1), 2u);
  try {
    team.executor->settle(3);
    check::fail(__FILE__, __LINE__, "it returned");
  } catch (const Error& error) {
    CHECK_EQ(error.status, EPLB_INVALID_ARGUMENT);
    CHECK_EQ(std::string(error.what()), "Cannot settle 3 batches: rank 11 has staged 2");
  }
  CHECK_EQ(team.progress.most(), 2u);
}

TEST("Executor::settle() commits what is staged, up to what the caller says") {
  Team team(2, 2);
  for (NotingMover::Notes& notes : team.notes) {
    notes.fault = [](const std::string& call) {
      if (call == "w0") throw Error(EPLB_PEER_FAILED, "test", 99);
    };
  }
  const RunOutcome outcome = team.run(4);
  CHECK_EQ(outcome.committed, 0u);
  CHECK_EQ(outcome.error->rank, 99);
  CHECK_EQ(team.executor->settle(1), 1u);
  CHECK_EQ(team.executor->settle(2), 2u);
  CHECK_EQ(team.notes[1].calls, "b s0 a0 s1 a1 w0 r0 f c0 f c1 f");
}

TEST("Executor::run() reports the root cause, not its echo in another rank") {
  for (int i = 0; i < 200; ++i) {
    Team team(4, 1);
    std::atomic<bool> failed{false};
    team.notes[2].fault = [&](const std::string& call) {
      if (call != "s1") return;
      failed = true;
      throw Error(EPLB_CUDA_ERROR, "the cause");
    };
    for (const size_t other : {0, 1, 3}) {
      team.notes[other].fault = [&, other](const std::string& call) {
        if (call != "w1") return;
        while (!failed) std::this_thread::yield();
        if (other == 3) throw Error(EPLB_PEER_FAILED, "an echo", 12);
        while (!team.cancellation.cancelled()) std::this_thread::yield();
        team.cancellation.check("wait");
      };
    }
    const RunOutcome outcome = team.run(3);
    CHECK_EQ(std::string(outcome.error->what()), "the cause");
    CHECK_EQ(outcome.error->status, EPLB_CUDA_ERROR);
    CHECK_EQ(outcome.error->rank, 12);
    CHECK_EQ(outcome.committed, 1u);
  }
}

// A run on a thread of its own, held unless told otherwise. Its failures are the test's to cause.
struct Held {
  Held(Team& team, size_t batches, const RunTerms& terms = {true}) : team(team) {
    thread = std::thread([=] { outcome = this->team.run(batches, terms); });
    await([](const RunCounts& counts) { return counts.runs == 1; });
  }
  ~Held() {
    team.cancellation.cancel(EPLB_ABORTED, -1, "the test has ended");
    team.progress.wake();
    if (thread.joinable()) thread.join();
  }

  template <class Condition>
  void await(Condition condition) const {
    while (!condition(team.progress.counts())) std::this_thread::yield();
  }
  void await_agreed(uint32_t agreed) const {
    await([agreed](const RunCounts& counts) { return counts.agreed == agreed; });
  }
  uint32_t commit(uint32_t batches) const {
    uint32_t committed = 0;
    team.progress.commit(batches, Clock::now() + std::chrono::seconds(20), &committed);
    return committed;
  }
  void abort() {
    team.cancellation.cancel(EPLB_ABORTED, -1, "test");
    team.progress.wake();
  }
  const RunOutcome& end() {
    thread.join();
    return outcome;
  }

  Team& team;
  RunOutcome outcome;
  std::thread thread;
};

TEST("Executor::run() of a held run stages and agrees ahead, and commits when permitted") {
  Team team(1, 2);
  Held held(team, 4);
  held.await_agreed(2);
  CHECK_EQ(held.commit(1), 1u);
  held.await_agreed(3);
  CHECK_EQ(held.commit(3), 3u);
  held.await_agreed(4);
  CHECK_EQ(held.commit(4), 4u);
  CHECK(!held.end().error);
  CHECK_EQ(held.outcome.committed, 4u);
  CHECK_EQ(team.notes[0].calls,
           "b s0 a0 g0 s1 a1 g1 c0 l0 s2 a2 g2 c1 l1 c2 l2 s3 a3 g3 c3 l3 f e");
}

TEST("Executor::run() of a held run waits for a fence where there is nothing to permit") {
  Team team(1, 2);
  team.notes[0].seen = [](size_t) { return false; };
  Held held(team, 2);
  held.await_agreed(1);
  CHECK_EQ(held.commit(2), 2u);
  CHECK(!held.end().error);
  CHECK_EQ(team.notes[0].calls, "b s0 a0 s1 a1 w0 c0 l0 w1 c1 l1 f e");
}

TEST("Executor::run() of a held run without batches asks for no permission") {
  Team team(2, 1);
  Held held(team, 0);
  CHECK(!held.end().error);
  CHECK_EQ(team.notes[1].calls, "b f e");
}

TEST("Executor::run() of a held run that fails decides the next fence, and commits nothing") {
  Team team(1, 3);
  // It has learned of batch 0; batch 1 turns out to be agreed on, too, and batch 2 not.
  team.notes[0].seen = [](size_t batch) { return batch == 0; };
  team.notes[0].known = [](size_t batch) { return batch == 1; };
  Held held(team, 5);
  held.await_agreed(1);
  held.abort();
  CHECK_EQ(held.end().error->status, EPLB_ABORTED);
  CHECK_EQ(held.outcome.committed, 0u);
  CHECK_EQ(team.progress.counts().agreed, 2u);
  const std::string calls = "b s0 a0 g0 s1 a1 s2 a2 r1 r2 f";
  CHECK_EQ(team.notes[0].calls, calls);
  // What another process has committed follows.
  CHECK_EQ(team.executor->settle(2), 2u);
  CHECK_EQ(team.notes[0].calls, calls + " c0 l0 c1 l1 f");
}

TEST("Executor::run() of a held run resolves no batch that is not staged here") {
  Team team(1, 2);
  team.notes[0].known = [](size_t) { return true; };
  Held held(team, 5);
  held.await_agreed(2);
  held.abort();
  CHECK(held.end().error.has_value());
  CHECK_EQ(team.notes[0].calls, "b s0 a0 g0 s1 a1 g1 r2 f");
}

TEST("Executor::run() of a held run brings local ranks to what the farthest was permitted") {
  Team team(2, 2);
  std::atomic<bool> far{false};
  team.notes[0].fault = [&](const std::string& call) {
    if (call == "l0") far = true;
  };
  team.notes[1].seen = [](size_t) { return false; };
  team.notes[1].fault = [&](const std::string& call) {  // never learns of batch 0
    if (call != "w0") return;
    while (!far) std::this_thread::yield();
    throw Error(EPLB_NCCL_ERROR, "test");
  };
  Held held(team, 4);
  CHECK_EQ(held.commit(1), 1u);  // with the help of settling
  CHECK_EQ(held.end().error->status, EPLB_NCCL_ERROR);
  CHECK_EQ(held.outcome.committed, 1u);
  CHECK_EQ(team.notes[1].calls, "b s0 a0 s1 a1 w0 r0 f c0 l0 f");
}

TEST("Executor::run() of a held run starts no commit twice") {
  Team team(1, 2);
  int flushes = 0;
  team.notes[0].fault = [&](const std::string& call) {  // nobody knows whether it is in place
    if (call == "l0" || (call == "f" && ++flushes == 1)) throw Error(EPLB_CUDA_ERROR, "test");
  };
  Held held(team, 3);
  held.await_agreed(2);
  try {
    held.commit(1);
    check::fail(__FILE__, __LINE__, "it returned");
  } catch (const Error& error) {
    CHECK_EQ(error.status, EPLB_CUDA_ERROR);
    CHECK_EQ(error.rank, 10);
  }
  CHECK_EQ(held.end().committed, 0u);
  CHECK_EQ(team.executor->settle(2), 2u);
  CHECK_EQ(team.notes[0].calls, "b s0 a0 g0 s1 a1 g1 c0 l0 r2 f c1 l1 f");
}

// The second batch is due in an hour.
constexpr RunTerms kPaced = {false, 1, 3600}, kPacedAndHeld = {true, 1, 3600};

// Whoever permits a commit need not wake a thread for it.
TEST("Executor::commit_permitted() commits for ranks that rest, on the thread that calls it") {
  Team team(2, 2);
  const std::thread::id here = std::this_thread::get_id();
  std::atomic<uint32_t> by_caller{0};
  for (auto& notes : team.notes) {
    notes.fault = [&](const std::string& call) {
      if (call[0] == 'c' && std::this_thread::get_id() == here) ++by_caller;
    };
  }
  constexpr uint32_t kBatches = 20;
  Held held(team, kBatches);
  for (uint32_t batch = 0; batch < kBatches; ++batch) {
    held.await([&](const RunCounts& counts) { return counts.agreed > batch; });
    std::this_thread::sleep_for(std::chrono::milliseconds(3));  // by now they rest, nearly always
    team.progress.permit(batch + 1);
    team.executor->commit_permitted(Clock::now() + std::chrono::seconds(20));
    CHECK_EQ(held.commit(batch + 1), batch + 1);
  }
  CHECK(!held.end().error);
  CHECK_EQ(held.outcome.committed, kBatches);
  CHECK(by_caller.load() > kBatches);  // of 2 x 20
  team.executor->commit_permitted(Clock::now() +
                                  std::chrono::seconds(20));  // after the run it does nothing
}

TEST("Executor::commit_permitted() waits no longer than it may, and the rank's thread goes on") {
  Team team(1, 2);
  std::atomic<bool> lands{false};
  team.notes[0].lands = [&](size_t) { return lands.load(); };
  Held held(team, 3);
  held.await([](const RunCounts& counts) { return counts.agreed >= 2; });
  std::this_thread::sleep_for(std::chrono::milliseconds(3));
  team.progress.permit(2);
  const auto start = Clock::now();
  team.executor->commit_permitted(start + std::chrono::milliseconds(20));
  CHECK(Clock::now() - start < std::chrono::seconds(5));
  CHECK_EQ(team.progress.counts().committed, 0u);
  lands = true;
  CHECK_EQ(held.commit(3), 3u);
  CHECK(!held.end().error);
  CHECK_EQ(held.outcome.committed, 3u);
  const std::string& calls = team.notes[0].calls;
  for (const char* once : {"c0", "l0", "c1", "l1", "c2", "l2"}) {
    CHECK(calls.find(once) != std::string::npos && calls.find(once) == calls.rfind(once));
  }
}

TEST("Executor::commit_permitted() that fails ends the run with its error") {
  Team team(1, 2);
  team.notes[0].fault = [](const std::string& call) {
    if (call == "c1") throw Error(EPLB_CUDA_ERROR, "no such slot");
  };
  Held held(team, 4);
  held.await([](const RunCounts& counts) { return counts.agreed >= 2; });
  std::this_thread::sleep_for(std::chrono::milliseconds(3));
  team.progress.permit(2);
  team.executor->commit_permitted(Clock::now() + std::chrono::seconds(20));
  held.end();
  CHECK(held.outcome.error);
  CHECK_EQ(held.outcome.error->status, EPLB_CUDA_ERROR);
  CHECK_EQ(held.outcome.committed, 1u);
}

TEST("Executor::run() commits what all have staged while the next batch is not due") {
  Team team(2, 2);
  std::atomic<bool> there{false};
  for (NotingMover::Notes& notes : team.notes) notes.seen = [&](size_t) { return there.load(); };
  Held run(team, 4, kPaced);
  there = true;
  run.await([](const RunCounts& counts) { return counts.committed == 1; });
  run.abort();
  CHECK_EQ(run.end().error->status, EPLB_ABORTED);
  CHECK_EQ(run.outcome.committed, 1u);
  for (const size_t rank : {0, 1}) CHECK_EQ(team.notes[rank].calls, "b s0 a0 g0 c0 r1 f");
}

TEST("Executor::run() waits for a fence where the next batch has no staging set, due or not") {
  Team team(1, 1);
  team.notes[0].seen = [](size_t) { return false; };
  Held run(team, 2, kPaced);
  run.await([](const RunCounts& counts) { return counts.committed == 1; });
  run.abort();
  CHECK(run.end().error.has_value());
  CHECK_EQ(team.notes[0].calls, "b s0 a0 w0 c0 r1 f");
}

TEST("Executor::run() of a held run commits what is permitted while the next batch is not due") {
  Team team(1, 2);
  Held run(team, 4, kPacedAndHeld);
  CHECK_EQ(run.commit(1), 1u);
  run.abort();
  CHECK_EQ(run.end().error->status, EPLB_ABORTED);
  CHECK_EQ(team.notes[0].calls, "b s0 a0 g0 c0 l0 r1 f");
}

TEST("Executor::run() learns from the next fence that a peer gave up while it is not due") {
  for (const RunTerms& terms : {kPaced, kPacedAndHeld}) {
    Team team(1, 2);
    std::atomic<bool> gone{false};
    team.notes[0].seen = [&](size_t) -> bool {
      if (gone) throw Error(EPLB_PEER_FAILED, "test", 99);
      return false;
    };
    Held run(team, 2, terms);
    while (team.notes[0].staged == 0) std::this_thread::yield();
    gone = true;
    CHECK_EQ(run.end().error->rank, 99);
    CHECK_EQ(team.notes[0].calls, "b s0 a0 r0 f");
  }
}

}  // namespace
