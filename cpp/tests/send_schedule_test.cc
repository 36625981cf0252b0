// SPDX-License-Identifier: Apache-2.0
// Schedules of sends and receives, carried out with memcpy, against the naive model.
#include "nccl/send_schedule.h"

#include <deque>
#include <map>
#include <utility>

#include "host_ranks.h"

using namespace eplb;

namespace {

struct Rank : HostWeights {
  using HostWeights::HostWeights;
  // A rank without neighbors, and its schedule.
  Rank(const ranks::Shape& shape, const StagingPlan& plan, const std::vector<RankBatch>& batches)
      : HostWeights(shape) {
    lower(batches, plan, {});
  }

  // `like`: rank, neighbors and who copies.
  void lower(const std::vector<RankBatch>& batches, const StagingPlan& plan, SendTask like) {
    task = std::move(like);
    task.weights = view;
    const StagingLayout layout(view, plan);
    const uint64_t packed = most_packed(batches, task), sent = most_sent(batches, task);
    staging.assign(plan.sets * layout.set_bytes(), '\0');
    packs.assign(plan.sets * packed * layout.pack_bytes, '\0');
    send_packs.assign(plan.sets * sent * layout.pack_bytes, '\0');
    schedule = make_send_schedule(
        batches, task, layout,
        {address_of(staging), address_of(packs), address_of(send_packs), plan.sets, packed, sent});
  }

  void by_kernel(const IndexRange& range) const { copy_pieces(schedule.kernel_pieces, range); }
  void by_engine(const IndexRange& range) const { copy_pieces(schedule.engine_pieces, range); }
  void move(const Copies& copies) const {
    by_kernel(copies.kernel);
    by_engine(copies.engine);
  }

