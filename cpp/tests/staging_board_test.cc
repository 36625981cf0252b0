// SPDX-License-Identifier: Apache-2.0
// The board of ranks that write into each other's staging memory.
#include "pull/staging_board.h"

#include <atomic>
#include <thread>
#include <vector>

#include "base/error.h"
#include "check.h"

using namespace eplb;

namespace {

StagingRing ring_of(const std::vector<int32_t>& arrivals, const std::vector<uint32_t>& after) {
  WeightsView nothing;
  StagingRing ring({}, nothing, 1);
  ring.arrivals = arrivals;
  ring.after = after;
  return ring;
}

TEST("a board says who has entered a run, what has landed, and who has left") {
  const auto board = StagingBoard::create_local({3, 2, 2});
  CHECK(!board->has_entered(1, 1));
  board->enter(1, 1, ring_of({-1, 2, 0, -1}, {0, 1}));
  CHECK(board->has_entered(1, 1));
  CHECK(!board->has_entered(0, 1));
  CHECK(!board->has_entered(1, 2));
  CHECK_EQ(board->arrivals(1)[1], 2);
  CHECK_EQ(board->arrivals(1)[3], -1);
  CHECK_EQ(board->after(1, 0), 0u);
  CHECK_EQ(board->after(1, 1), 1u);
  CHECK(board->has_landed(1, 1, 0));
  CHECK(!board->has_landed(1, 1, 1));
  board->land(1, 1, 3);
  CHECK(board->has_landed(1, 1, 2));
  CHECK(board->has_landed(1, 1, 3));
  CHECK(!board->has_landed(1, 1, 4));
  CHECK(!board->has_left(1, 1));
  board->leave(1, 1);
  CHECK(board->has_left(1, 1));
  // The next run begins anew, and what was true of the last one stays true.
  board->enter(1, 2, ring_of({5, 6, 7, 8}, {0}));
  CHECK(board->has_landed(1, 1, 1000));
  CHECK(!board->has_landed(1, 2, 1));
  CHECK(!board->has_left(1, 2));
  CHECK_EQ(board->arrivals(1)[3], 8);
}

TEST("processes that open a board see what others write") {
  const auto own = StagingBoard::create_shared({2, 1, 3});
  const auto other = StagingBoard::open_shared(own->reference(), {2, 1, 3});
  other->enter(1, 1, ring_of({1, 0, 2}, {0}));
  other->land(1, 1, 2);
  CHECK(own->has_landed(1, 1, 2));
  CHECK_EQ(own->arrivals(1)[2], 2);
  CHECK(!own->has_entered(0, 1));
}

TEST("a board of other sizes is refused") {
  const auto board = StagingBoard::create_shared({2, 1, 3});
  for (const BoardSize& other : {BoardSize{3, 1, 3}, BoardSize{2, 3, 1}, BoardSize{2, 1, 100}}) {
    std::string error;
    try {
      StagingBoard::open_shared(board->reference(), other);
    } catch (const Error& thrown) {
      error = thrown.what();
    }
    CHECK_CONTAINS(error, "Cannot open staging board");
  }
}

// Under ThreadSanitizer: cells are read only after the word that publishes them.
TEST("who sees a rank in a run sees its cells of that run") {
  constexpr uint32_t kRuns = 200, kExperts = 64;
  const auto board = StagingBoard::create_local({2, 1, kExperts});
  const auto run = [&](int32_t rank) {
    for (uint32_t epoch = 1; epoch <= kRuns; ++epoch) {
      board->enter(rank, epoch,
                   ring_of(std::vector<int32_t>(kExperts, static_cast<int32_t>(epoch)), {0}));
      while (!board->has_entered(1 - rank, epoch)) std::this_thread::yield();
      for (uint32_t i = 0; i < kExperts; ++i) {
        CHECK_EQ(board->arrivals(1 - rank)[i], static_cast<int32_t>(epoch));
      }
      board->land(rank, epoch, 1);  // only then the other one enters the next run
      while (!board->has_landed(1 - rank, epoch, 1)) std::this_thread::yield();
    }
  };
  std::thread other(run, 1);
  run(0);
  other.join();
}

}  // namespace
