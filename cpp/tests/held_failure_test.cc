// SPDX-License-Identifier: Apache-2.0
// Held runs that fail: how soon they end, what is in place then, and how ranks settle.
#include <algorithm>
#include <thread>

#include "held.h"

using namespace ranks;

namespace {

TEST("eplb_engine_abort() ends a held run at once, and it commits nothing more") {
  std::mt19937_64 random(7);
  const Shape shape = {12, 3, {64, 9}};
  for (const uint32_t permitted : {0u, 2u}) {
    World all(shape, 3, 3, 2, Memory::kRegistered);
    const Engine& engine = all.engine[0];
    const std::vector<Window> memory = windows(all.weights, shape);
    const std::vector<Bytes> before = all.fill(random);
    const Script script = random_script(shape, 3, 3, random);
    HeldRun run(engine, script);
    uint32_t committed = 0, at_end = 9;
    CHECK_EQ(commit(engine, permitted, &committed).error, "");
    run.await_agreed(permitted + 2);
    const Clock::time_point start = Clock::now();
    MUST(eplb_engine_abort, engine.handle(), 1, "no heartbeat");
    const RunReport& report = run.report();
    CHECK(seconds_since(start) < 1);
    CHECK_EQ(report.outcome.status, EPLB_ABORTED);
    CHECK_CONTAINS(report.outcome.error, "aborted: no heartbeat");
    CHECK_EQ(report.result.failed_rank, 1);
    CHECK_EQ(report.result.committed_batches, permitted);
    CHECK_EQ(progress(engine).agreed, permitted + 2);
    CHECK(read(memory) == script.apply(before, permitted));
    const Outcome after = commit(engine, permitted + 1, &at_end);
    CHECK_EQ(after.status, EPLB_ABORTED);
    CHECK_EQ(after.error, report.outcome.error);
    CHECK_EQ(at_end, permitted);
    CHECK_EQ(commit(engine, permitted, &at_end).error, "");
    // What was agreed on can still be committed: this rank is not alone to know it.
    MUST(eplb_engine_settle, engine.handle(), permitted + 1, &at_end);
    CHECK_EQ(at_end, permitted + 1);
    CHECK(read(memory) == script.apply(before, permitted + 1));
  }
}

TEST("eplb_engine_commit() returns the error that ends the run it waits for") {
  const Script script = exchanges(3);
  const Pair pair(script.shape, 1, 8);
  HeldRun here(pair.engines[0], script);
  uint32_t committed = 9;
  Outcome waited;
  std::thread waiter([&] { waited = commit(pair.engines[0], 2, &committed); });
  std::this_thread::sleep_for(kMoment);
  MUST(eplb_engine_abort, pair.engines[0].handle(), -1, "test");
  waiter.join();
  CHECK_EQ(waited.status, EPLB_ABORTED);
  CHECK_EQ(waited.error, here.report().outcome.error);
  CHECK_EQ(committed, 0u);
}

TEST("eplb_engine_destroy() ends a held run, and waits of commit, at once") {
  const Script script = exchanges(3);
  Pair pair(script.shape, 1, 9);
  const eplb_handle engine = pair.engines[0].handle();
  RunReport report;
  std::thread runner([&] { report = run(pair.engines[0], script, 30000, true); });
  std::thread peer([&] { run(pair.engines[1], script, 30000, true); });
  while (progress(pair.engines[0]).agreed < 1) std::this_thread::yield();
  uint32_t committed = 9;
  Outcome waited;
  std::thread waiter([&] { waited = commit(pair.engines[0], 3, &committed); });
  while (progress(pair.engines[0]).committed < 1) std::this_thread::yield();
  const Clock::time_point start = Clock::now();
  MUST(eplb_engine_destroy, engine);
  runner.join();
  waiter.join();
  peer.join();  // is told by the control block
  CHECK(seconds_since(start) < 1);
  CHECK_EQ(report.outcome.status, EPLB_ABORTED);
  CHECK_EQ(waited.status, EPLB_ABORTED);
  CHECK_EQ(committed, 1u);
  CHECK(pair.holds(script, 0, 1));
  CHECK(pair.holds(script, 1, 0));
}

TEST("a rank that waits for permission learns that a peer gave up, and follows it by settling") {
  for (const uint32_t sets : {1u, 2u}) {
    const Script script = exchanges(6);
    const Pair pair(script.shape, sets, 10);
    HeldRun here(pair.engines[0], script), there(pair.engines[1], script);
    uint32_t committed = 0;
    CHECK_EQ(commit(pair.engines[0], 1, &committed).error, "");
    here.await_agreed(sets);
    there.await_agreed(sets);
    const Clock::time_point start = Clock::now();
    MUST(eplb_engine_abort, pair.engines[0].handle(), -1, "test");
    const RunReport& told = there.report();
    CHECK(seconds_since(start) < 1);
    CHECK_EQ(told.outcome.status, EPLB_PEER_FAILED);
    CHECK_CONTAINS(told.outcome.error, "rank 0 gave up: ");
    CHECK_EQ(told.result.committed_batches, 0u);
    CHECK_EQ(here.report().result.committed_batches, 1u);
    CHECK(pair.holds(script, 0, 1));
    CHECK(pair.holds(script, 1, 0));
    for (const Engine& engine : pair.engines) {
      MUST(eplb_engine_settle, engine.handle(), 1u, &committed);
      CHECK_EQ(committed, 1u);
      CHECK_EQ(progress(engine).committed, 1u);
    }
    CHECK(pair.holds(script, 0, 1));
    CHECK(pair.holds(script, 1, 1));
  }
}

TEST("the time limit of a held run counts what it waits for permission") {
  const Script script = exchanges(3);
  const Pair pair(script.shape, 2, 11);
  const Clock::time_point start = Clock::now();
  HeldRun here(pair.engines[0], script, 150), there(pair.engines[1], script, 30000);
  const RunReport& report = here.report();
  CHECK(seconds_since(start) >= 0.149 && seconds_since(start) < 3);
  CHECK_EQ(report.outcome.status, EPLB_TIMEOUT);
  CHECK_EQ(report.outcome.error,
           "Cannot commit batch 0 without permission: the time limit has passed");
  CHECK_EQ(report.result.committed_batches, 0u);
  CHECK_EQ(there.report().outcome.status, EPLB_PEER_FAILED);
  CHECK(pair.holds(script, 0, 0));
  CHECK(pair.holds(script, 1, 0));
}

// Two engines of two ranks each.
struct Quad {
  Quad(const Shape& shape, uint32_t sets, std::mt19937_64& random) {
    std::vector<std::vector<char>> blobs;
    for (int32_t rank = 0; rank < 4; ++rank) {
      weights.emplace_back(shape, Memory::kShared);
      before.push_back(random_bytes(shape, random));
      write_all(weights.back(), shape, before.back());
    }
    for (const size_t first : {0, 2}) {
      engines.emplace_back(
          engine_config(4, 2, 3, sets),
          std::vector<int32_t>{static_cast<int32_t>(first), static_cast<int32_t>(first + 1)},
          std::vector<eplb_handle>{weights[first].handle(), weights[first + 1].handle()});
      for (const uint32_t index : {0, 1}) blobs.push_back(engines.back().blob(index));
    }
    for (const Engine& engine : engines) CHECK_EQ(connect(engine, blobs).error, "");
    memory = windows(weights, shape);
  }

