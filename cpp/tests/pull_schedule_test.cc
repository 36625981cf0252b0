// SPDX-License-Identifier: Apache-2.0
// Schedules for GPUs that reach each other, carried out with memcpy, against the naive model. Needs
// no GPU.
#include "pull/pull_schedule.h"

#include <algorithm>
#include <deque>

#include "host_ranks.h"
#include "transport/cell_layout.h"

using namespace eplb;

namespace {

struct Plan {
  StagingPlan staging;
  bool copy_engine_only = false;
  uint32_t ranks_per_gpu = 1;
  bool push_by_kernel = false;
};

// Weights of all ranks, and what the ranks make of a program.
struct World {
  World(const ranks::Script& script, const Plan& plan, std::mt19937_64& random)
      : shape(script.shape), plan(plan) {
    programs.reserve(script.world);
    for (uint32_t rank = 0; rank < script.world; ++rank) {
      bytes.push_back(ranks::random_bytes(shape, random));
      weights.emplace_back(shape).exchange(shape, &bytes.back(), false);
    }
    const CellLayout layout(shape.tensor_bytes);
    staging.assign(script.world,
                   std::string(layout.bytes * plan.staging.cells * plan.staging.sets, '\0'));
    for (uint32_t rank = 0; rank < script.world; ++rank) {
      programs.push_back(
          batches_of(script, static_cast<int32_t>(rank), static_cast<int32_t>(plan.staging.cells)));
      rings.emplace_back(programs.back(), weights[rank].view,
                         plan.staging.cells * plan.staging.sets);
    }
    for (uint32_t rank = 0; rank < script.world; ++rank) make_schedule(rank);
  }

  void make_schedule(uint32_t rank) {
    std::vector<PullPeer> peers;
    PullTask task;
    for (uint32_t peer = 0; peer < programs.size(); ++peer) {
      peers.push_back({weights[peer].view, address_of(staging[peer]),
                       peer / plan.ranks_per_gpu == rank / plan.ranks_per_gpu});
      task.cells.push_back(rings[peer].arrivals.data());
    }
    task.rank = static_cast<int32_t>(rank);
    task.peers = &peers;
    task.staging = plan.staging;
    task.gather_by_engine = task.commit_by_engine = plan.copy_engine_only;
    task.push_by_kernel = plan.push_by_kernel;
    schedules.push_back(make_pull_schedule(programs[rank], rings[rank], task));
  }

  void stage(size_t rank, size_t batch) const {
    const PullSchedule& schedule = schedules[rank];
    for (const Push& push : schedule.batches[batch].push) {
      move(schedule.engine_pieces, push.pieces);
    }
    move(schedule.engine_pieces, schedule.batches[batch].pull);
    move(schedule.engine_pieces, schedule.batches[batch].gather.engine);
    move(schedule.kernel_pieces, schedule.batches[batch].gather.kernel);
  }

  void commit(size_t rank, size_t batch) const {
    const PullSchedule& schedule = schedules[rank];
    for (const Copies& step : schedule.batches[batch].commit) {
      // Backwards: the copies of one step come in any order.
      move(schedule.kernel_pieces, step.kernel, true);
      move(schedule.engine_pieces, step.engine, true);
    }
  }

  static void move(const std::vector<Piece>& pieces, const IndexRange& range,
                   bool backwards = false) {
    for (uint32_t i = range.first; i < range.last; ++i) {
      const Piece& piece = pieces[backwards ? range.first + range.last - 1 - i : i];
      copy_bytes(piece.target, piece.source, piece.bytes);
    }
  }

