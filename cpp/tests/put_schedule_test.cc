// SPDX-License-Identifier: Apache-2.0
// Schedules of puts, carried out with memcpy, against the naive model.
#include "nccl/put_schedule.h"

#include <algorithm>

#include "host_ranks.h"
#include "transport/cell_layout.h"

using namespace eplb;

namespace {

// Halves of an outbox that hold `experts`.
struct Outbox {
  uint64_t experts;
  bool by_engine = false;
};

struct Rank : HostWeights {
  Rank(const ranks::Shape& shape, const StagingPlan& plan, const Outbox& box)
      : HostWeights(shape), cell(CellLayout(shape.tensor_bytes).bytes) {
    landing.assign(plan.all_cells() * cell, '\0');
    outbox.assign(2 * box.experts * cell, '\0');
    task.weights = view;
    task.staging = plan;
    task.landing = address_of(landing);
    task.outbox = address_of(outbox);
    task.half_bytes = box.experts * cell;
    task.gather_by_engine = task.commit_by_engine = box.by_engine;
  }

  void move(const Copies& copies) const {
    copy_pieces(schedule.kernel_pieces, copies.kernel);
    copy_pieces(schedule.engine_pieces, copies.engine);
  }

  uint64_t cell;
  std::string landing, outbox;
  PutTask task;
  PutSchedule schedule;
};

std::vector<Rank> lower_all(const ranks::Script& script, const StagingPlan& plan,
                            const Outbox& box) {
  std::vector<Rank> all;
  all.reserve(script.world);  // addresses stay
  std::vector<Landings> landings;
  std::vector<std::vector<RankBatch>> batches;
  const int32_t world = static_cast<int32_t>(script.world);
  for (int32_t rank = 0; rank < world; ++rank) {
    all.emplace_back(script.shape, plan, box);
    batches.push_back(batches_of(script, rank, static_cast<int32_t>(plan.cells)));
    landings.push_back(number_landings(batches.back(), world, plan.cells));
  }
  for (int32_t rank = 0; rank < world; ++rank) {
    all[rank].task.rank = rank;
    all[rank].task.world = world;
    all[rank].schedule = make_put_schedule(batches[rank], landings, all[rank].task);
  }
  return all;
}

// What is put must have been packed, into the half whose turn it is.
void put_all(const std::vector<Rank>& all, size_t batch) {
  for (const Rank& rank : all) {
    const IndexRange& bursts = rank.schedule.batches[batch].bursts;
    for (uint32_t b = bursts.first; b < bursts.last; ++b) {
      const Burst& burst = rank.schedule.bursts[b];
      rank.move(burst.pack);
      for (uint32_t i = burst.puts.first; i < burst.puts.last; ++i) {
        const Put& put = rank.schedule.puts[i];
        const uint64_t half = address_of(rank.outbox) + b % 2 * rank.task.half_bytes;
        CHECK(put.source >= half && put.source + put.bytes <= half + rank.task.half_bytes);
        const Rank& peer = all[put.peer];
        CHECK(put.offset + put.bytes <= peer.landing.size());
        copy_bytes(address_of(peer.landing) + put.offset, put.source, put.bytes);
      }
    }
  }
}

TEST("make_put_schedule() puts every expert where the naive model puts it") {
  std::mt19937_64 random(1);
  size_t merged = 0, divided = 0;
  const std::vector<ranks::Shape> shapes = {
      {1, 1, {8}}, {5, 3, {1, 17, 300, 5}}, {9, 6, {2000, 1000, 71, 35}}};
  for (const ranks::Shape& shape : shapes) {
    for (const uint32_t world : {1u, 2u, 5u}) {
      for (const uint64_t small_bytes : {0, 71, 1 << 20}) {
        for (uint32_t i = 0; i < 20; ++i) {
          const StagingPlan plan = {1 + static_cast<uint32_t>(random() % shape.slots), 1 + i % 2,
                                    small_bytes};
          const ranks::Script script = ranks::random_script(shape, world, plan.cells, random);
          const std::vector<Rank> all =
              lower_all(script, plan, {1 + random() % 3, random() % 2 == 0});
          std::vector<ranks::Bytes> memory;
          for (const Rank& rank : all) {
            memory.push_back(ranks::random_bytes(shape, random));
            rank.exchange(shape, &memory.back(), false);
          }
          for (size_t batch = 0; batch < script.batches.size(); ++batch) {
            put_all(all, batch);
            for (const Rank& rank : all) rank.move(rank.schedule.batches[batch].copy);
            for (const Rank& rank : all) rank.move(rank.schedule.batches[batch].commit);
            for (const Rank& rank : all) divided += size(rank.schedule.batches[batch].bursts) > 1;
          }
          for (const Rank& rank : all) {
            for (const Put& put : rank.schedule.puts) merged += put.bytes > rank.cell;
          }
          memory = script.apply(memory, static_cast<uint32_t>(script.batches.size()));
          for (uint32_t rank = 0; rank < world; ++rank) {
            ranks::Bytes actual = memory[rank];
            all[rank].exchange(shape, &actual, true);
            CHECK(actual == memory[rank]);
          }
        }
      }
    }
  }
  CHECK(merged > 100 && divided > 100);
}

// Of kThree.
constexpr uint64_t kCell = 5008 + 112 + 4000 + 32;  // each tensor aligned to 16

TEST("make_put_schedule() puts what goes to one rank at once, as far as its outbox holds it") {
  const std::vector<Rank> at_once = lower_all(kThree, {3, 1, 100}, {3});
  CHECK_EQ(at_once[0].schedule.puts.size(), 1u);
  CHECK_EQ(at_once[0].schedule.puts[0].bytes, 3 * kCell);
  CHECK_EQ(at_once[0].schedule.batches[0].bytes_out, 3u * 9120);
  CHECK_EQ(at_once[1].schedule.batches[0].bytes_in, 3u * 9120);
  CHECK(at_once[1].schedule.puts.empty());

  const std::vector<Rank> in_two = lower_all(kThree, {3, 1, 100}, {2});
  CHECK_EQ(size(in_two[0].schedule.batches[0].bursts), 2u);
  CHECK_EQ(in_two[0].schedule.puts[0].bytes, 2 * kCell);
  CHECK_EQ(in_two[0].schedule.puts[1].offset, 2 * kCell);
}

TEST("make_put_schedule() leaves large tensors to copy engines where it is asked to") {
  for (const bool by_engine : {false, true}) {
    const std::vector<Rank> both = lower_all(kThree, {3, 1, 100}, {3, by_engine});
    const Burst& burst = both[0].schedule.bursts[0];
    CHECK_EQ(size(burst.pack.engine), by_engine ? 6u : 0u);
    CHECK_EQ(size(burst.pack.kernel), by_engine ? 6u : 12u);
    CHECK_EQ(size(both[1].schedule.batches[0].commit.engine), by_engine ? 6u : 0u);
  }
}

TEST("make_put_schedule() takes the halves in turn, from batch to batch") {
  ranks::Script script = kThree;
  script.shape.layers = 3;
  script.batches = {{0, 1}, {1, 2}, {2, 3}};
  for (const int32_t layer : {1, 2}) {
    for (size_t i = 0; i < kThree.ops.size(); ++i) {
      script.ops.push_back(kThree.ops[i]);
      script.ops.back().batch = script.ops.back().layer = layer;
    }
  }
  const std::vector<Rank> both = lower_all(script, {3, 2, 0}, {3});
  std::vector<uint64_t> halves;
  std::vector<uint64_t> offsets;
  for (size_t batch = 0; batch < 3; ++batch) {
    halves.push_back(both[0].schedule.puts[batch].source - address_of(both[0].outbox));
    offsets.push_back(both[0].schedule.puts[batch].offset);
  }
  CHECK(halves == (std::vector<uint64_t>{0, 3 * kCell, 0}));
  CHECK(offsets == (std::vector<uint64_t>{0, 3 * kCell, 0}));  // two staging sets
}

TEST("number_landings() gives each sender a place of its own, and copies what is left") {
  ranks::Script script;
  script.shape.slots = 4;
  script.shape.tensor_bytes = {64};
  script.world = 3;
  script.batches = {{0, 1}};
  for (const int32_t slot : {0, 1}) {  // two experts of rank 2, one of rank 0, one copy
    script.ops.push_back({0, 0, 2, EPLB_OP_SEND, 0, slot, 1, slot});
    script.ops.push_back({0, 0, 1, EPLB_OP_RECEIVE, 0, slot, 2, slot});
  }
  script.ops.push_back({0, 0, 0, EPLB_OP_SEND, 0, 0, 1, 2});
  script.ops.push_back({0, 0, 1, EPLB_OP_RECEIVE, 0, 2, 0, 0});
  script.ops.push_back({0, 0, 1, EPLB_OP_COPY, 0, 3, 1, 0});
  const std::vector<RankBatch> batches = batches_of(script, 1, 4);
  CHECK(number_landings(batches, 3, 4) == (Landings{0, 1, 1}));
}

void expect_refusal(const ranks::Script& script, uint32_t cells, const std::string& why) {
  const std::vector<RankBatch> batches = batches_of(script, 1, 3);
  try {
    (void)number_landings(batches, 2, cells);
  } catch (const Error& error) {
    CHECK_EQ(error.status, EPLB_INVALID_ARGUMENT);
    CHECK_CONTAINS(error.what(), why);
    return;
  }
  CHECK(false);
}

TEST("number_landings() refuses what has no cell: more experts than cells, and direct receives") {
  expect_refusal(kThree, 2, "needs 3 staging cells and there are 2");
  ranks::Script direct = kThree;
  direct.ops[3].code |= EPLB_OP_DIRECT;
  expect_refusal(direct, 3, "Cannot receive layer 0 slot 0 directly");
}

}  // namespace
