// SPDX-License-Identifier: Apache-2.0
// Programs: each refusal, and what a good one becomes.
//
// The problem: 3 layers, 4 slots, a world of 3 of which ranks 0 and 2 are local, 2 staging cells.
#include "engine/program.h"

#include "base/error.h"
#include "ranks.h"

using eplb::Program;
using ranks::Op;

namespace {

const eplb::ProgramLimits kLimits = {3, 4, 3, 2, {2, 0}};

std::vector<int32_t> words(const std::vector<ranks::BatchLayers>& batches,
                           const std::vector<Op>& ops) {
  ranks::Script script;
  script.shape.layers = 3;
  script.shape.slots = 4;
  script.world = 3;
  script.batches = batches;
  script.ops = ops;
  return script.words({0, 1, 2, 3, -1});
}

Program parse(const std::vector<int32_t>& words) {
  return eplb::parse_program(words.data(), words.size(), kLimits);
}

void refused(const std::vector<int32_t>& words, const std::string& part) {
  // A copy of the exact size, so that a sanitizer sees reads beyond it.
  const std::vector<int32_t> exact(words.begin(), words.end());
  try {
    parse(exact);
  } catch (const eplb::Error& error) {
    CHECK_EQ(error.status, EPLB_INVALID_ARGUMENT);
    CHECK_CONTAINS(error.what(), "Cannot run program: ");
    CHECK_CONTAINS(error.what(), part);
    return;
  }
  check::fail(__FILE__, __LINE__, "not refused: ", part);
}

const std::vector<ranks::BatchLayers> kBatches = {{0, 2}, {2, 3}};
enum { kSend = EPLB_OP_SEND, kReceive, kCopy, kDuplicate, kDirect = EPLB_OP_DIRECT };

TEST("parse_program() refuses headers that do not fit") {
  refused({}, "0 words hold no header");
  refused({1, 2, 3}, "3 words hold no header");
  const std::vector<int32_t> good = words(kBatches, {});
  parse(good);
  const auto with = [&](size_t index, int32_t value) {
    std::vector<int32_t> changed = good;
    changed[index] = value;
    return changed;
  };
  refused(with(0, 7), "its first word is 7");
  refused(with(1, 2), "its version is 2, not 1");
  refused(with(2, 3), "not those of 3 batches");
  refused(with(2, -1), "not those of -1 batches");
  refused(with(2, INT32_MAX), "batches");
  refused(with(3, 1), "1 operations");
  refused(with(3, -1), "-1 operations");
  refused(with(3, INT32_MIN), "operations");
  refused(with(4, 4), "it is for 4 layers");
  refused(with(5, 3), "3 slots");
  refused(with(6, 2), "2 ranks");
  refused(with(7, 1), "its last header word is 1");
  std::vector<int32_t> longer = good;
  longer.push_back(0);
  refused(longer, "13 words");
}

TEST("parse_program() refuses batches that do not ascend") {
  refused(words({{0, 2}, {1, 3}}, {}), "batch 1 has layers 1 to 3");
  refused(words({{1, 1}}, {}), "batch 0 has layers 1 to 1");
  refused(words({{2, 1}}, {}), "batch 0 has layers 2 to 1");
  refused(words({{-1, 1}}, {}), "batch 0 has layers -1 to 1");
  refused(words({{2, 4}}, {}), "batch 0 has layers 2 to 4");
}

TEST("parse_program() refuses operations with values out of range") {
  const auto one = [](Op op) { return words(kBatches, {op}); };
  refused(one({2, 0, 0, kSend, 0, 0, 1, 0}), "operation 0 has batch 2");
  refused(one({-1, 0, 0, kSend, 0, 0, 1, 0}), "operation 0 has batch -1");
  refused(one({0, -1, 0, kSend, 0, 0, 1, 0}), "operation 0 has round -1");
  refused(one({0, 0, 1, kSend, 0, 0, 0, 0}), "rank 1, which is not of this engine");
  refused(one({0, 0, 3, kSend, 0, 0, 0, 0}), "rank 3, which is not of this engine");
  refused(one({0, 0, -1, kSend, 0, 0, 0, 0}), "rank -1, which is not of this engine");
  refused(one({0, 0, 0, 0, 0, 0, 1, 0}), "operation 0 has code 0");
  refused(one({0, 0, 0, 5, 0, 0, 1, 0}), "operation 0 has code 5");
  refused(one({0, 0, 0, kDirect, 0, 0, 1, 0}), "operation 0 has code 256");
  refused(one({0, 0, 0, kDirect | 5, 0, 0, 1, 0}), "operation 0 has code 261");
  refused(one({0, 0, 0, 0x200 | kCopy, 0, 0, 0, 1}), "operation 0 has code 515");
  refused(one({0, 0, 0, INT32_MIN | kCopy, 0, 0, 0, 1}), "operation 0 has code -2147483645");
  refused(one({0, 0, 0, kDirect | kSend, 0, 0, 1, 0}), "is a SEND, which cannot be direct");
  refused(one({0, 0, 0, kDirect | kDuplicate, 0, 0, 0, 1}), "is a DUPLICATE, which cannot be");
  refused(one({0, 0, 0, kSend, 0, 0, 3, 0}), "operation 0 has peer 3 in a world of 3");
  refused(one({0, 0, 0, kSend, 0, 0, -1, 0}), "operation 0 has peer -1");
  refused(one({0, 0, 0, kSend, 0, 0, 0, 0}), "is a SEND of rank 0 with peer 0");
  refused(one({0, 0, 0, kReceive, 0, 0, 0, 0}), "is a RECEIVE of rank 0 with peer 0");
  refused(one({0, 0, 0, kCopy, 0, 0, 1, 0}), "is a COPY of rank 0 with peer 1");
  refused(one({0, 0, 0, kDuplicate, 0, 0, 1, 0}), "is a DUPLICATE of rank 0 with peer 1");
  refused(one({0, 0, 0, kCopy, 2, 0, 0, 1}), "has layer 2, but batch 0 has layers 0 to 2");
  refused(one({1, 0, 0, kCopy, 1, 0, 0, 1}), "has layer 1, but batch 1 has layers 2 to 3");
  refused(one({0, 0, 0, kCopy, 0, 4, 0, 1}), "operation 0 has slot 4");
  refused(one({0, 0, 0, kCopy, 0, -1, 0, 1}), "operation 0 has slot -1");
  refused(one({0, 0, 0, kCopy, 0, 0, 0, 4}), "operation 0 has peer slot 4");
}

TEST("parse_program() refuses operations out of order") {
  refused(words(kBatches, {{1, 0, 0, kCopy, 2, 0, 0, 1}, {0, 0, 0, kCopy, 0, 0, 0, 1}}),
          "operation 1 (batch 0, round 0) comes after batch 1, round 0");
  refused(words(kBatches, {{0, 2, 0, kCopy, 0, 0, 0, 1}, {0, 1, 0, kCopy, 1, 0, 0, 1}}),
          "operation 1 (batch 0, round 1) comes after batch 0, round 2");
}

TEST("parse_program() refuses a slot that is written twice") {
  refused(words(kBatches, {{0, 0, 0, kCopy, 0, 3, 0, 1}, {0, 1, 0, kReceive, 0, 3, 1, 1}}),
          "operation 1 writes layer 0, slot 3 of rank 0 a second time");
  refused(words(kBatches, {{0, 0, 0, kCopy, 0, 3, 0, 1}, {0, 1, 0, kDuplicate, 0, 3, 0, 3}}),
          "a second time");
  parse(words(kBatches, {{0, 0, 0, kCopy, 0, 3, 0, 1}, {0, 1, 2, kCopy, 0, 3, 2, 1}}));
  parse(words(kBatches, {{0, 0, 0, kCopy, 0, 3, 0, 1}, {0, 1, 0, kCopy, 1, 3, 0, 1}}));
}

TEST("parse_program() refuses duplicates of what does not come in") {
  refused(words(kBatches, {{0, 0, 0, kDuplicate, 0, 3, 0, 1}}),
          "operation 0 duplicates layer 0, slot 1 of rank 0");
  refused(words(kBatches, {{0, 0, 0, kCopy, 0, 1, 0, 2}, {0, 0, 0, kDuplicate, 1, 3, 0, 1}}),
          "operation 1 duplicates layer 1, slot 1");
  refused(words(kBatches, {{0, 0, 0, kCopy, 0, 1, 0, 2},
                           {0, 0, 0, kDuplicate, 0, 3, 0, 1},
                           {0, 0, 0, kDuplicate, 0, 0, 0, 3}}),
          "operation 2 duplicates layer 0, slot 3");
}

TEST("parse_program() refuses more incoming experts than staging cells") {
  refused(words(kBatches, {{0, 0, 2, kCopy, 0, 0, 2, 3},
                           {0, 0, 2, kCopy, 0, 1, 2, 3},
                           {0, 0, 2, kCopy, 1, 0, 2, 3}}),
          "operation 2 needs staging cell 2 of rank 2 in batch 0, which has 2");
}

TEST("parse_program() refuses transfers between local ranks whose ends differ") {
  refused(words(kBatches, {{0, 0, 0, kSend, 0, 1, 2, 3}}), "operation 0, a SEND, has no other end");
  refused(words(kBatches, {{0, 0, 2, kReceive, 0, 3, 0, 1}}), "a RECEIVE, has no other end");
  refused(words(kBatches, {{0, 0, 0, kSend, 0, 1, 2, 3}, {0, 0, 2, kReceive, 0, 2, 0, 1}}),
          "operation 0, a SEND, does not fit operation 1, a RECEIVE");
  refused(words(kBatches, {{0, 0, 0, kSend, 0, 1, 2, 3}, {0, 1, 2, kReceive, 0, 3, 0, 1}}),
          "does not fit");
  // In another order at the two ends.
  refused(words(kBatches, {{0, 0, 0, kSend, 0, 1, 2, 3},
                           {0, 0, 0, kSend, 0, 0, 2, 2},
                           {0, 0, 2, kReceive, 0, 2, 0, 0},
                           {0, 0, 2, kReceive, 0, 3, 0, 1}}),
          "does not fit");
  // The other end is in another process, and is not ours to check.
  parse(words(kBatches, {{0, 0, 0, kSend, 0, 1, 1, 3}, {0, 0, 2, kReceive, 0, 3, 1, 1}}));
}

TEST("parse_program() gives each local rank its operations, cells and commits") {
  const Program program = parse(words(kBatches, {{0, 0, 0, kSend, 0, 1, 2, 3},
                                                 {0, 0, 2, kDuplicate, 0, 0, 2, 3},
                                                 {0, 0, 2, kCopy, 1, 2, 2, 1},
                                                 {0, 0, 2, kReceive, 0, 3, 0, 1},
                                                 {1, 5, 0, kReceive, 2, 0, 1, 2}}));
  CHECK_EQ(program.size(), 2u);  // ranks 2 and 0, in the engine's order
  CHECK_EQ(program[0].size(), 2u);
  const eplb::RankBatch& batch = program[0][0];
  CHECK_EQ(batch.operations.size(), 2u);
  CHECK_EQ(batch.operations[0].code, +kCopy);
  CHECK_EQ(batch.operations[1].code, +kReceive);
  CHECK_EQ(batch.operations[1].peer_slot, 1);
  CHECK_EQ(batch.commits.size(), 3u);
  CHECK_EQ(batch.commits[0].cell, 0);
  CHECK_EQ(batch.commits[1].cell, 1);
  CHECK_EQ(batch.commits[2].slot, 0);
  CHECK_EQ(batch.commits[2].cell, 1);  // the duplicate, of the received expert
  CHECK_EQ(program[0][1].operations.size(), 0u);
  CHECK_EQ(program[1][0].operations[0].code, +kSend);
  CHECK_EQ(program[1][0].commits.size(), 0u);
  CHECK_EQ(program[1][1].operations[0].round, 5);
}

TEST("parse_program() gives direct operations no cell and no commit") {
  // Two that are direct and two that are not, where there are two cells.
  const Program program = parse(words(kBatches, {{0, 0, 0, kSend, 0, 1, 2, 3},
                                                 {0, 0, 2, kReceive | kDirect, 0, 3, 0, 1},
                                                 {0, 0, 2, kCopy, 0, 0, 2, 1},
                                                 {0, 0, 2, kCopy | kDirect, 0, 2, 2, 1},
                                                 {0, 1, 2, kReceive, 1, 3, 1, 1}}));
  const eplb::RankBatch& batch = program[0][0];
  CHECK_EQ(batch.operations.size(), 4u);
  for (size_t i = 0; i < 4; ++i) {
    const bool direct = i == 0 || i == 2;
    CHECK_EQ(batch.operations[i].code, i % 3 == 0 ? +kReceive : +kCopy);
    CHECK_EQ(batch.operations[i].direct, direct);
    CHECK_EQ(batch.operations[i].takes_cell(), !direct);
  }
  CHECK_EQ(batch.commits.size(), 2u);
  CHECK_EQ(batch.commits[0].slot, 0);
  CHECK_EQ(batch.commits[0].cell, 0);
  CHECK_EQ(batch.commits[1].layer, 1);
  CHECK_EQ(batch.commits[1].cell, 1);
  CHECK(!program[1][0].operations[0].takes_cell());  // the SEND
}

TEST("parse_program() refuses to read what is written directly, and to write it twice") {
  const Op direct = {0, 0, 2, kReceive | kDirect, 0, 3, 1, 1};
  const auto with = [&](Op op) { return words(kBatches, {op, direct}); };
  refused(with({0, 0, 2, kDuplicate, 0, 0, 2, 3}),
          "operation 0 duplicates layer 0, slot 3 of rank 2, which is written directly");
  refused(with({0, 0, 2, kSend, 0, 3, 1, 0}),
          "operation 0, a SEND, reads layer 0, slot 3 of rank 2, which is written directly");
  refused(with({0, 0, 2, kCopy, 0, 0, 2, 3}),
          "operation 0, a COPY, reads layer 0, slot 3 of rank 2, which is written directly");
  refused(with({0, 0, 2, kCopy | kDirect, 0, 0, 2, 3}), "operation 0, a COPY, reads layer 0");
  refused(words(kBatches, {{0, 0, 2, kCopy | kDirect, 0, 0, 2, 0}}), "reads layer 0, slot 0");
  refused(with({0, 0, 2, kCopy, 0, 3, 2, 0}), "a second time");
  refused(with({0, 0, 2, kReceive | kDirect, 0, 3, 1, 0}), "a second time");
  parse(with({0, 0, 2, kSend, 1, 3, 1, 0}));                       // of another layer
  parse(words(kBatches, {{0, 0, 0, kSend, 0, 3, 1, 0}, direct}));  // of another rank
}

TEST("parse_program() survives damaged words") {
  std::mt19937_64 random(7);
  const std::vector<int32_t> good = words(kBatches, {{0, 0, 0, kSend, 0, 1, 2, 3},
                                                     {0, 0, 2, kReceive, 0, 3, 0, 1},
                                                     {0, 1, 2, kDuplicate, 0, 0, 2, 3},
                                                     {0, 1, 2, kCopy | kDirect, 0, 1, 2, 2}});
  int accepted = 0;
  for (int i = 0; i < 20000; ++i) {
    std::vector<int32_t> damaged = good;
    const int32_t values[] = {-1, 0,     1,         2,         3,
                              4,  0x102, INT32_MAX, INT32_MIN, static_cast<int32_t>(random())};
    for (uint64_t k = 0; k <= random() % 3; ++k) {
      damaged[random() % damaged.size()] = values[random() % 10];
    }
    try {
      parse(damaged);
      ++accepted;
    } catch (const eplb::Error& error) {
      CHECK_EQ(error.status, EPLB_INVALID_ARGUMENT);
    }
  }
  CHECK(accepted > 0);
  CHECK(accepted < 20000);
}

}  // namespace