  const ranks::Shape shape;
  const Plan plan;
  std::vector<ranks::Bytes> bytes;
  std::deque<HostWeights> weights;
  std::vector<std::string> staging;
  std::vector<std::vector<RankBatch>> programs;
  std::deque<StagingRing> rings;
  std::vector<PullSchedule> schedules;
};

// Batches are staged as far ahead as the rings let them.
void execute(const World& world, size_t batches) {
  size_t committed = 0;
  const auto commit_up_to = [&](size_t end) {
    for (; committed < end; ++committed) {
      for (size_t rank = 0; rank < world.schedules.size(); ++rank) world.commit(rank, committed);
    }
  };
  for (size_t batch = 0; batch < batches; ++batch) {
    for (const StagingRing& ring : world.rings) commit_up_to(ring.after[batch]);
    for (size_t rank = 0; rank < world.schedules.size(); ++rank) world.stage(rank, batch);
  }
  commit_up_to(batches);
}

TEST("make_pull_schedule() puts every expert where the naive model puts it") {
  std::mt19937_64 random(1);
  const std::vector<ranks::Shape> shapes = {
      {1, 1, {8}}, {5, 3, {1, 17, 300, 5}}, {9, 6, {2000, 1008, 71, 32}}};
  for (const ranks::Shape& shape : shapes) {
    for (const uint32_t world : {1u, 2u, 5u}) {
      for (const uint64_t small_bytes : {0, 71, 1 << 20}) {
        for (uint32_t i = 0; i < 24; ++i) {
          const Plan plan = {
              {1 + static_cast<uint32_t>(random() % shape.slots), 1 + i % 3, small_bytes},
              i / 2 % 2 == 0,
              1 + i / 4 % 3,
              i / 12 == 1};
          ranks::Script script = ranks::random_script(shape, world, plan.staging.cells, random);
          if (i % 2 == 1) make_direct(&script, random);
          const World all(script, plan, random);
          execute(all, script.batches.size());
          const std::vector<ranks::Bytes> expected =
              script.apply(all.bytes, static_cast<uint32_t>(script.batches.size()));
          for (uint32_t rank = 0; rank < world; ++rank) {
            ranks::Bytes actual = expected[rank];
            all.weights[rank].exchange(all.shape, &actual, true);
            CHECK(actual == expected[rank]);
          }
        }
      }
    }
  }
}

// Rank 0 receives from rank 1 and copies inside itself, each a large and a small tensor.
ranks::Script one_of_each() {
  const ranks::Shape shape = {1, 4, {4096, 16}};
  ranks::Script script{shape, 2, {{0, 1}}, {}};
  script.ops = {{0, 0, 1, EPLB_OP_SEND, 0, 0, 0, 1},
                {0, 0, 0, EPLB_OP_RECEIVE, 0, 1, 1, 0},
                {0, 0, 0, EPLB_OP_COPY, 0, 3, 0, 0}};
  return script;
}

TEST("make_pull_schedule() leaves large tensors of other GPUs to the copy engine") {
  std::mt19937_64 random(2);
  for (const bool copy_engine_only : {false, true}) {
    const World far(one_of_each(), {{4, 1, 16}, copy_engine_only, 1}, random);
    const PullBatch &batch = far.schedules[0].batches[0], &sender = far.schedules[1].batches[0];
    CHECK_EQ(sender.push.size(), 1u);
    CHECK_EQ(sender.push[0].peer, 0);
    CHECK_EQ(size(sender.push[0].pieces), 1u);
    CHECK_EQ(size(sender.gather.engine), 0u);
    CHECK_EQ(size(sender.gather.kernel), 1u);
    CHECK_EQ(batch.push.size(), 0u);
    CHECK_EQ(size(batch.pull) + size(batch.gather.engine) + size(batch.gather.kernel), 0u);
    CHECK_EQ(batch.commit.size(), 1u);
    CHECK_EQ(size(batch.commit[0].engine), copy_engine_only ? 2u : 0u);
    CHECK_EQ(size(batch.commit[0].kernel), copy_engine_only ? 2u : 4u);
    CHECK_EQ(batch.bytes_in, 4112u);
    CHECK_EQ(sender.bytes_out, 4112u);
    const World near(one_of_each(), {{4, 1, 16}, copy_engine_only, 2}, random);
    const PullBatch& neighbour = near.schedules[1].batches[0];
    CHECK_EQ(neighbour.push.size(), 1u);  // rank 0's staging memory has to be free for it, too
    CHECK_EQ(size(neighbour.push[0].pieces), 0u);
    CHECK_EQ(size(neighbour.gather.engine), copy_engine_only ? 1u : 0u);
    CHECK_EQ(size(neighbour.gather.kernel), copy_engine_only ? 1u : 2u);
    CHECK_EQ(near.schedules[0].batches[0].bytes_in, 4112u);
  }
}

TEST("make_pull_schedule() pushes to several GPUs with the kernel, where it is asked to") {
  std::mt19937_64 random(3);
  const World all(one_of_each(), {{4, 1, 16}, false, 1, true}, random);
  const PullBatch& sender = all.schedules[1].batches[0];
  CHECK_EQ(sender.push.size(), 1u);  // rank 0's staging memory has to be free
  CHECK_EQ(size(sender.push[0].pieces), 0u);
  CHECK_EQ(size(sender.gather.kernel), 2u);
  CHECK(all.schedules[1].engine_pieces.empty());
}

TEST("make_pull_schedule() stages direct operations into their slots, and commits nothing") {
  std::mt19937_64 random(5);
  const ranks::Shape shape = {1, 8, {4096, 16}};
  // Slots 4 to 6 from another GPU and slot 7 from slot 0, all direct; slot 1 from slot 0, not.
  ranks::Script script{shape, 2, {{0, 1}}, {}};
  for (int32_t slot = 4; slot < 7; ++slot) {
    script.ops.push_back({0, 0, 1, EPLB_OP_SEND, 0, slot, 0, slot});
    script.ops.push_back({0, 0, 0, EPLB_OP_RECEIVE | EPLB_OP_DIRECT, 0, slot, 1, slot});
  }
  script.ops.push_back({0, 0, 0, EPLB_OP_COPY | EPLB_OP_DIRECT, 0, 7, 0, 0});
  script.ops.push_back({0, 0, 0, EPLB_OP_COPY, 0, 1, 0, 0});
  for (const bool copy_engine_only : {false, true}) {
    const World all(script, {{1, 1, 16}, copy_engine_only, 1}, random);
    const PullSchedule& schedule = all.schedules[0];
    const PullBatch& batch = schedule.batches[0];
    CHECK_EQ(all.schedules[1].batches[0].push.size(), 0u);  // rank 0 fetches them
    CHECK_EQ(size(batch.pull), 1u);                         // three slots in a row
    const Piece& piece = schedule.engine_pieces[batch.pull.first];
    CHECK_EQ(piece.target, all.weights[0].view.at(0, 0, 4));
    CHECK_EQ(piece.source, all.weights[1].view.at(0, 0, 4));
    CHECK_EQ(piece.bytes, 3 * 4096u);
    CHECK_EQ(size(batch.gather.engine), copy_engine_only ? 1u : 0u);
    CHECK_EQ(size(batch.gather.kernel), copy_engine_only ? 2u : 3u);
    CHECK_EQ(batch.commit.size(), 1u);
    CHECK_EQ(size(batch.commit[0].kernel) + size(batch.commit[0].engine), 2u);
    CHECK_EQ(batch.bytes_in, 3 * 4112u);
    all.stage(0, 0);  // all that is direct is there, and nothing else
    ranks::Bytes actual(8, std::string(4112, '\0'));
    all.weights[0].exchange(all.shape, &actual, true);
    const ranks::Bytes expected = script.apply(all.bytes, 1)[0];
    for (int32_t slot = 0; slot < 8; ++slot) {
      CHECK(actual[slot] == (slot == 1 ? all.bytes[0] : expected)[slot]);
    }
  }
}

struct Move {
  int32_t target, source;
};

// What one rank makes of copies inside itself.
PullBatch copies(uint32_t slots, const std::vector<Move>& moves, std::mt19937_64& random) {
  const ranks::Shape shape = {1, slots, {40}};
  ranks::Script script{shape, 1, {{0, 1}}, {}};
  for (const Move& move : moves) {
    script.ops.push_back({0, 0, 0, EPLB_OP_COPY, 0, move.target, 0, move.source});
  }
  const World all(script, {{slots, 1, 0}, false, 1}, random);
  execute(all, 1);
  ranks::Bytes actual = all.bytes[0];
  all.weights[0].exchange(all.shape, &actual, true);
  CHECK(actual == script.apply(all.bytes, 1)[0]);
  return all.schedules[0].batches[0];
}

TEST("make_pull_schedule() stages one copy of each circle inside a rank, and no other") {
  std::mt19937_64 random(4);
  const PullBatch apart = copies(6, {{1, 0}, {2, 0}, {5, 4}}, random);
  CHECK_EQ(size(apart.gather.kernel), 0u);
  CHECK_EQ(apart.commit.size(), 1u);
  const PullBatch chain = copies(4, {{1, 0}, {2, 1}, {3, 2}}, random);
  CHECK_EQ(size(chain.gather.kernel), 0u);
  CHECK_EQ(chain.commit.size(), 3u);
  // Two circles, one with a branch; and a slot that is copied to itself.
  const PullBatch circles =
      copies(8, {{0, 1}, {1, 0}, {2, 3}, {3, 4}, {4, 2}, {5, 2}, {6, 6}}, random);
  CHECK_EQ(size(circles.gather.kernel), 3u);
  for (int i = 0; i < 200; ++i) {
    std::vector<Move> moves;
    for (int32_t slot = 0; slot < 12; ++slot) {
      if (random() % 4 != 0) moves.push_back({slot, static_cast<int32_t>(random() % 12)});
    }
    copies(12, moves, random);
  }
}

TEST("make_pull_schedule() pushes to the next rank first, and so on round the world") {
  std::mt19937_64 random(5);
  const uint32_t world = 5;
  const ranks::Shape shape = {1, 4, {64, 32}};
  ranks::Script script{shape, world, {{0, 1}}, {}};
  for (int32_t rank = 0; rank < 5; ++rank) {
    for (int32_t peer = 0, slot = 0; peer < 5; ++peer) {
      if (peer == rank) continue;
      script.ops.push_back({0, 0, rank, EPLB_OP_RECEIVE, 0, slot, peer, 3 - slot});
      script.ops.push_back({0, 0, peer, EPLB_OP_SEND, 0, 3 - slot, rank, slot});
      ++slot;
    }
  }
  const World all(script, {{4, 1, 0}, false, 1}, random);
  for (uint32_t rank = 0; rank < world; ++rank) {
    const PullSchedule& schedule = all.schedules[rank];
    const std::vector<Push>& pushes = schedule.batches[0].push;
    CHECK_EQ(pushes.size(), 4u);
    for (uint32_t i = 0; i < pushes.size(); ++i) {
      const uint32_t peer = (rank + 1 + i) % world;
      CHECK_EQ(pushes[i].peer, static_cast<int32_t>(peer));
      CHECK_EQ(pushes[i].lane, i);
      CHECK_EQ(size(pushes[i].pieces), 2u);  // two tensors of one expert
      const uint64_t begin = address_of(all.staging[peer]);
      for (uint32_t k = pushes[i].pieces.first; k < pushes[i].pieces.last; ++k) {
        CHECK(schedule.engine_pieces[k].target >= begin);
        CHECK(schedule.engine_pieces[k].target < begin + all.staging[peer].size());
      }
    }
  }
}

TEST("make_pull_schedule() makes one copy of slots that follow each other at both ends") {
  std::mt19937_64 random(3);
  const ranks::Shape shape = {2, 4, {64, 32}};
  ranks::Script script{shape, 2, {{0, 2}}, {}};
  for (int32_t layer = 0; layer < 2; ++layer) {
    for (int32_t slot = 0; slot < 4; ++slot) {
      script.ops.push_back({0, 0, 0, EPLB_OP_RECEIVE, layer, slot, 1, slot});
      script.ops.push_back({0, 0, 1, EPLB_OP_SEND, layer, slot, 0, slot});
    }
  }
  const World all(script, {{8, 1, 0}, true, 1}, random);
  const PullSchedule& schedule = all.schedules[1];
  // A piece for each layer and tensor: two layers may be two allocations side by side.
  const IndexRange& pieces = schedule.batches[0].push[0].pieces;
  CHECK_EQ(size(pieces), 4u);
  CHECK_EQ(size(all.schedules[0].batches[0].commit[0].engine), 4u);
  const Piece& first = schedule.engine_pieces[pieces.first];
  CHECK_EQ(first.bytes, 4 * 64u);
  CHECK_EQ(first.source, all.weights[1].view.address[0]);
}

}  // namespace