  // The ranks of one engine hold what they should after this many batches.
  void check(const Script& script, size_t engine, uint32_t batches) const {
    const std::vector<Bytes> expected = script.apply(before, batches);
    for (const size_t rank : {2 * engine, 2 * engine + 1}) {
      CHECK(memory[rank].read() == expected[rank]);
    }
  }

  std::vector<Weights> weights;
  std::vector<Bytes> before;
  std::vector<Engine> engines;
  std::vector<Window> memory;
};

// What the caller of one engine saw.
struct Seen {
  uint32_t committed = 0;
  bool wrong = false;
};

// Permits step by step, at random paces, to the end of the run.
Seen permit_all(const Engine& engine, uint32_t batches, uint64_t seed) {
  std::mt19937_64 random(seed);
  Seen seen;
  for (uint32_t permitted = 0; permitted < batches;) {
    if (random() % 4 == 0) std::this_thread::sleep_for(std::chrono::microseconds(random() % 500));
    permitted = std::min(permitted + static_cast<uint32_t>(random() % 3), batches);
    uint32_t committed = 0;
    const Outcome outcome = commit(engine, permitted, &committed);
    seen.wrong |= committed < seen.committed || committed > permitted;
    seen.wrong |= outcome.status == EPLB_OK && committed < permitted;
    const Counts counts = progress(engine);
    seen.wrong |= counts.agreed < counts.committed || counts.committed > permitted;
    seen.committed = committed;
    if (outcome.status != EPLB_OK) return seen;
  }
  return seen;
}

TEST("held runs that are aborted at any moment leave whole batches, and settle on the same") {
  std::mt19937_64 random(12);
  const Shape shape = {12, 3, {64, 20000}};
  uint32_t partial = 0, apart = 0;
  // Moments are random: as many runs as it takes to meet what the test is about.
  for (int i = 0; i < 60 || ((partial < 5 || apart < 1) && i < 3000); ++i) {
    const Quad quad(shape, 1 + i % 3, random);
    const Script script = random_script(shape, 4, 3, random);
    HeldRun here(quad.engines[0], script), there(quad.engines[1], script);
    const uint64_t seeds[2] = {random(), random()};
    const auto moment = std::chrono::microseconds(random() % 4000);
    Seen seen[2];
    std::thread first([&] { seen[0] = permit_all(quad.engines[0], count(script), seeds[0]); });
    std::thread second([&] { seen[1] = permit_all(quad.engines[1], count(script), seeds[1]); });
    std::this_thread::sleep_for(moment);
    MUST(eplb_engine_abort, quad.engines[i % 2].handle(), -1, "test");
    first.join();
    second.join();
    const RunReport* reports[2] = {&here.report(), &there.report()};
    uint32_t most = 0;
    for (const size_t engine : {0, 1}) {
      const uint32_t committed = reports[engine]->result.committed_batches;
      CHECK(!seen[engine].wrong);
      CHECK(committed >= seen[engine].committed);
      quad.check(script, engine, committed);
      most = std::max(most, committed);
      partial += committed > 0 && committed < count(script) ? 1 : 0;
    }
    apart += reports[0]->result.committed_batches != reports[1]->result.committed_batches ? 1 : 0;
    for (const size_t engine : {0, 1}) {
      uint32_t committed = 0;
      MUST(eplb_engine_settle, quad.engines[engine].handle(), most, &committed);
      CHECK_EQ(committed, most);
      quad.check(script, engine, most);
    }
  }
  CHECK(partial >= 5);
  CHECK(apart >= 1);
}

}  // namespace
