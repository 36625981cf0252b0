// SPDX-License-Identifier: Apache-2.0
// The pull transport on GPUs, by threads of one process, against the naive model. Needs one GPU.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <thread>

#include "gpu_ranks.h"

using namespace ranks;

namespace {

constexpr uint64_t kConnectMs = 60000;
constexpr uint64_t kRunMs = 30000;

const int32_t kGpus = require_gpus();

int32_t gpu_of(uint32_t rank) { return static_cast<int32_t>(rank) % kGpus; }

uint32_t count(const Script& script) { return static_cast<uint32_t>(script.batches.size()); }

struct GpuWorld {
  GpuWorld(const Shape& shape, uint32_t world, const PullOptions& options, bool engine_per_rank)
      : shape(shape) {
    for (uint32_t rank = 0; rank < world; ++rank) {
      weights.emplace_back(shape, gpu_of(rank), options.registered);
    }
    const uint32_t locals = engine_per_rank ? 1 : world;
    for (uint32_t first = 0; first < world; first += locals) {
      std::vector<int32_t> own;
      std::vector<eplb_handle> handles;
      for (uint32_t rank = first; rank < first + locals; ++rank) {
        own.push_back(static_cast<int32_t>(rank));
        handles.push_back(weights[rank].handle());
      }
      engines.emplace_back(pull_config(world, locals, options), own, handles);
      for (uint32_t i = 0; i < locals; ++i) blobs.push_back(engines.back().blob(i));
    }
    std::vector<Outcome> outcomes(engines.size());
    in_parallel(engines.size(),
                [&](size_t i) { outcomes[i] = connect(engines[i], blobs, kConnectMs); });
    for (const Outcome& outcome : outcomes) CHECK_EQ(outcome.error, "");
  }

  std::vector<RunReport> run_all(const Script& script, uint64_t bytes_per_second = 0) const {
    std::vector<RunReport> reports(engines.size());
    const eplb_run_config config = run_config(kRunMs, false, bytes_per_second);
    in_parallel(engines.size(), [&](size_t i) { reports[i] = run(engines[i], script, config); });
    return reports;
  }

  std::vector<Bytes> fill(std::mt19937_64& random) const {
    return fill_all(weights, shape, random);
  }
  void expect(const std::vector<Bytes>& expected, const std::string& what) const {
    expect_all(weights, expected, what);
  }

