// SPDX-License-Identifier: Apache-2.0
// Operations that write their slots directly, by threads in one process, against the naive model.
#include <algorithm>
#include <set>
#include <tuple>

#include "ranks.h"

using namespace ranks;

namespace {

uint32_t count(const Script& script) { return static_cast<uint32_t>(script.batches.size()); }

// Everything but what later batches write directly, which may be written already.
void expect_but_for_direct(const World& all, const Script& script, const std::vector<Bytes>& before,
                           uint32_t batches, const std::vector<Bytes>& actual) {
  std::set<std::tuple<size_t, size_t>> given_up;
  for (const Op& op : script.ops) {
    if ((op.code & EPLB_OP_DIRECT) == 0 || op.batch < static_cast<int32_t>(batches)) continue;
    given_up.insert({op.rank, op.layer * all.shape.slots + op.slot});
  }
  const std::vector<Bytes> expected = script.apply(before, batches);
  for (size_t rank = 0; rank < actual.size(); ++rank) {
    for (size_t i = 0; i < actual[rank].size(); ++i) {
      if (given_up.count({rank, i}) == 0) CHECK(actual[rank][i] == expected[rank][i]);
    }
  }
}

TEST("random programs with direct operations put every expert where the naive model puts it") {
  std::mt19937_64 random(1);
  const std::vector<Shape> shapes = {{3, 4, {4, 8}}, {7, 3, {1, 17, 4096}}, {12, 9, {5, 70000}}};
  uint32_t direct = 0, staged = 0;
  for (const Shape& shape : shapes) {
    for (const uint32_t world : {1u, 2u, 5u}) {
      for (const uint32_t sets : {1u, 3u}) {
        for (int i = 0; i < 4; ++i) {
          Script script = random_script(shape, world, shape.slots, random);
          make_direct(&script, random);
          for (const Op& op : script.ops) {
            (op.code & EPLB_OP_DIRECT) != 0 ? ++direct : ++staged;
          }
          const uint32_t cells = cells_needed(script);
          World all(shape, world, cells, sets, i % 2 == 0 ? Memory::kRegistered : Memory::kPrivate);
          const std::vector<Bytes> before = all.fill(random);
          CHECK_EQ(run(all.engine[0], script).outcome.error, "");
          CHECK(all.memory() == script.apply(before, count(script)));
        }
      }
    }
  }
  CHECK(direct > 100);
  CHECK(staged > 100);
}

TEST("a program may have more direct operations than there are staging cells") {
  std::mt19937_64 random(2);
  const Shape shape = {2, 8, {100, 3}};
  Script script{shape, 2, {{0, 2}}, {}};
  for (int32_t layer = 0; layer < 2; ++layer) {
    for (int32_t slot = 1; slot < 8; ++slot) {  // slot 0 of each rank goes everywhere
      const bool copies = slot % 2 == 0;
      if (!copies) script.ops.push_back({0, 0, 1, EPLB_OP_SEND, layer, 0, 0, slot});
      script.ops.push_back({0, 0, 0, (copies ? EPLB_OP_COPY : EPLB_OP_RECEIVE) | EPLB_OP_DIRECT,
                            layer, slot, copies ? 0 : 1, 0});
    }
  }
  // And one that is staged, over a source of the copies.
  script.ops.push_back({0, 0, 1, EPLB_OP_SEND, 0, 5, 0, 0});
  script.ops.push_back({0, 0, 0, EPLB_OP_RECEIVE, 0, 0, 1, 5});
  World all(shape, 2, 1, 1);
  const std::vector<Bytes> before = all.fill(random);
  const RunReport report = run(all.engine[0], script);
  CHECK_EQ(report.outcome.error, "");
  CHECK(all.memory() == script.apply(before, 1));
  CHECK_EQ(report.rank_bytes[0], 9u * 103);  // direct or not
  CHECK_EQ(report.rank_bytes[3], 9u * 103);
}

TEST("a held run writes direct operations while it stages, and nothing else") {
  std::mt19937_64 random(3);
  const Shape shape = {10, 6, {64, 5}};
  uint32_t early = 0;  // slots that were there before their batch was committed
  for (const uint32_t sets : {1u, 2u}) {
    Script script = random_script(shape, 3, shape.slots, random);
    make_direct(&script, random);
    World all(shape, 3, cells_needed(script), sets);
    std::vector<Window> memory;
    for (const Weights& own : all.weights) memory.emplace_back(own, shape);
    const std::vector<Bytes> before = all.fill(random);
    const Engine& engine = all.engine[0];
    HeldRun run(engine, script);
    for (uint32_t permitted = 0; permitted < count(script); ++permitted) {
      uint32_t committed = 0;
      CHECK_EQ(commit(engine, permitted, &committed).error, "");
      run.await_agreed(std::min(permitted + sets, count(script)));
      std::vector<Bytes> actual;
      for (const Window& window : memory) actual.push_back(window.read());
      expect_but_for_direct(all, script, before, permitted, actual);
      const std::vector<Bytes> next = script.apply(before, permitted + 1);
      for (const Op& op : script.ops) {
        const bool is_next = op.batch == static_cast<int32_t>(permitted);
        if ((op.code & EPLB_OP_DIRECT) == 0 || !is_next) continue;
        const size_t place = op.layer * shape.slots + op.slot;
        early += actual[op.rank][place] == next[op.rank][place] ? 1 : 0;
      }
    }
    uint32_t committed = 0;
    CHECK_EQ(commit(engine, count(script), &committed).error, "");
    CHECK_EQ(run.report().outcome.error, "");
    CHECK(all.memory() == script.apply(before, count(script)));
  }
  CHECK(early > 10);
}

TEST("a held run that fails leaves all but direct slots as they were") {
  std::mt19937_64 random(4);
  const Shape shape = {6, 5, {64, 5}};
  for (int i = 0; i < 10; ++i) {
    Script script = random_script(shape, 3, shape.slots, random);
    make_direct(&script, random);
    World all(shape, 3, cells_needed(script), 2);
    const std::vector<Bytes> before = all.fill(random);
    const uint32_t permitted = static_cast<uint32_t>(random() % count(script));
    HeldRun run(all.engine[0], script);
    uint32_t committed = 0;
    CHECK_EQ(commit(all.engine[0], permitted, &committed).error, "");
    MUST(eplb_engine_abort, all.engine[0].handle(), -1, "test");
    CHECK_EQ(run.report().outcome.status, EPLB_ABORTED);
    CHECK_EQ(run.report().result.committed_batches, permitted);
    expect_but_for_direct(all, script, before, permitted, all.memory());
  }
}

}  // namespace
