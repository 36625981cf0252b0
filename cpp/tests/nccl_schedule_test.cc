// SPDX-License-Identifier: Apache-2.0
// Schedules for NCCL, carried out with memcpy, against the naive model. Needs no GPU.
#include "nccl_schedule.h"

#include <cstring>
#include <deque>
#include <map>
#include <utility>

#include "program.h"
#include "ranks.h"

using namespace eplb;

namespace {

uint64_t address_of(const std::string& memory) { return reinterpret_cast<uint64_t>(memory.data()); }

void copy(uint64_t target, uint64_t source, uint64_t bytes) {
  std::memcpy(reinterpret_cast<void*>(target), reinterpret_cast<const void*>(source), bytes);
}

// One rank: weights tensor by tensor, as serving engines hold them, and its staging memory.
struct Rank {
  Rank(const ranks::Shape& shape, const StagingPlan& plan, const std::vector<RankBatch>& batches) {
    view.layers = static_cast<int32_t>(shape.layers);
    view.slots = static_cast<int32_t>(shape.slots);
    view.tensors = static_cast<int32_t>(shape.tensors());
    view.tensor_bytes = shape.tensor_bytes;
    weights.assign(shape.layers * shape.slots * shape.expert_bytes(), '\0');
    uint64_t at = address_of(weights);
    for (uint32_t i = 0; i < shape.layers * shape.tensors(); ++i) {
      const uint64_t bytes = shape.tensor_bytes[i % shape.tensors()];
      view.address.push_back(at);
      view.stride.push_back(bytes);
      at += bytes * shape.slots;
    }
    const StagingLayout layout(view, plan);
    staging.assign(plan.sets * layout.set_bytes(), '\0');
    packs.assign(plan.sets * most_packed(batches) * layout.pack_bytes, '\0');
    send_packs.assign(plan.sets * most_sent(batches) * layout.pack_bytes, '\0');
    schedule = make_schedule(batches, view, layout,
                             {address_of(staging), address_of(packs), address_of(send_packs),
                              plan.sets, most_packed(batches), most_sent(batches)});
  }

  // Copies between the weights and what the naive model works on.
  void exchange(const ranks::Shape& shape, ranks::Bytes* bytes, bool out) const {
    for (uint32_t i = 0; i < bytes->size(); ++i) {
      uint64_t at = address_of((*bytes)[i]);
      for (uint32_t tensor = 0; tensor < shape.tensors(); ++tensor) {
        const uint64_t own =
            view.at(static_cast<int32_t>(i / shape.slots), static_cast<int32_t>(tensor),
                    static_cast<int32_t>(i % shape.slots));
        out ? copy(at, own, shape.tensor_bytes[tensor]) : copy(own, at, shape.tensor_bytes[tensor]);
        at += shape.tensor_bytes[tensor];
      }
    }
  }

  void move(const IndexRange& range) const {
    for (uint32_t i = range.first; i < range.last; ++i) {
      const Piece& piece = schedule.pieces[i];
      copy(piece.target, piece.source, piece.bytes);
    }
  }

  WeightsView view;
  std::string weights, staging, packs, send_packs;
  Schedule schedule;
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
          if (sends) {
            sent[{rank, message.peer}].push_back(message);
            continue;
          }
          std::deque<Message>& waiting = sent[{message.peer, rank}];
          CHECK(!waiting.empty());
          CHECK_EQ(waiting.front().bytes, message.bytes);
          copy(message.address, waiting.front().address, message.bytes);
          waiting.pop_front();
        }
      }
    }
  }
  for (const auto& pair : sent) CHECK(pair.second.empty());
}

std::vector<RankBatch> batches_of(const ranks::Script& script, int32_t rank, int32_t cells) {
  const std::vector<int32_t> words = script.words({rank});
  const ProgramLimits limits = {static_cast<int32_t>(script.shape.layers),
                                static_cast<int32_t>(script.shape.slots),
                                static_cast<int32_t>(script.world),
                                cells,
                                {rank}};
  return parse_program(words.data(), words.size(), limits)[0];
}

