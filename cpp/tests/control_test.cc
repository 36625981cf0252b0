// SPDX-License-Identifier: Apache-2.0
// Fences: all ranks read one decision, whoever gives up, and whenever.
#include "pull/control.h"

#include <atomic>
#include <mutex>
#include <optional>
#include <random>
#include <thread>

#include "base/crew.h"
#include "check.h"

using eplb::Cancellation;
using eplb::Control;
using eplb::Error;

namespace {

using Clock = std::chrono::steady_clock;
constexpr uint32_t kBatches = 4;

// One rank's way through a run: arrive and wait, fence by fence; after a failure, what was decided.
struct Rank {
  uint32_t committed = 0;
  std::optional<Error> error;

  template <class Step>
  void pass(Control& control, uint32_t epoch, int32_t rank, Cancellation& cancellation,
            uint32_t ahead, Step step) {
    uint32_t arrived = 0;
    committed = 0;
    try {
      control.enter(epoch, kBatches);
      for (; arrived < kBatches; ++arrived) {
        if (arrived - committed == ahead) {
          control.wait(epoch, committed, rank, cancellation);
          ++committed;
        }
        step(arrived);
        control.arrive(epoch, arrived, rank);
      }
      for (; committed < kBatches; ++committed) {
        control.wait(epoch, committed, rank, cancellation);
      }
      control.arrive(epoch, kBatches, rank);
      control.wait(epoch, kBatches, rank, cancellation);
    } catch (const Error& caught) {
      error = caught;
      while (control.resolve(epoch, committed, rank, caught) && committed < kBatches) ++committed;
    }
  }
};

void let_pass(uint64_t spins) {
  for (std::atomic<uint64_t> i{0}; i < spins; ++i) {
  }
}

void rounds_of_failures(uint32_t world, uint32_t rounds, uint32_t ahead) {
  std::mt19937_64 random(world + ahead);
  eplb::Crew crew(world);
  std::vector<uint32_t> seen(kBatches + 1);
  for (uint32_t round = 0; round < rounds; ++round) {
    const auto control = Control::create_local(world, kBatches + 1);
    std::vector<Rank> ranks(world);
    std::vector<Cancellation> cancellations(world);
    const int32_t quitter = static_cast<int32_t>(random() % world);
    const uint32_t moment = static_cast<uint32_t>(random() % kBatches), way = random() % 3;
    const uint64_t pause = random() % 3000;
    crew.run([&](size_t i) {
      const int32_t rank = static_cast<int32_t>(i);
      Cancellation& own = cancellations[i];
      own.reset(Clock::now() + std::chrono::seconds(20));
      ranks[i].pass(*control, 1, rank, own, ahead, [&](uint32_t fence) {
        if (rank != quitter || fence != moment) return;
        let_pass(pause);
        if (way == 0) throw Error(EPLB_CUDA_ERROR, "test", rank);                 // while staging
        if (way == 1) own.cancel(EPLB_ABORTED, -1, "test");                       // in a wait
        if (way == 2) own.reset(Clock::now() + std::chrono::nanoseconds(pause));  // by time
      });
    });
    // A cancellation may come too late to matter: then all ranks have come to the end.
    const bool failed = ranks[quitter].error.has_value();
    CHECK(failed || way != 0);
    for (uint32_t i = 0; i < world; ++i) {
      CHECK_EQ(ranks[i].committed, failed ? ranks[quitter].committed : kBatches);
      CHECK_EQ(ranks[i].error.has_value(), failed);
      if (!failed || static_cast<int32_t>(i) == quitter) continue;
      CHECK_EQ(ranks[i].error->status, EPLB_PEER_FAILED);
      if (way != 2) CHECK_EQ(ranks[i].error->rank, quitter);
      CHECK_CONTAINS(ranks[i].error->what(), "rank " + std::to_string(quitter) + " gave up: ");
    }
    ++seen[ranks[0].committed];
  }
  for (uint32_t i = 0; i < kBatches; ++i) CHECK(seen[i] > 0);  // all moments were met
}

TEST("ranks agree on what is committed when one gives up at a random moment") {
  rounds_of_failures(2, 3000, 1);
  rounds_of_failures(3, 3000, 2);
  rounds_of_failures(8, 500, 2);
}

TEST("ranks agree when several give up at the same time") {
  std::mt19937_64 random(5);
  constexpr uint32_t kWorld = 4;
  eplb::Crew crew(kWorld);
  for (int round = 0; round < 2000; ++round) {
    const auto control = Control::create_local(kWorld, kBatches + 1);
    Cancellation cancellation;  // of all
    std::vector<Rank> ranks(kWorld);
    std::vector<uint64_t> pauses;
    for (uint32_t i = 0; i < kWorld; ++i) pauses.push_back(random() % 2000);
    const uint32_t moment = static_cast<uint32_t>(random() % kBatches);
    crew.run([&](size_t i) {
      ranks[i].pass(*control, 1, static_cast<int32_t>(i), cancellation, 2, [&](uint32_t fence) {
        if (fence != moment || i % 2 == 0) return;
        let_pass(pauses[i]);
        cancellation.cancel(EPLB_ABORTED, -1, "test");
      });
    });
    for (const Rank& rank : ranks) {
      CHECK_EQ(rank.committed, ranks[0].committed);
      CHECK_EQ(rank.error.has_value(), ranks[0].error.has_value());
    }
  }
}

TEST("one control block serves run after run, with different numbers of batches") {
  constexpr uint32_t kWorld = 3;
  const auto control = Control::create_local(kWorld, kBatches + 1);
  eplb::Crew crew(kWorld);
  Cancellation cancellation;
  cancellation.reset(Clock::now() + std::chrono::seconds(60));
  std::atomic<int> failures{0};
  crew.run([&](size_t i) {
    const int32_t rank = static_cast<int32_t>(i);
    try {
      for (uint32_t epoch = 1; epoch <= 1000; ++epoch) {
        const uint32_t batches = epoch * 7 % (kBatches + 1);
        control->enter(epoch, batches);
        for (uint32_t fence = 0; fence <= batches; ++fence) {
          control->arrive(epoch, fence, rank);
          control->wait(epoch, fence, rank, cancellation);
        }
      }
    } catch (const Error&) {
      ++failures;
    }
  });
  CHECK_EQ(failures.load(), 0);
}

TEST("wait() returns nowhere before the last rank has arrived") {
  constexpr uint32_t kWorld = 4;
  eplb::Crew crew(kWorld);
  for (uint32_t epoch = 1; epoch <= 500; ++epoch) {
    const auto control = Control::create_local(kWorld, 1);
    Cancellation cancellation;
    std::atomic<uint32_t> arrivals{0}, early{0};
    int plain[kWorld] = {};  // a race for a sanitizer, unless the fence orders it
    crew.run([&](size_t i) {
      plain[i] = 1;
      ++arrivals;
      control->arrive(epoch, 0, static_cast<int32_t>(i));
      control->wait(epoch, 0, static_cast<int32_t>(i), cancellation);
      if (arrivals != kWorld) ++early;
      for (const int value : plain) early += value == 1 ? 0 : 1;
    });
    CHECK_EQ(early.load(), 0u);
  }
}

TEST("wait() names the ranks that are late when the time limit passes") {
  const auto control = Control::create_local(4, 3);
  Cancellation cancellation;
  cancellation.reset(Clock::now() + std::chrono::milliseconds(25));
  control->enter(1, 2);
  control->arrive(1, 0, 0);
  control->arrive(1, 0, 2);
  const Clock::time_point start = Clock::now();
  try {
    control->wait(1, 0, 0, cancellation);
    check::fail(__FILE__, __LINE__, "it returned");
  } catch (const Error& error) {
    CHECK_EQ(error.status, EPLB_TIMEOUT);
    CHECK_EQ(error.rank, 1);
    CHECK_EQ(
        std::string(error.what()),
        "Cannot commit batch 0: the time limit has passed, and rank 1 and 1 more have not come "
        "so far");
  }
  CHECK(Clock::now() - start >= std::chrono::milliseconds(24));
  try {
    control->arrive(1, 0, 3);
    check::fail(__FILE__, __LINE__, "it returned");
  } catch (const Error& error) {
    CHECK_EQ(error.status, EPLB_PEER_FAILED);
    CHECK_EQ(error.rank, 1);
    CHECK_CONTAINS(error.what(), "Cannot commit batch 0: rank 0 gave up: Cannot commit batch 0: ");
  }
}

TEST("resolve() after the last arrival is a commit, whatever the caller wants") {
  const auto control = Control::create_local(2, 2);
  control->enter(1, 1);
  control->arrive(1, 0, 0);
  control->arrive(1, 0, 1);
  CHECK(control->resolve(1, 0, 0, Error(EPLB_ABORTED, "test")));
  CHECK(!control->resolve(1, 1, 0, Error(EPLB_ABORTED, "test")));
  CHECK(!control->resolve(1, 1, 1, Error(EPLB_ABORTED, "other")));
}

TEST("enter() refuses another number of batches in the same run") {
  const auto control = Control::create_local(2, 8);
  control->enter(1, 3);
  control->enter(1, 3);
  try {
    control->enter(1, 4);
    check::fail(__FILE__, __LINE__, "it returned");
  } catch (const Error& error) {
    CHECK_EQ(error.status, EPLB_PEER_MISMATCH);
    CHECK_EQ(std::string(error.what()),
             "Cannot begin run 1 of 4 batches: another rank is in run 1 of 3 batches");
  }
  control->enter(2, 4);
}

}  // namespace