  Shape shape;
  std::vector<GpuWeights> weights;
  std::vector<Engine> engines;
  std::vector<std::vector<char>> blobs;
};

TEST("eplb_engine_run() puts every expert where the naive model puts it") {
  std::mt19937_64 random(1);
  const std::vector<Shape> shapes = {
      {3, 2, {8}},                                 // one tensor, nothing to align
      {7, 5, {1, 17, 4096, 100003}},               // sizes that are no multiples of anything
      {6, 4, {512 << 10, 256 << 10, 7168, 3584}},  // proportions of a quantized expert
  };
  uint32_t turn = 0;
  for (const Shape& shape : shapes) {
    const uint64_t most = *std::max_element(shape.tensor_bytes.begin(), shape.tensor_bytes.end());
    for (const uint64_t small_bytes : {uint64_t{0}, uint64_t{8192}, most}) {
      for (const uint32_t world : {1u, 2u, 3u, 8u}) {
        const bool registered = turn % 4 == 3, per_rank = turn % 3 == 1, engine = turn % 2 == 0;
        const PullOptions options = {1 + static_cast<uint32_t>(random() % shape.slots),
                                     1 + static_cast<uint32_t>(random() % 4), small_bytes,
                                     turn / 2 % 2 == 0 ? engine : !engine, registered};
        ++turn;
        const GpuWorld all(shape, world, options, per_rank);
        std::vector<Bytes> expected = all.fill(random);
        for (int i = 0; i < 4; ++i) {  // the same engines, one program after the other
          const Script script = random_script(shape, world, options.cells, random);
          for (const RunReport& report : all.run_all(script)) {
            CHECK_EQ(report.outcome.error, "");
            CHECK_EQ(report.result.committed_batches, count(script));
          }
          expected = script.apply(expected, count(script));
        }
        all.expect(expected, "after four runs");
      }
    }
  }
}

// Experts that the rank gathers.
uint64_t gathered(const Script& script, int32_t rank) {
  return std::count_if(script.ops.begin(), script.ops.end(), [&](const Op& op) {
    return op.rank == rank && (op.code == EPLB_OP_RECEIVE || op.code == EPLB_OP_COPY);
  });
}

TEST("eplb_engine_run() with a bound takes what it says, and puts every expert in its place") {
  std::mt19937_64 random(9);
  const Shape shape = {12, 4, {1 << 20, 4096, 100}};
  for (const bool copy_engine_only : {false, true}) {
    for (const bool per_rank : {false, true}) {
      const GpuWorld all(shape, 2, {3, 2, 8192, copy_engine_only, false}, per_rank);
      const std::vector<Bytes> before = all.fill(random);
      const Script script = random_script(shape, 2, 3, random);
      const uint64_t experts = std::max(gathered(script, 0), gathered(script, 1));
      CHECK(experts > 0);
      const auto start = std::chrono::steady_clock::now();
      // A fifth of a second.
      for (const RunReport& report : all.run_all(script, 5 * experts * shape.expert_bytes())) {
        CHECK_EQ(report.outcome.error, "");
        CHECK_EQ(report.result.committed_batches, count(script));
      }
      const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
      CHECK(seconds.count() >= 0.2 && seconds.count() < 5);
      all.expect(script.apply(before, count(script)), "after a run with a bound");
    }
  }
}

TEST("eplb_engine_run() swaps slots, and sends one slot to many") {
  std::mt19937_64 random(2);
  constexpr int32_t kWorld = 4;
  const Shape shape = {1, 3, {1 << 20, 100}};
  Script script{shape, kWorld, {{0, 1}}, {}};
  for (int32_t rank = 1; rank < kWorld; ++rank) {
    // Slot 0 of rank 0 goes everywhere, over what rank 0 gets from there at the same time.
    script.ops.push_back({0, 0, 0, EPLB_OP_SEND, 0, 0, rank, 0});
    script.ops.push_back({0, 0, rank, EPLB_OP_RECEIVE, 0, 0, 0, 0});
    script.ops.push_back({0, 0, rank, EPLB_OP_DUPLICATE, 0, 2, rank, 0});
  }
  script.ops.push_back({0, 0, 1, EPLB_OP_SEND, 0, 0, 0, 0});
  script.ops.push_back({0, 0, 0, EPLB_OP_RECEIVE, 0, 0, 1, 0});
  script.ops.push_back({0, 0, 0, EPLB_OP_COPY, 0, 1, 0, 2});
  script.ops.push_back({0, 0, 0, EPLB_OP_COPY, 0, 2, 0, 1});
  for (const bool copy_engine_only : {false, true}) {
    const GpuWorld all(shape, kWorld, {3, 1, 4096, copy_engine_only, false}, false);
    const std::vector<Bytes> before = all.fill(random);
    const RunReport report = all.run_all(script)[0];
    CHECK_EQ(report.outcome.error, "");
    all.expect(script.apply(before, 1), "after a run");
    CHECK_EQ(report.rank_bytes[0], shape.expert_bytes());                 // into rank 0
    CHECK_EQ(report.rank_bytes[1], (kWorld - 1) * shape.expert_bytes());  // out of it
  }
}

TEST("random programs with direct operations put every expert where the naive model puts it") {
  std::mt19937_64 random(6);
  const Shape shape = {6, 6, {256 << 10, 100003, 7168, 5}};
  for (const bool copy_engine_only : {false, true}) {
    for (const uint32_t world : {1u, 3u}) {
      Script script = random_script(shape, world, shape.slots, random);
      make_direct(&script, random);
      const PullOptions options = {cells_needed(script), 2, 8192, copy_engine_only, world == 3};
      const GpuWorld all(shape, world, options, world == 3);
      const std::vector<Bytes> before = all.fill(random);
      for (const RunReport& report : all.run_all(script)) CHECK_EQ(report.outcome.error, "");
      all.expect(script.apply(before, count(script)), "after a run");
    }
  }
}

TEST("a held run commits what is permitted, stages ahead, and ends at once when aborted") {
  std::mt19937_64 random(7);
  const Shape shape = {16, 4, {1 << 20, 7168, 3}};
  for (const bool per_rank : {false, true}) {
    for (const uint32_t sets : {1u, 3u}) {
      const GpuWorld all(shape, 3, {4, sets, 8192, sets == 3, false}, per_rank);
      std::vector<Bytes> expected = all.fill(random);
      Script script = random_script(shape, 3, 4, random);
      run_held(all.engines, script, count(script), sets);
      expected = script.apply(expected, count(script));
      all.expect(expected, "after a held run");
      script = random_script(shape, 3, 4, random);
      const auto start = std::chrono::steady_clock::now();
      run_held(all.engines, script, 3, sets);
      const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
      CHECK(took.count() < 5);
      expected = script.apply(expected, 3);
      all.expect(expected, "after an abort");
    }
  }
}

TEST("eplb_engine_abort() at any moment ends the run soon and leaves whole batches") {
  std::mt19937_64 random(3);
  const Shape shape = {40, 2, {100000, 7168, 3}};
  uint32_t partial = 0;
  for (uint32_t i = 0; i < 24; ++i) {
    const uint32_t world = 2 + i % 3;
    const bool per_rank = i % 4 == 3;
    const GpuWorld all(shape, world, {2, 1 + i % 2, 8192, i % 3 == 0, false}, per_rank);
    const Script first = random_script(shape, world, 2, random);
    std::vector<Bytes> before = all.fill(random);
    double seconds = 0;  // of a whole run
    for (const RunReport& report : all.run_all(first)) {
      CHECK_EQ(report.outcome.error, "");
      seconds = std::max(seconds, report.result.seconds);
    }
    before = first.apply(before, count(first));
    const Script script = random_script(shape, world, 2, random);
    const auto moment = std::chrono::nanoseconds(random() % static_cast<uint64_t>(seconds * 1e9));
    std::vector<RunReport> reports(all.engines.size());
    const auto start = std::chrono::steady_clock::now();
    in_parallel(all.engines.size() + 1, [&](size_t k) {
      if (k < all.engines.size()) {
        reports[k] = run(all.engines[k], script, kRunMs);
      } else {
        std::this_thread::sleep_for(moment);
        eplb_engine_abort(all.engines[0].handle(), -1, "test", nullptr, 0);
      }
    });
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    CHECK(took.count() < 5);
    const uint32_t committed = reports[0].result.committed_batches;
    for (const RunReport& report : reports) {  // the ranks of other engines agree
      CHECK_EQ(report.result.committed_batches, committed);
      CHECK_EQ(report.outcome.status == EPLB_OK, reports[0].outcome.status == EPLB_OK);
    }
    partial += committed > 0 && committed < count(script) ? 1 : 0;
    all.expect(script.apply(before, committed), "after an abort");
  }
  std::printf("  %u of 24 runs were ended halfway\n", partial);
  CHECK(partial > 0);  // else the test has not met what it is about
}

TEST("eplb_engine_run() ends at its time limit when a peer does not come") {
  std::mt19937_64 random(5);
  const Shape shape = {2, 2, {1 << 20, 9}};
  const GpuWorld all(shape, 2, {2, 2, 16, false, false}, true);
  const std::vector<Bytes> before = all.fill(random);
  Script script{shape, 2, {{0, 2}}, {}};
  script.ops = {{0, 0, 1, EPLB_OP_SEND, 0, 0, 0, 1}, {0, 0, 0, EPLB_OP_RECEIVE, 0, 1, 1, 0}};
  const auto start = std::chrono::steady_clock::now();
  const RunReport report = run(all.engines[0], script, 300);
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
  CHECK_EQ(report.outcome.status, EPLB_TIMEOUT);
  CHECK_EQ(report.result.failed_rank, 1);
  CHECK_EQ(report.result.committed_batches, 0u);
  CHECK(took.count() >= 0.3 && took.count() < 5);
  const RunReport late = run(all.engines[1], script, kRunMs);  // is told at once
  CHECK_EQ(late.outcome.status, EPLB_PEER_FAILED);
  all.expect(before, "after a timeout");
}

TEST("a job with host and GPU memory is refused, and both ranks are named") {
  const Shape shape = {1, 1, {8}};
  const Weights host(shape, Memory::kShared);
  const GpuWeights gpu(shape, 0, false);
  const eplb_engine_config both = pull_config(2, 2, {}), one = pull_config(2, 1, {});
  eplb_handle engine = 0;
  const int32_t all[2] = {0, 1};
  const eplb_handle handles[2] = {host.handle(), gpu.handle()};
  MUST_FAIL(EPLB_UNSUPPORTED, "of rank 1 are on a GPU, but those of rank 0 in host memory",
            eplb_engine_create, &both, static_cast<const int32_t*>(all), nullptr,
            static_cast<const eplb_handle*>(handles), &engine);
  const Engine on_host(one, {0}, {host.handle()}), on_gpu(one, {1}, {gpu.handle()});
  const Outcome refused = connect(on_host, {on_host.blob(0), on_gpu.blob(0)});
  CHECK_EQ(refused.status, EPLB_PEER_MISMATCH);
  CHECK_CONTAINS(refused.error, "rank 1: its memory is a GPU's, but rank 0's is the host's");
}

}  // namespace