  std::string staging, packs, send_packs;
  SendTask task;
  SendSchedule schedule;
};

// What NCCL does with the messages of one batch: those of a pair meet in order.
void deliver(const std::vector<Rank>& all, size_t batch) {
  std::map<std::pair<int32_t, int32_t>, std::deque<Message>> sent;
  for (const bool sends : {true, false}) {
    for (size_t r = 0; r < all.size(); ++r) {
      const int32_t rank = static_cast<int32_t>(r);
      for (const IndexRange& round : all[r].schedule.batches[batch].rounds) {
        for (uint32_t i = round.first; i < round.last; ++i) {
          const Message& message = all[r].schedule.messages[i];
          if (message.sends != sends) continue;
          CHECK(all[r].task.neighbor(message.peer) == nullptr);
          if (sends) {
            sent[{rank, message.peer}].push_back(message);
            continue;
          }
          std::deque<Message>& waiting = sent[{message.peer, rank}];
          CHECK(!waiting.empty());
          CHECK_EQ(waiting.front().bytes, message.bytes);
          copy_bytes(message.address, waiting.front().address, message.bytes);
          waiting.pop_front();
        }
      }
    }
  }
  for (const auto& pair : sent) CHECK(pair.second.empty());
}

// The ranks of a random program on random nodes; `nodes` 0: each rank is alone.
std::vector<Rank> lower_all(const ranks::Script& script, const StagingPlan& plan, uint32_t nodes,
                            std::mt19937_64& random) {
  std::vector<Rank> all;
  all.reserve(script.world);  // what neighbors point to stays where it is
  std::vector<uint64_t> node_of;
  for (uint32_t rank = 0; rank < script.world; ++rank) {
    all.emplace_back(script.shape);
    node_of.push_back(nodes == 0 ? rank : random() % nodes);
  }
  for (uint32_t rank = 0; rank < script.world; ++rank) {
    SendTask task;
    task.rank = static_cast<int32_t>(rank);
    task.gather_by_engine = random() % 2 == 0;
    task.commit_by_engine = random() % 2 == 0;
    for (uint32_t peer = 0; peer < script.world; ++peer) {
      const bool near = peer != rank && node_of[peer] == node_of[rank];
      task.neighbors.push_back(near ? &all[peer].view : nullptr);
    }
    const int32_t cells = static_cast<int32_t>(plan.cells);
    all[rank].lower(batches_of(script, task.rank, cells), plan, task);
  }
  return all;
}

void run_batch(const std::vector<Rank>& all, size_t batch) {
  const auto plan = [&](const Rank& rank) -> const SendBatch& {
    return rank.schedule.batches[batch];
  };
  for (const Rank& rank : all) rank.by_kernel(plan(rank).pack);
  for (const Rank& rank : all) rank.by_engine(plan(rank).pull);
  for (const Rank& rank : all) rank.move(plan(rank).copy);
  deliver(all, batch);
  for (const Rank& rank : all) rank.move(plan(rank).commit);
}

TEST(
    "make_send_schedule() puts every expert where the naive model puts it, whoever is a neighbor") {
  std::mt19937_64 random(1);
  size_t pulled = 0, sent = 0, both = 0;
  const std::vector<ranks::Shape> shapes = {
      {1, 1, {8}}, {5, 3, {1, 17, 300, 5}}, {9, 6, {2000, 1000, 71, 35}}};
  for (const ranks::Shape& shape : shapes) {
    for (const uint32_t world : {1u, 2u, 5u}) {
      for (const uint64_t small_bytes : {0, 71, 1 << 20}) {
        for (int i = 0; i < 20; ++i) {
          const StagingPlan plan = {1 + static_cast<uint32_t>(random() % shape.slots),
                                    1 + static_cast<uint32_t>(i % 2), small_bytes};
          ranks::Script script = ranks::random_script(shape, world, plan.cells, random);
          if (i / 2 % 2 == 1) make_direct(&script, random);
          const std::vector<Rank> all =
              lower_all(script, plan, static_cast<uint32_t>(i % 4), random);
          std::vector<ranks::Bytes> memory;
          for (const Rank& rank : all) {
            memory.push_back(ranks::random_bytes(shape, random));
            rank.exchange(shape, &memory.back(), false);
          }
          for (size_t batch = 0; batch < script.batches.size(); ++batch) {
            run_batch(all, batch);
            for (const Rank& rank : all) {
              const SendBatch& plan = rank.schedule.batches[batch];
              pulled += plan.pull.empty() ? 0 : 1;
              sent += plan.rounds.empty() ? 0 : 1;
              both += plan.pull.empty() || plan.rounds.empty() ? 0 : 1;
            }
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
  CHECK(pulled > both + 100 && sent > both + 100 && both > 100);
}

TEST("make_send_schedule() sends all small tensors for one rank in one round as one message") {
  for (const int32_t rank : {0, 1}) {
    const Rank own(kThree.shape, {3, 1, 100}, batches_of(kThree, rank, 3));
    const SendBatch& batch = own.schedule.batches[0];
    CHECK_EQ(batch.rounds.size(), 2u);
    CHECK_EQ(batch.rounds[0].last - batch.rounds[0].first, 5u);  // 2 x 2 large, 1 pack
    CHECK_EQ(batch.rounds[1].last - batch.rounds[1].first, 3u);
    CHECK_EQ(own.schedule.messages[4].bytes, 2u * (112 + 32));  // aligned to 16
    CHECK_EQ(own.schedule.messages[7].bytes, 112u + 32);
    CHECK_EQ(batch.pack.last - batch.pack.first, rank == 0 ? 6u : 0u);
    CHECK_EQ(size(batch.commit.kernel), rank == 0 ? 0u : 12u);
    CHECK(own.schedule.engine_pieces.empty());
    CHECK_EQ(batch.bytes_out, rank == 0 ? 3u * 9120 : 0u);
    CHECK_EQ(batch.bytes_in, rank == 0 ? 0u : 3u * 9120);
  }
}

TEST(
    "make_send_schedule() sends large tensors straight from their slots, aligned where they "
    "arrive") {
  const Rank from(kThree.shape, {3, 1, 100}, batches_of(kThree, 0, 3));
  CHECK_EQ(from.schedule.messages[0].address, from.view.at(0, 0, 0));
  CHECK_EQ(from.schedule.messages[1].address, from.view.at(0, 2, 0));
  CHECK_EQ(from.schedule.messages[2].address, from.view.at(0, 0, 1));
  const Rank to(kThree.shape, {3, 1, 100}, batches_of(kThree, 1, 3));
  for (const uint32_t i : {0, 1, 2, 3, 5, 6}) {
    CHECK_EQ((to.schedule.messages[i].address - address_of(to.staging)) % 256, 0u);
  }
}

TEST(
    "make_send_schedule() receives direct operations without cells, large tensors in their slots") {
  ranks::Script script = kThree;
  for (const size_t i : {1, 5}) script.ops[i].code |= EPLB_OP_DIRECT;  // of slots 2 and 1
  const std::vector<RankBatch> batches = batches_of(script, 1, 1);
  CHECK_EQ(most_packed(batches, {}), 3u);
  const Rank own(script.shape, {1, 1, 100}, batches);
  const SendBatch& batch = own.schedule.batches[0];
  const std::vector<Message>& messages = own.schedule.messages;
  CHECK_EQ(messages.size(), 8u);  // as many as the sender knows of
  CHECK_EQ(messages[0].address, own.view.at(0, 0, 2));
  CHECK_EQ(messages[1].address, own.view.at(0, 2, 2));
  CHECK_EQ(messages[2].address, address_of(own.staging));
  CHECK_EQ(messages[4].bytes, 2u * (112 + 32));
  CHECK_EQ(messages[5].address, own.view.at(0, 0, 1));
  CHECK_EQ(size(batch.commit.kernel), 2u + 4 + 2);  // small; both; small tensors
  CHECK_EQ(batch.bytes_in, 3u * 9120);
}

// Both ranks of kThree as neighbors.
std::vector<Rank> make_neighbors(const std::vector<RankBatch>& sender,
                                 const std::vector<RankBatch>& receiver, bool copy_engine_only) {
  std::vector<Rank> both;
  both.reserve(2);
  for (int rank = 0; rank < 2; ++rank) both.emplace_back(kThree.shape);
  for (const int32_t rank : {0, 1}) {
    SendTask task;
    task.rank = rank;
    task.neighbors = {nullptr, nullptr};
    task.neighbors[1 - rank] = &both[1 - rank].view;
    task.gather_by_engine = task.commit_by_engine = copy_engine_only;
    both[rank].lower(rank == 0 ? sender : receiver, {3, 1, 100}, task);
  }
  return both;
}

TEST(
    "make_send_schedule() sends neighbors nothing, and pulls their large tensors straight from "
    "slots") {
  for (const bool copy_engine_only : {false, true}) {
    const std::vector<Rank> both =
        make_neighbors(batches_of(kThree, 0, 3), batches_of(kThree, 1, 3), copy_engine_only);
    const SendBatch &sender = both[0].schedule.batches[0], &batch = both[1].schedule.batches[0];
    CHECK(both[0].schedule.kernel_pieces.empty() && both[0].schedule.engine_pieces.empty());
    CHECK_EQ(sender.bytes_out, 3u * 9120);
    CHECK_EQ(batch.bytes_in, 3u * 9120);
    CHECK(both[0].schedule.messages.empty() && both[1].schedule.messages.empty());
    CHECK(sender.rounds.empty() && batch.rounds.empty());
    CHECK(both[0].send_packs.empty());
    CHECK_EQ(size(batch.pull), 6u);
    const Piece& first = both[1].schedule.engine_pieces[batch.pull.first];
    CHECK_EQ(first.source, both[0].view.at(0, 0, 0));
    CHECK_EQ(first.target, address_of(both[1].staging));
    CHECK_EQ(size(batch.copy.kernel), 6u);  // small tensors
    CHECK_EQ(size(batch.commit.kernel), copy_engine_only ? 6u : 12u);
    CHECK_EQ(size(batch.commit.engine), copy_engine_only ? 6u : 0u);
  }
}

TEST("make_send_schedule() pulls direct operations into their slots, without packs and commits") {
  ranks::Script script = kThree;
  for (const size_t i : {1, 3, 5}) script.ops[i].code |= EPLB_OP_DIRECT;
  const std::vector<RankBatch> batches = batches_of(script, 1, 1);
  const std::vector<Rank> both = make_neighbors(batches_of(script, 0, 1), batches, false);
  const SendBatch& batch = both[1].schedule.batches[0];
  const std::vector<Piece>& pulls = both[1].schedule.engine_pieces;
  CHECK(both[1].packs.empty());
  CHECK_EQ(size(batch.commit.kernel), 0u);
  CHECK_EQ(size(batch.pull), 6u);
  CHECK_EQ(pulls[0].source, both[0].view.at(0, 0, 0));
  CHECK_EQ(pulls[0].target, both[1].view.at(0, 0, 2));
  CHECK_EQ(both[1].schedule.kernel_pieces[0].target, both[1].view.at(0, 1, 2));
}

TEST("make_send_schedule() pulls from the next rank first, and so on round the world") {
  ranks::Script script;
  script.shape.slots = 4;
  script.shape.tensor_bytes = {64};
  script.world = 4;
  script.batches = {{0, 1}};
  for (const int32_t peer : {0, 1, 3}) {  // slot `peer` of each to the same slot of rank 2
    script.ops.push_back({0, 0, peer, EPLB_OP_SEND, 0, peer, 2, peer});
    script.ops.push_back({0, 0, 2, EPLB_OP_RECEIVE, 0, peer, peer, peer});
  }
  std::mt19937_64 random(5);
  const std::vector<Rank> all = lower_all(script, {3, 1, 0}, 1, random);
  const SendSchedule& schedule = all[2].schedule;
  CHECK_EQ(size(schedule.batches[0].pull), 3u);
  for (uint32_t i = 0; i < 3; ++i) {
    const int32_t peer = std::vector<int32_t>{3, 0, 1}[i];
    CHECK_EQ(schedule.engine_pieces[i].source, all[peer].view.at(0, 0, peer));
  }
}

TEST("make_send_schedule() refuses a batch that needs more cells than there are") {
  const std::vector<RankBatch> batches = batches_of(kThree, 1, 3);
  try {
    const Rank rank(kThree.shape, {2, 1, 0}, batches);
  } catch (const Error& error) {
    CHECK_EQ(error.status, EPLB_INVALID_ARGUMENT);
    CHECK_CONTAINS(error.what(), "needs 3 staging cells and there are 2");
    return;
  }
  CHECK(false);
}

}  // namespace
