// SPDX-License-Identifier: Apache-2.0
// Runs with a bound on their rate: how long they take, and what goes on while a batch is not due.
#include "engine/pace.h"

#include <algorithm>
#include <thread>

#include "held.h"

using namespace ranks;

namespace {

using eplb::Operation;
using eplb::Pace;
using eplb::RankBatch;

constexpr uint64_t kExpert = 43;      // bytes of an expert in exchanges()
constexpr uint64_t kByteASecond = 1;  // the second batch is due after 43 seconds

RankBatch batch_of(const std::vector<int32_t>& codes) {
  RankBatch batch;
  for (const int32_t code : codes) batch.operations.push_back({0, code, 0, 0, 0, 0, false});
  return batch;
}

TEST("Pace::due() counts what a rank receives and copies, directly or not, and not what it sends") {
  using namespace std::chrono_literals;
  const Clock::time_point start = Clock::now();
  Pace pace;
  pace.begin(start, 500, 1000);  // two experts a second
  CHECK(pace.due() == start);
  CHECK(pace.is_due());
  pace.count(batch_of({EPLB_OP_SEND, EPLB_OP_RECEIVE, EPLB_OP_COPY, EPLB_OP_SEND}));
  CHECK(pace.due() == start + 1s);
  CHECK(!pace.is_due());
  pace.count(batch_of({EPLB_OP_SEND}));
  CHECK(pace.due() == start + 1s);
  RankBatch direct = batch_of({EPLB_OP_RECEIVE});
  direct.operations[0].direct = true;
  pace.count(direct);
  CHECK(pace.due() == start + 1500ms);
  pace.begin(start, 500, 250);  // a new run
  CHECK(pace.due() == start);
  pace.count(direct);
  CHECK(pace.due() == start + 2s);
}

TEST("Pace::due() is far away for a bound that is tiny, and at once without one") {
  const Clock::time_point start = Clock::now();
  Pace pace;
  pace.begin(start, uint64_t{1} << 63, 1);
  pace.count(batch_of({EPLB_OP_COPY, EPLB_OP_COPY, EPLB_OP_COPY}));
  CHECK(pace.due() > start + std::chrono::hours(24 * 365));
  CHECK(!pace.is_due());
  pace.begin(start, uint64_t{1} << 63, 0);
  pace.count(batch_of({EPLB_OP_COPY}));
  CHECK(pace.is_due());
}

// A run of one engine of a pair, and when it ended: seconds since both were started.
struct Timed {
  RunReport report;
  double seconds;
};

// Both engines of a pair run the script, by rank.
std::vector<Timed> run_both(const Pair& pair, const Script& script, const eplb_run_config& first,
                            const eplb_run_config& second) {
  std::vector<Timed> runs(2);
  const Clock::time_point start = Clock::now();
  const auto run_one = [&](size_t rank, const eplb_run_config& config) {
    runs[rank].report = run(pair.engines[rank], script, config);
    runs[rank].seconds = seconds_since(start);
  };
  std::thread other([&] { run_one(1, second); });
  run_one(0, first);
  other.join();
  return runs;
}

TEST("eplb_engine_run() with a bound takes what all bytes take at it, and hardly more") {
  // Rank 0 gathers one expert in each batch, rank 1 two: what it receives, and a copy.
  Script script = exchanges(10);
  for (int32_t layer = 0; layer < 10; ++layer) {
    script.ops.push_back({layer, 0, 1, EPLB_OP_COPY, layer, 1, 1, 0});
  }
  std::stable_sort(script.ops.begin(), script.ops.end(),
                   [](const Op& a, const Op& b) { return a.batch < b.batch; });
  const double expected = 0.06;
  const eplb_run_config config = run_config(30000, false, 20 * kExpert * 1000 / 60);
  for (const uint32_t sets : {1u, 2u}) {
    Pair pair(script.shape, sets, 21);
    double least = 1e9;
    // Other work on the machine may delay a run, but hardly each of many.
    for (int i = 0; i < 50 && least > 1.1 * expected; ++i) {
      const std::vector<Timed> runs = run_both(pair, script, config, config);
      for (const size_t rank : {0, 1}) {
        CHECK_EQ(runs[rank].report.outcome.error, "");
        CHECK(runs[rank].seconds >= expected);  // rank 0 has half as many bytes, and waits
        CHECK(pair.holds(script, rank, 10));
      }
      CHECK(runs[1].report.result.seconds >= expected);
      least = std::min(least, runs[1].report.result.seconds);
      pair.before = script.apply(pair.before, 10);
    }
    CHECK(least <= 1.1 * expected);
  }
}

TEST("ranks without a bound wait for those that have one") {
  const Script script = exchanges(5);
  const Pair pair(script.shape, 2, 22);
  const std::vector<Timed> runs =
      run_both(pair, script, run_config(30000, false, 100 * kExpert), run_config(30000, false));
  for (const size_t rank : {0, 1}) {
    CHECK_EQ(runs[rank].report.outcome.error, "");
    CHECK(runs[rank].seconds >= 0.05);
    CHECK(pair.holds(script, rank, 5));
  }
}

TEST("a held run with a bound stages as it is due, and commits what was permitted before") {
  const Script script = exchanges(6);
  const Pair pair(script.shape, 2, 23);
  const Clock::time_point start = Clock::now();
  HeldRun here(pair.engines[0], script, 30000, 100 * kExpert);
  HeldRun there(pair.engines[1], script, 30000, 100 * kExpert);
  uint32_t committed = 0;
  std::thread other([&] {
    uint32_t any = 0;
    commit(pair.engines[1], 6, &any);
  });
  CHECK_EQ(commit(pair.engines[0], 6, &committed).error, "");
  other.join();
  CHECK(seconds_since(start) >= 0.05);  // when the last batch is due
  CHECK_EQ(here.report().outcome.error, "");
  CHECK_EQ(there.report().outcome.error, "");
  CHECK(here.report().result.seconds >= 0.06);
  CHECK(pair.holds(script, 0, 6) && pair.holds(script, 1, 6));
}

TEST("a held run commits at once what is permitted, though the next batch is not due") {
  const Script script = exchanges(6);
  const Pair pair(script.shape, 2, 24);
  HeldRun here(pair.engines[0], script, 600'000, kByteASecond);
  HeldRun there(pair.engines[1], script, 600'000, kByteASecond);
  here.await_agreed(1);
  there.await_agreed(1);
  const Clock::time_point start = Clock::now();
  uint32_t committed = 0;
  for (const size_t rank : {0, 1}) {
    CHECK_EQ(commit(pair.engines[rank], 1, &committed).error, "");
    CHECK_EQ(committed, 1u);
    CHECK(pair.holds(script, rank, 1));
  }
  CHECK_EQ(progress(pair.engines[0]).agreed, 1u);
  MUST(eplb_engine_abort, pair.engines[0].handle(), -1, "test");
  CHECK_EQ(here.report().outcome.status, EPLB_ABORTED);
  CHECK_EQ(there.report().outcome.status, EPLB_PEER_FAILED);
  CHECK(seconds_since(start) < 10);  // no batch was due
}

TEST("a run commits what all have staged though the next batch is not due, and can be aborted") {
  const Script script = exchanges(6);
  const Pair pair(script.shape, 2, 25);
  std::vector<Timed> runs;
  std::thread runner([&] {
    const eplb_run_config config = run_config(600'000, false, kByteASecond);
    runs = run_both(pair, script, config, config);
  });
  const auto all_committed = [&] {
    return progress(pair.engines[0]).committed == 1 && progress(pair.engines[1]).committed == 1;
  };
  const Clock::time_point start = Clock::now();
  while (!all_committed() && seconds_since(start) < 20) std::this_thread::yield();
  MUST(eplb_engine_abort, pair.engines[0].handle(), -1, "test");
  runner.join();
  CHECK(seconds_since(start) < 30);  // no batch was due
  CHECK_EQ(runs[0].report.outcome.status, EPLB_ABORTED);
  CHECK_CONTAINS(runs[0].report.outcome.error, "aborted: test");
  CHECK_EQ(runs[1].report.outcome.status, EPLB_PEER_FAILED);
  for (const size_t rank : {0, 1}) {
    CHECK_EQ(runs[rank].report.result.committed_batches, 1u);
    CHECK(pair.holds(script, rank, 1));
  }
}

TEST(
    "a run ends when the bound allows all of it, can be aborted till then, and does not time out") {
  World all({1, 2, {8}}, 1, 1, 1);
  const Script script{all.shape, 1, {{0, 1}}, {{0, 0, 0, EPLB_OP_COPY, 0, 0, 0, 1}}};
  const Engine& engine = all.engine[0];
  const Clock::time_point start = Clock::now();
  CHECK_EQ(run(engine, script, run_config(600'000, false, 160)).outcome.error, "");
  CHECK(seconds_since(start) >= 0.05);
  // Eight seconds, which it does not have.
  CHECK_EQ(run(engine, script, run_config(4000, false, 1)).outcome.error, "");
  CHECK(seconds_since(start) < 4);
  RunReport report;
  std::thread runner([&] { report = run(engine, script, run_config(600'000, false, 1)); });
  while (progress(engine).runs < 3 || progress(engine).committed < 1) std::this_thread::yield();
  MUST(eplb_engine_abort, engine.handle(), -1, "test");
  runner.join();
  CHECK(seconds_since(start) < 8);
  CHECK_EQ(report.outcome.status, EPLB_ABORTED);
  CHECK_EQ(report.outcome.error, "Cannot end the run: aborted: test");
  CHECK_EQ(report.result.committed_batches, 1u);
}

TEST("the time limit of a run ends its wait for the next batch, and names it") {
  const Script script = exchanges(6);
  const std::string why =
      "Cannot stage batch 1 within 1 bytes per second: the time limit has passed";
  const Pair pair(script.shape, 2, 26);
  const Clock::time_point start = Clock::now();
  const std::vector<Timed> runs = run_both(pair, script, run_config(500, false, kByteASecond),
                                           run_config(600'000, false, kByteASecond));
  CHECK(seconds_since(start) >= 0.499 && seconds_since(start) < 30);
  CHECK_EQ(runs[0].report.outcome.status, EPLB_TIMEOUT);
  CHECK_EQ(runs[0].report.outcome.error, why);
  CHECK_EQ(runs[0].report.result.failed_rank, -1);
  CHECK_EQ(runs[1].report.outcome.status, EPLB_PEER_FAILED);
  CHECK_CONTAINS(runs[1].report.outcome.error, "rank 0 gave up: " + why);
  for (const size_t rank : {0, 1}) {
    CHECK_EQ(runs[rank].report.result.committed_batches, 1u);
    CHECK(pair.holds(script, rank, 1));
  }
}

}  // namespace
