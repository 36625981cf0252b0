// SPDX-License-Identifier: Apache-2.0
// Runs of random programs, by threads in one process, against the naive model.
#include <thread>

#include "ranks.h"

using namespace ranks;

namespace {

const std::vector<Shape> kShapes = {
    {1, 1, {8}}, {3, 4, {4, 8}}, {7, 3, {1, 17, 4096}}, {12, 9, {5}}, {4, 2, {70000, 2}},
};

void expect_equal(const std::vector<Bytes>& actual, const std::vector<Bytes>& expected,
                  const std::string& what) {
  for (size_t rank = 0; rank < actual.size(); ++rank) {
    for (size_t i = 0; i < actual[rank].size(); ++i) {
      if (actual[rank][i] != expected[rank][i]) {
        check::fail(__FILE__, __LINE__, what, ": rank ", rank, ", expert place ", i, " differs");
      }
    }
  }
}

TEST("eplb_engine_run() puts every expert where the naive model puts it") {
  std::mt19937_64 random(1);
  for (const Shape& shape : kShapes) {
    for (const uint32_t world : {1u, 2u, 3u, 8u}) {
      for (const uint32_t sets : {1u, 2u}) {
        const uint32_t cells = 1 + static_cast<uint32_t>(random() % shape.slots);
        World all(shape, world, cells, sets);
        std::vector<Bytes> expected = all.fill(random);
        for (int i = 0; i < 3; ++i) {  // one engine, one program after the other
          const Script script = random_script(shape, world, cells, random);
          const RunReport report = run(all.engine[0], script);
          CHECK_EQ(report.outcome.error, "");
          CHECK_EQ(report.result.committed_batches, script.batches.size());
          CHECK_EQ(report.result.failed_rank, -1);
          expected = script.apply(expected, static_cast<uint32_t>(script.batches.size()));
          expect_equal(all.memory(), expected, "after a run");
        }
      }
    }
  }
}

TEST("eplb_engine_run() leaves the bytes between registered experts alone") {
  std::mt19937_64 random(2);
  const Shape shape = {5, 4, {3, 16, 1}};
  World all(shape, 3, 4, 2, Memory::kRegistered);
  const std::vector<Bytes> before = all.fill(random);
  const Script script = random_script(shape, 3, 4, random);
  CHECK_EQ(run(all.engine[0], script).outcome.error, "");
  const uint32_t batches = static_cast<uint32_t>(script.batches.size());
  const std::vector<Bytes> expected = script.apply(before, batches);
  expect_equal(all.memory(), expected, "after a run");
  // Overwriting all experts with one byte shows what is not an expert's.
  for (const Weights& weights : all.weights) {
    write_all(weights, shape,
              Bytes(shape.layers * shape.slots, std::string(shape.expert_bytes(), '#')));
    for (const char byte : weights.registered()) CHECK_EQ(byte, '#');
  }
}

TEST("eplb_engine_run() counts the bytes between ranks") {
  const Shape shape = {2, 2, {10, 7}};
  World all(shape, 2, 2, 1);
  Script script{shape, 2, {{0, 1}, {1, 2}}, {}};
  script.ops = {
      {0, 0, 0, EPLB_OP_SEND, 0, 1, 1, 0},      {0, 0, 1, EPLB_OP_RECEIVE, 0, 0, 0, 1},
      {0, 1, 1, EPLB_OP_DUPLICATE, 0, 1, 1, 0}, {1, 0, 0, EPLB_OP_COPY, 1, 0, 0, 1},
      {1, 0, 0, EPLB_OP_SEND, 1, 0, 1, 0},      {1, 0, 1, EPLB_OP_RECEIVE, 1, 0, 0, 0},
  };
  const RunReport report = run(all.engine[0], script);
  CHECK_EQ(report.outcome.error, "");
  CHECK_EQ(report.rank_bytes[0], 0u);
  CHECK_EQ(report.rank_bytes[1], 34u);
  CHECK_EQ(report.rank_bytes[2], 34u);
  CHECK_EQ(report.rank_bytes[3], 0u);
  CHECK(report.result.seconds > 0);
  CHECK_EQ(progress(all.engine[0]).committed, 2u);
  CHECK_EQ(progress(all.engine[0]).agreed, 2u);
  CHECK_EQ(progress(all.engine[0]).runs, 1u);
}

TEST("eplb_engine_run() accepts a program without operations, or without batches") {
  const Shape shape = {2, 2, {8}};
  std::mt19937_64 random(3);
  World all(shape, 4, 1, 2);
  const std::vector<Bytes> before = all.fill(random);
  for (const Script& script : {Script{shape, 4, {}, {}}, Script{shape, 4, {{0, 2}}, {}}}) {
    const RunReport report = run(all.engine[0], script);
    CHECK_EQ(report.outcome.error, "");
    CHECK_EQ(report.result.committed_batches, script.batches.size());
  }
  expect_equal(all.memory(), before, "after empty runs");
}

TEST("eplb_engine_run() of 32 ranks in one process is exact, many times") {
  std::mt19937_64 random(4);
  const Shape shape = {6, 2, {4, 8}};
  World all(shape, 32, 2, 2);
  std::vector<Bytes> expected = all.fill(random);
  for (int i = 0; i < 20; ++i) {
    const Script script = random_script(shape, 32, 2, random);
    CHECK_EQ(run(all.engine[0], script).outcome.error, "");
    expected = script.apply(expected, static_cast<uint32_t>(script.batches.size()));
  }
  expect_equal(all.memory(), expected, "after 20 runs");
}

TEST("eplb_engine_abort() at any moment leaves whole batches, the same on all ranks") {
  std::mt19937_64 random(5);
  const Shape shape = {12, 4, {64, 3, 50000}};
  uint32_t partial = 0;
  // Moments are random: as many runs as it takes to meet what the test is about.
  for (int i = 0; i < 30 || (partial < 3 && i < 2000); ++i) {
    World all(shape, 1 + static_cast<uint32_t>(random() % 5), 4, 1 + i % 2);
    const uint32_t world = static_cast<uint32_t>(all.weights.size());
    const std::vector<Bytes> before = all.fill(random);
    const Script script = random_script(shape, world, 4, random);
    const eplb_handle engine = all.engine[0].handle();
    const uint32_t moment = static_cast<uint32_t>(random() % (script.batches.size() + 1));
    std::thread killer([&] {  // after some batches, and then soon
      for (uint32_t batches = 0, any = 0; batches < moment; std::this_thread::yield()) {
        eplb_engine_progress(engine, &batches, &any, &any, nullptr, 0);
      }
      eplb_engine_abort(engine, -1, "test", nullptr, 0);
    });
    const RunReport report = run(all.engine[0], script);
    killer.join();
    const uint32_t committed = report.result.committed_batches;
    if (report.outcome.status == EPLB_OK) {
      CHECK_EQ(committed, script.batches.size());
    } else {
      CHECK_EQ(report.outcome.status, EPLB_ABORTED);
      CHECK_CONTAINS(report.outcome.error, "aborted: test");
      partial += committed > 0 && committed < script.batches.size() ? 1 : 0;
      const Outcome again = run(all.engine[0], Script{shape, world, {}, {}}).outcome;
      CHECK_EQ(again.status, EPLB_BROKEN);
      CHECK_CONTAINS(again.error, "is broken (");
    }
    CHECK_EQ(progress(all.engine[0]).committed, committed);
    expect_equal(all.memory(), script.apply(before, committed), "after an abort");
  }
  CHECK(partial >= 3);
}

TEST("eplb_engine_destroy() ends a run in progress and waits for it") {
  const Shape shape = {2, 2, {8}};
  Weights weights(shape, Memory::kShared), absent(shape, Memory::kShared);
  Engine here(engine_config(2, 1, 2, 1), {0}, {weights.handle()});
  Engine there(engine_config(2, 1, 2, 1), {1}, {absent.handle()});
  const std::vector<std::vector<char>> blobs = {here.blob(0), there.blob(0)};
  CHECK_EQ(connect(here, blobs).error, "");
  CHECK_EQ(connect(there, blobs).error, "");
  const Script script{shape, 2, {{0, 1}}, {}};
  RunReport report;
  std::thread runner([&] { report = run(here, script); });  // its peer never runs
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  MUST(eplb_engine_destroy, here.handle());
  runner.join();
  CHECK_EQ(report.outcome.status, EPLB_ABORTED);
  MUST_FAIL(EPLB_INVALID_HANDLE, "engine", eplb_engine_destroy, here.handle());
  CHECK_EQ(run(there, script).outcome.status, EPLB_PEER_FAILED);
}

TEST("eplb_engine_run() names the rank it waited for") {
  const Shape shape = {2, 2, {8}};
  Weights weights(shape, Memory::kShared), absent(shape, Memory::kShared);
  Engine here(engine_config(2, 1, 2, 1), {0}, {weights.handle()});
  Engine there(engine_config(2, 1, 2, 1), {1}, {absent.handle()});
  const std::vector<std::vector<char>> blobs = {here.blob(0), there.blob(0)};
  CHECK_EQ(connect(here, blobs).error, "");
  CHECK_EQ(connect(there, blobs).error, "");
  const Script script{shape, 2, {{0, 1}}, {}};
  const RunReport waited = run(here, script, 30);
  CHECK_EQ(waited.outcome.status, EPLB_TIMEOUT);
  CHECK_EQ(waited.result.failed_rank, 1);
  CHECK_CONTAINS(waited.outcome.error, "rank 1 has not come");
  const RunReport late = run(there, script, 1000);  // is told at once
  CHECK_EQ(late.outcome.status, EPLB_PEER_FAILED);
  CHECK_CONTAINS(late.outcome.error, "rank 0 gave up: Cannot commit batch 0");
  CHECK(late.result.seconds < 0.5);
}

TEST("eplb_engine_run() refuses ranks with different programs") {
  const Shape shape = {2, 2, {8}};
  Weights a(shape, Memory::kShared), b(shape, Memory::kShared);
  Engine here(engine_config(2, 1, 2, 1), {0}, {a.handle()});
  Engine there(engine_config(2, 1, 2, 1), {1}, {b.handle()});
  const std::vector<std::vector<char>> blobs = {here.blob(0), there.blob(0)};
  CHECK_EQ(connect(here, blobs).error, "");
  CHECK_EQ(connect(there, blobs).error, "");
  RunReport one, two;
  std::thread runner([&] { one = run(here, Script{shape, 2, {{0, 1}}, {}}); });
  two = run(there, Script{shape, 2, {{0, 1}, {1, 2}}, {}});
  runner.join();
  const int32_t first = std::min(one.outcome.status, two.outcome.status);
  const int32_t second = std::max(one.outcome.status, two.outcome.status);
  CHECK_EQ(first, EPLB_PEER_MISMATCH);
  CHECK_EQ(second, EPLB_PEER_FAILED);
}

TEST("eplb_engine_settle() changes nothing after a complete run and refuses what is not staged") {
  const Shape shape = {2, 2, {8}};
  World all(shape, 2, 2, 2);
  uint32_t committed = 9;
  CHECK_EQ(run(all.engine[0], Script{shape, 2, {{0, 1}, {1, 2}}, {}}).outcome.error, "");
  MUST(eplb_engine_settle, all.engine[0].handle(), 1u, &committed);
  CHECK_EQ(committed, 2u);
  MUST_FAIL(EPLB_INVALID_ARGUMENT, "has staged 2", eplb_engine_settle, all.engine[0].handle(), 3u,
            &committed);
}

}  // namespace
