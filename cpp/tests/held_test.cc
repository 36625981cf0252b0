// SPDX-License-Identifier: Apache-2.0
// Held runs: what is committed when, and what is seen meanwhile.
#include "held.h"

#include <algorithm>
#include <atomic>
#include <thread>

using namespace ranks;

namespace {

TEST("a held run commits what is permitted, and stages as far ahead as it has sets") {
  std::mt19937_64 random(1);
  const Shape shape = {16, 3, {8, 700}};
  for (const uint32_t world : {1u, 4u}) {
    for (const uint32_t sets : {1u, 2u, 3u}) {
      World all(shape, world, 3, sets, Memory::kRegistered);
      const std::vector<Window> memory = windows(all.weights, shape);
      std::vector<Bytes> before = all.fill(random);
      for (uint32_t round = 1; round <= 2; ++round) {  // permissions end with their run
        const Script script = random_script(shape, world, 3, random);
        const Engine& engine = all.engine[0];
        HeldRun run(engine, script);
        for (uint32_t permitted = 0; permitted < count(script);) {
          const uint32_t ahead = std::min(permitted + sets, count(script));
          run.await_agreed(ahead);
          std::this_thread::sleep_for(kMoment);
          const Counts counts = progress(engine);
          CHECK_EQ(counts.runs, round);
          CHECK_EQ(counts.agreed, ahead);
          CHECK_EQ(counts.committed, permitted);
          CHECK(read(memory) == script.apply(before, permitted));
          permitted = std::min(permitted + 1 + static_cast<uint32_t>(random() % 4), count(script));
          uint32_t committed = 0;
          CHECK_EQ(commit(engine, permitted, &committed).error, "");
          CHECK_EQ(committed, permitted);
          CHECK(read(memory) == script.apply(before, permitted));
        }
        CHECK_EQ(run.report().outcome.error, "");
        CHECK_EQ(run.report().result.committed_batches, count(script));
        before = script.apply(before, count(script));
      }
    }
  }
}

TEST("a held run agrees on a batch only when ranks of other engines have staged it") {
  const Script script = exchanges(5);
  const Pair pair(script.shape, 2, 2);
  uint32_t committed = 9;
  HeldRun here(pair.engines[0], script);
  std::this_thread::sleep_for(kMoment);
  CHECK_EQ(progress(pair.engines[0]).agreed, 0u);  // the other rank is not there
  HeldRun there(pair.engines[1], script);
  here.await_agreed(2);
  there.await_agreed(2);
  CHECK_EQ(commit(pair.engines[0], 2, &committed).error, "");
  CHECK_EQ(committed, 2u);
  std::this_thread::sleep_for(kMoment);
  CHECK_EQ(progress(pair.engines[0]).agreed, 2u);  // the other rank has no free set
  CHECK_EQ(progress(pair.engines[1]).committed, 0u);
  CHECK(pair.holds(script, 0, 2));
  CHECK(pair.holds(script, 1, 0));
  CHECK_EQ(commit(pair.engines[1], 1, &committed).error, "");
  here.await_agreed(3);
  there.await_agreed(3);
  CHECK(pair.holds(script, 1, 1));
  std::thread other([&] {
    uint32_t any = 0;
    commit(pair.engines[1], 5, &any);
  });
  CHECK_EQ(commit(pair.engines[0], 5, &committed).error, "");
  other.join();
  CHECK_EQ(here.report().outcome.error, "");
  CHECK_EQ(there.report().outcome.error, "");
  CHECK(pair.holds(script, 0, 5));
  CHECK(pair.holds(script, 1, 5));
}

TEST("ranks of several engines that permit together commit together") {
  for (const uint32_t sets : {1u, 2u, 4u}) {
    const Script script = exchanges(9);
    Pair pair(script.shape, sets, 14);
    run_held(pair.engines, script, 9, sets);
    CHECK(pair.holds(script, 0, 9) && pair.holds(script, 1, 9));
    pair.before = script.apply(pair.before, 9);
    run_held(pair.engines, script, 4, sets);  // the same engines, aborted halfway
    CHECK(pair.holds(script, 0, 4) && pair.holds(script, 1, 4));
  }
}

TEST("eplb_engine_commit() waits for batches that are not agreed on yet") {
  const Script script = exchanges(4);
  const Pair pair(script.shape, 1, 3);
  HeldRun here(pair.engines[0], script);
  uint32_t early = 9, all = 0;
  Outcome waited;
  std::atomic<bool> returned{false};
  std::thread waiter([&] {
    waited = commit(pair.engines[0], 3, &early);
    returned = true;
  });
  std::this_thread::sleep_for(kMoment);
  CHECK(!returned);
  HeldRun there(pair.engines[1], script);
  CHECK_EQ(commit(pair.engines[1], 4, &all).error, "");
  waiter.join();
  CHECK_EQ(waited.error, "");
  CHECK_EQ(early, 3u);
  CHECK_EQ(all, 4u);
  CHECK(pair.holds(script, 0, 3));
  CHECK_EQ(commit(pair.engines[0], 1, &early).error, "");  // permits nothing new
  CHECK_EQ(early, 3u);
  CHECK_EQ(commit(pair.engines[0], 4, &early).error, "");
  CHECK_EQ(here.report().outcome.error, "");
  CHECK_EQ(there.report().outcome.error, "");
}

TEST("eplb_engine_commit() ends at its own time limit, and what it permitted is committed later") {
  const Script script = exchanges(3);
  const Pair pair(script.shape, 2, 4);
  HeldRun here(pair.engines[0], script);
  uint32_t committed = 9;
  const Clock::time_point start = Clock::now();
  const Outcome late = commit(pair.engines[0], 1, &committed, 30);
  CHECK(seconds_since(start) >= 0.029);
  CHECK_EQ(late.status, EPLB_TIMEOUT);
  CHECK_EQ(late.error,
           "Cannot commit 1 batches: the time limit has passed; 0 are in place, and 0 staged by "
           "every rank");
  CHECK_EQ(committed, 0u);
  HeldRun there(pair.engines[1], script);
  while (progress(pair.engines[0]).committed < 1) std::this_thread::yield();
  std::this_thread::sleep_for(kMoment);
  CHECK(pair.holds(script, 0, 1));
  CHECK(pair.holds(script, 1, 0));
}

TEST("eplb_engine_commit() without a held run tells what the last run has committed") {
  const Script script = exchanges(3);
  const Pair pair(script.shape, 2, 5);
  const Engine& engine = pair.engines[0];
  uint32_t committed = 9;
  CHECK_EQ(commit(engine, 0, &committed).error, "");
  CHECK_EQ(committed, 0u);
  const Outcome never = commit(engine, 1, &committed);
  CHECK_EQ(never.status, EPLB_INVALID_ARGUMENT);
  CHECK_EQ(never.error,
           "Cannot commit 1 batches: no held run is in progress, and the last run has committed 0");
  {
    std::atomic<bool> running{true};
    std::thread runner([&] {
      run(engine, script);
      running = false;
    });
    while (progress(engine).runs == 0) std::this_thread::yield();
    const Outcome other = commit(engine, 1, &committed);
    CHECK_EQ(other.status, EPLB_INVALID_ARGUMENT);
    CHECK_CONTAINS(other.error, "the run in progress is not held");
    CHECK(running);
    CHECK_EQ(run(pair.engines[1], script).outcome.error, "");
    runner.join();
  }
  CHECK_EQ(commit(engine, 3, &committed).error, "");
  CHECK_EQ(committed, 3u);
  CHECK_CONTAINS(commit(engine, 4, &committed).error, "the last run has committed 3");
  HeldRun held(engine, script);
  const Outcome many = commit(engine, 4, &committed);
  CHECK_EQ(many.status, EPLB_INVALID_ARGUMENT);
  CHECK_EQ(many.error, "Cannot commit 4 batches: the run in progress has 3");
  CHECK_EQ(committed, 0u);  // of this run
}

TEST("eplb_engine_run() and eplb_engine_commit() refuse arguments out of range") {
  const Script script = exchanges(1);
  const Pair pair(script.shape, 1, 6);
  const eplb_handle engine = pair.engines[0].handle();
  const std::vector<int32_t> words = script.words({0});
  eplb_run_result result = {};
  result.size = sizeof(result);
  result.version = 1;
  const auto refused = [&](const eplb_run_config& config, const std::string& part) {
    MUST_FAIL(EPLB_INVALID_ARGUMENT, part, eplb_engine_run, engine, words.data(),
              uint64_t{words.size()}, &config, &result, static_cast<uint64_t*>(nullptr));
  };
  refused({sizeof(eplb_run_config), 1, 0, 0, 0, 0}, "the timeout is 0 milliseconds");
  refused({sizeof(eplb_run_config), 1, 10, 2, 0, 0}, "held is 2, not 0 or 1");
  refused({sizeof(eplb_run_config), 1, 10, 0, 7, 0}, "reserved is 7, not 0");
  MUST_FAIL(EPLB_INVALID_ARGUMENT, "it is null", eplb_engine_run, engine, words.data(),
            uint64_t{words.size()}, static_cast<const eplb_run_config*>(nullptr), &result,
            static_cast<uint64_t*>(nullptr));
  uint32_t committed = 9;
  MUST_FAIL(EPLB_INVALID_ARGUMENT, "the timeout is 0 milliseconds", eplb_engine_commit, engine, 0u,
            uint64_t{0}, &committed);
  MUST_FAIL(EPLB_INVALID_ARGUMENT, "\"committed\" is null", eplb_engine_commit, engine, 0u,
            uint64_t{1}, static_cast<uint32_t*>(nullptr));
  CHECK_EQ(progress(pair.engines[0]).runs, 0u);
}

}  // namespace