TEST("make_schedule() puts every expert where the naive model puts it") {
  std::mt19937_64 random(1);
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
          std::vector<Rank> all;
          all.reserve(world);
          std::vector<ranks::Bytes> memory;
          for (uint32_t rank = 0; rank < world; ++rank) {
            all.emplace_back(
                shape, plan,
                batches_of(script, static_cast<int32_t>(rank), static_cast<int32_t>(plan.cells)));
            memory.push_back(ranks::random_bytes(shape, random));
            all[rank].exchange(shape, &memory.back(), false);
          }
          for (size_t batch = 0; batch < script.batches.size(); ++batch) {
            for (const Rank& rank : all) rank.move(rank.schedule.batches[batch].pack);
            for (const Rank& rank : all) rank.move(rank.schedule.batches[batch].copy);
            deliver(all, batch);
            for (const Rank& rank : all) rank.move(rank.schedule.batches[batch].commit);
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
}

// Two experts from rank 0 to rank 1 in one round, and a third in the next.
const ranks::Script kThree = [] {
  ranks::Script three;  // field by field: GCC 12 takes the aggregate for uninitialized
  three.shape.slots = 3;
  three.shape.tensor_bytes = {5000, 100, 4000, 20};
  three.world = 2;
  three.batches = {{0, 1}};
  three.ops = {{0, 0, 0, EPLB_OP_SEND, 0, 0, 1, 2},    {0, 0, 1, EPLB_OP_RECEIVE, 0, 2, 0, 0},
               {0, 0, 0, EPLB_OP_SEND, 0, 1, 1, 0},    {0, 0, 1, EPLB_OP_RECEIVE, 0, 0, 0, 1},
               {0, 1, 0, EPLB_OP_SEND, 0, 2, 1, 1},    {0, 1, 1, EPLB_OP_RECEIVE, 0, 1, 0, 2}};
  return three;
}();

TEST("make_schedule() sends all small tensors for one rank in one round as one message") {
  for (const int32_t rank : {0, 1}) {
    const Rank own(kThree.shape, {3, 1, 100}, batches_of(kThree, rank, 3));
    const BatchSchedule& batch = own.schedule.batches[0];
    CHECK_EQ(batch.rounds.size(), 2u);
    CHECK_EQ(batch.rounds[0].last - batch.rounds[0].first, 5u);  // 2 x 2 large, 1 pack
    CHECK_EQ(batch.rounds[1].last - batch.rounds[1].first, 3u);
    CHECK_EQ(own.schedule.messages[4].bytes, 2u * (112 + 32));  // aligned to 16
    CHECK_EQ(own.schedule.messages[7].bytes, 112u + 32);
    CHECK_EQ(batch.pack.last - batch.pack.first, rank == 0 ? 6u : 0u);
    CHECK_EQ(batch.commit.last - batch.commit.first, rank == 0 ? 0u : 12u);
    CHECK_EQ(batch.bytes_out, rank == 0 ? 3u * 9120 : 0u);
    CHECK_EQ(batch.bytes_in, rank == 0 ? 0u : 3u * 9120);
  }
}

TEST("make_schedule() sends large tensors straight from their slots, aligned where they arrive") {
  const Rank from(kThree.shape, {3, 1, 100}, batches_of(kThree, 0, 3));
  CHECK_EQ(from.schedule.messages[0].address, from.view.at(0, 0, 0));
  CHECK_EQ(from.schedule.messages[1].address, from.view.at(0, 2, 0));
  CHECK_EQ(from.schedule.messages[2].address, from.view.at(0, 0, 1));
  const Rank to(kThree.shape, {3, 1, 100}, batches_of(kThree, 1, 3));
  for (const uint32_t i : {0, 1, 2, 3, 5, 6}) {
    CHECK_EQ((to.schedule.messages[i].address - address_of(to.staging)) % 256, 0u);
  }
}

TEST("make_schedule() receives direct operations without cells, large tensors in their slots") {
  ranks::Script script = kThree;
  for (const size_t i : {1, 5}) script.ops[i].code |= EPLB_OP_DIRECT;  // of slots 2 and 1
  const std::vector<RankBatch> batches = batches_of(script, 1, 1);
  CHECK_EQ(most_packed(batches), 3u);
  const Rank own(script.shape, {1, 1, 100}, batches);
  const BatchSchedule& batch = own.schedule.batches[0];
  const std::vector<Message>& messages = own.schedule.messages;
  CHECK_EQ(messages.size(), 8u);  // as many as the sender knows of
  CHECK_EQ(messages[0].address, own.view.at(0, 0, 2));
  CHECK_EQ(messages[1].address, own.view.at(0, 2, 2));
  CHECK_EQ(messages[2].address, address_of(own.staging));
  CHECK_EQ(messages[4].bytes, 2u * (112 + 32));
  CHECK_EQ(messages[5].address, own.view.at(0, 0, 1));
  CHECK_EQ(batch.commit.last - batch.commit.first, 2u + 4 + 2);  // small; both; small tensors
  CHECK_EQ(batch.bytes_in, 3u * 9120);
}

TEST("make_schedule() refuses a batch that needs more cells than there are") {
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
