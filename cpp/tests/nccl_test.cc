// SPDX-License-Identifier: Apache-2.0
// The nccl transport, one rank per GPU, against the naive model; and, in a program of its own, the
// transport nccl-put (EPLB_TEST_PUTS). Needs two GPUs, and NCCL 2.29 for puts; skipped without.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>

#include "gpu_ranks.h"

using namespace ranks;

namespace {

#ifdef EPLB_TEST_PUTS
constexpr uint32_t kTransport = EPLB_TRANSPORT_NCCL_PUT;
#else
constexpr uint32_t kTransport = EPLB_TRANSPORT_NCCL;
#endif
constexpr bool kPuts = kTransport == EPLB_TRANSPORT_NCCL_PUT;
constexpr int32_t kOldestWithPuts = 22900;

constexpr int kSkipped = 77;  // SKIP_RETURN_CODE
constexpr uint64_t kConnectMs = 120000;
constexpr uint64_t kRunMs = 30000;

const uint32_t kGpus = [] {
  char why[1024] = "fewer than two CUDA devices";
  int32_t count = 0, version = 0;
  eplb_device_count(&count, why, sizeof(why));
  if (count >= 2 && eplb_nccl_open(nullptr, &version, nullptr, 0, why, sizeof(why)) == EPLB_OK) {
    std::printf("%d GPUs, NCCL %d\n", count, version);
    if (!kPuts || version >= kOldestWithPuts) return static_cast<uint32_t>(count);
    std::snprintf(why, sizeof(why), "NCCL %d has no puts", version);
  }
  std::printf("skipped: %s\n", why);
  std::exit(kSkipped);
}();

struct Options {
  uint32_t cells = 1, sets = 1;
  uint64_t small_bytes = 0;
  bool engine_per_rank = false;  // as if every rank were a process of its own
};

// One rank per GPU. Takes seconds to make and to free, as NCCL does: a world is for several checks.
struct GpuWorld {
  GpuWorld(const Shape& shape, const Options& options) : shape(shape) {
    for (uint32_t rank = 0; rank < kGpus; ++rank) {
      weights.emplace_back(shape, static_cast<int32_t>(rank), false);
    }
    const uint32_t locals = options.engine_per_rank ? 1 : kGpus;
    for (uint32_t first = 0; first < kGpus; first += locals) {
      eplb_engine_config config = engine_config(kGpus, locals, options.cells, options.sets);
      config.transport = kTransport;
      config.small_bytes = options.small_bytes;
      std::vector<int32_t> ranks;
      std::vector<eplb_handle> handles;
      for (uint32_t rank = first; rank < first + locals; ++rank) {
        ranks.push_back(static_cast<int32_t>(rank));
        handles.push_back(weights[rank].handle());
      }
      engines.emplace_back(config, ranks, handles);
      for (uint32_t i = 0; i < locals; ++i) blobs.push_back(engines.back().blob(i));
    }
  }
  GpuWorld(const GpuWorld&) = delete;
  ~GpuWorld() {  // together, as ranks may have to leave a communicator together
    in_parallel(engines.size(), [&](size_t i) { const Engine leaving = std::move(engines[i]); });
  }

  void connect_all() {
    std::vector<Outcome> outcomes(engines.size());
    in_parallel(engines.size(),
                [&](size_t i) { outcomes[i] = connect(engines[i], blobs, kConnectMs); });
    for (const Outcome& outcome : outcomes) CHECK_EQ(outcome.error, "");
  }

  std::vector<RunReport> run_all(const Script& script) const {
    std::vector<RunReport> reports(engines.size());
    in_parallel(engines.size(), [&](size_t i) { reports[i] = run(engines[i], script, kRunMs); });
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

uint32_t count(const Script& script) { return static_cast<uint32_t>(script.batches.size()); }

TEST("eplb_engine_run() puts every expert where the naive model puts it") {
  std::mt19937_64 random(1);
  const Shape one = {3, 2, {8}};                                       // nothing to align
  const Shape odd = {7, 5, {1, 17, 4096, 100003}};                     // multiples of nothing
  const Shape quantized = {6, 9, {512 << 10, 256 << 10, 7168, 3584}};  // an expert's proportions
  const Shape large = {2, 2, {16 << 20, 5}};                           // many of NCCL's own pieces
  constexpr uint64_t kNone = 0, kSome = 8192, kAll = UINT64_MAX;       // what is packed
  struct Row {
    Shape shape;
    uint64_t small_bytes;
    uint32_t sets;
    bool engine_per_rank;
  };
  // With one set and with two, in one engine and in one for each: every shape and every packing.
  const std::vector<Row> rows = {
      {one, kNone, 1, false},      {one, kAll, 2, true},         //
      {odd, kSome, 2, false},      {odd, kNone, 1, true},        //
      {quantized, kSome, 1, true}, {quantized, kAll, 2, false},  //
      {large, kNone, 2, true},     {large, kAll, 1, false},
  };
  for (size_t row = 0; row < rows.size(); ++row) {
    const auto& [shape, packed, sets, engine_per_rank] = rows[row];
    const uint64_t most = *std::max_element(shape.tensor_bytes.begin(), shape.tensor_bytes.end());
    const uint32_t some = 1 + static_cast<uint32_t>(random() % shape.slots);
    const uint32_t cells = row % 2 == 0 ? shape.slots : some;
    GpuWorld world(shape, {cells, sets, std::min(packed, most), engine_per_rank});
    world.connect_all();
    std::vector<Bytes> expected = world.fill(random);
    for (int i = 0; i < 4; ++i) {  // one communicator, one program after the other
      Script script = random_script(shape, kGpus, cells, random);
      if (i % 2 == 1 && !kPuts) make_direct(&script, random);
      for (const RunReport& report : world.run_all(script)) {
        CHECK_EQ(report.outcome.error, "");
        CHECK_EQ(report.result.committed_batches, count(script));
      }
      expected = script.apply(std::move(expected), count(script));
    }
    world.expect(expected, "after four runs of row " + std::to_string(row));
  }
}

TEST("eplb_engine_run() swaps slots, and sends one slot to many") {
  std::mt19937_64 random(2);
  const Shape shape = {1, 3, {1 << 20, 100}};
  Script script{shape, kGpus, {{0, 1}}, {}};
  for (int32_t rank = 1; rank < static_cast<int32_t>(kGpus); ++rank) {
    // Slot 0 of rank 0 goes everywhere, over what rank 0 gets from there at the same time.
    script.ops.push_back({0, 0, 0, EPLB_OP_SEND, 0, 0, rank, 0});
    script.ops.push_back({0, 0, rank, EPLB_OP_RECEIVE, 0, 0, 0, 0});
    script.ops.push_back({0, 0, rank, EPLB_OP_DUPLICATE, 0, 2, rank, 0});
  }
  script.ops.push_back({0, 0, 1, EPLB_OP_SEND, 0, 0, 0, 0});
  script.ops.push_back({0, 0, 0, EPLB_OP_RECEIVE, 0, 0, 1, 0});
  script.ops.push_back({0, 0, 0, EPLB_OP_COPY, 0, 1, 0, 2});
  script.ops.push_back({0, 0, 0, EPLB_OP_COPY, 0, 2, 0, 1});
  GpuWorld world(shape, {3, 1, 4096, false});
  world.connect_all();
  const std::vector<Bytes> before = world.fill(random);
  const RunReport report = world.run_all(script)[0];
  CHECK_EQ(report.outcome.error, "");
  world.expect(script.apply(before, 1), "after a run");
  CHECK_EQ(report.rank_bytes[0], shape.expert_bytes());                // into rank 0
  CHECK_EQ(report.rank_bytes[1], (kGpus - 1) * shape.expert_bytes());  // out of it
  CHECK_EQ(report.rank_bytes[2], shape.expert_bytes());
  CHECK_EQ(report.rank_bytes[3], shape.expert_bytes());
}

TEST("a held run commits what is permitted, stages ahead, and ends soon when aborted") {
  std::mt19937_64 random(7);
  const Shape shape = {16, 4, {1 << 20, 7168, 3}};
  for (const uint32_t sets : {1u, 2u}) {
    GpuWorld world(shape, {4, sets, 8192, sets == 2});
    world.connect_all();
    std::vector<Bytes> expected = world.fill(random);
    Script script = random_script(shape, kGpus, 4, random);
    run_held(world.engines, script, count(script), sets);
    expected = script.apply(expected, count(script));
    world.expect(expected, "after a held run");
    script = random_script(shape, kGpus, 4, random);
    run_held(world.engines, script, 3, sets);
    expected = script.apply(expected, 3);
    world.expect(expected, "after an abort");
  }
}

constexpr uint32_t kMoments = 4;

// A world in the middle of its work, after one whole run, which tells how long a batch takes. Its
// second script is aborted at one of kMoments: these part the run evenly, the first is its start.
struct BusyWorld : GpuWorld {
  BusyWorld(bool engine_per_rank, uint32_t sets, uint32_t moment, std::mt19937_64& random)
      : GpuWorld({48, 2, {200000, 7168, 3}}, {2, sets, 8192, engine_per_rank}) {
    connect_all();
    const Script first = random_script(shape, kGpus, 2, random);
    before = fill(random);
    double seconds = 0;
    for (const RunReport& report : run_all(first)) {
      CHECK_EQ(report.outcome.error, "");
      seconds = std::max(seconds, report.result.seconds);
    }
    before = first.apply(before, count(first));
    script = random_script(shape, kGpus, 2, random);
    batches_first = count(script) * moment / kMoments;
    const auto batch_ns = static_cast<uint64_t>(1e9 * seconds / count(first));
    then = std::chrono::nanoseconds(random() % (1 + batch_ns));
  }

  // Runs the second script and aborts the first engine halfway.
  std::vector<RunReport> run_and_abort(uint64_t timeout_ms) {
    std::vector<RunReport> reports(engines.size());
    const uint32_t runs_before = progress(engines[0]).runs;
    std::atomic<bool> ended{false};
    in_parallel(engines.size() + 1, [&](size_t i) {
      if (i < engines.size()) {
        reports[i] = run(engines[i], script, timeout_ms);
        ended = true;
      } else {
        await_moment(runs_before, ended);
        eplb_engine_abort(engines[0].handle(), -1, "test", nullptr, 0);
      }
    });
    return reports;
  }

  // Whether the second script was ended halfway after this many batches.
  bool is_partial(uint32_t committed) const { return committed > 0 && committed < count(script); }

  std::vector<Bytes> before;
  Script script;

 private:
  // Returns in the middle of the batch after those that come first, or when the run has ended.
  void await_moment(uint32_t runs_before, const std::atomic<bool>& ended) const {
    uint32_t committed = 0, agreed = 0, runs = 0;
    while (!ended && (runs <= runs_before || committed < batches_first)) {
      std::this_thread::yield();
      eplb_engine_progress(engines[0].handle(), &committed, &agreed, &runs, nullptr, 0);
    }
    std::this_thread::sleep_for(then);
  }

  uint32_t batches_first = 0;
  std::chrono::nanoseconds then{};
};

TEST("eplb_engine_abort() at any moment ends the run soon and leaves whole batches") {
  std::mt19937_64 random(3);
  uint32_t partial = 0;
  for (uint32_t moment = 0; moment < kMoments; ++moment) {
    BusyWorld world(false, 1 + moment % 2, moment, random);
    const auto start = std::chrono::steady_clock::now();
    const RunReport report = world.run_and_abort(kRunMs)[0];
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    CHECK(took.count() < 5);
    const uint32_t committed = report.result.committed_batches;
    if (report.outcome.status == EPLB_OK) {
      CHECK_EQ(committed, count(world.script));
    } else {
      CHECK_EQ(report.outcome.status, EPLB_ABORTED);
      partial += world.is_partial(committed) ? 1 : 0;
    }
    world.expect(world.script.apply(world.before, committed), "after an abort");
  }
  std::printf("  %u of %u runs were ended halfway\n", partial, kMoments);
  CHECK(partial > 0);  // else the test has not met what it is about
}

// What a rank that aborts leaves behind in NCCL's buffers must not pass for the bytes of a batch.
TEST("eplb_engine_settle() brings ranks together after one of them aborted") {
  std::mt19937_64 random(4);
  uint32_t partial = 0, settled = 0;
  for (uint32_t moment = 0; moment < kMoments; ++moment) {
    BusyWorld world(true, 2 - moment % 2, moment, random);
    uint32_t most = 0, least = count(world.script);
    for (const RunReport& report : world.run_and_abort(3000)) {
      most = std::max(most, report.result.committed_batches);
      least = std::min(least, report.result.committed_batches);
    }
    partial += world.is_partial(most) ? 1 : 0;
    settled += least < most ? 1 : 0;
    for (const Engine& engine : world.engines) {
      uint32_t committed = 0;
      MUST(eplb_engine_settle, engine.handle(), most, &committed);
      CHECK_EQ(committed, most);
    }
    world.expect(world.script.apply(world.before, most), "after settling");
  }
  std::printf("  %u of %u runs were ended halfway, %u had to be settled\n", partial, kMoments,
              settled);
  CHECK(partial > 0);
}

TEST("eplb_engine_run() ends at its time limit when a peer does not come") {
  std::mt19937_64 random(5);
  const Shape shape = {2, 2, {1 << 20, 9}};
  GpuWorld world(shape, {2, 2, 16, true});
  world.connect_all();
  const std::vector<Bytes> before = world.fill(random);
  Script script{shape, kGpus, {{0, 2}}, {}};
  script.ops = {{0, 0, 1, EPLB_OP_SEND, 0, 0, 0, 1}, {0, 0, 0, EPLB_OP_RECEIVE, 0, 1, 1, 0}};
  const auto start = std::chrono::steady_clock::now();
  const RunReport report = run(world.engines[0], script, 500);
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
  CHECK_EQ(report.outcome.status, EPLB_TIMEOUT);
  CHECK_EQ(report.result.committed_batches, 0u);
  CHECK(took.count() >= 0.5 && took.count() < 5);
  world.expect(before, "after a timeout");
}

#ifdef EPLB_TEST_PUTS
TEST("eplb_engine_run() refuses direct receives, which puts cannot do") {
  std::mt19937_64 random(6);
  const Shape shape = {2, 2, {1 << 20, 9}};
  GpuWorld world(shape, {2, 2, 16, false});
  world.connect_all();
  const std::vector<Bytes> before = world.fill(random);
  Script script{shape, kGpus, {{0, 2}}, {}};
  script.ops = {{0, 0, 1, EPLB_OP_SEND, 0, 0, 0, 1},
                {0, 0, 0, EPLB_OP_RECEIVE | EPLB_OP_DIRECT, 0, 1, 1, 0}};
  const RunReport report = world.run_all(script)[0];
  CHECK_EQ(report.outcome.status, EPLB_INVALID_ARGUMENT);
  CHECK_CONTAINS(report.outcome.error, "directly");
  world.expect(before, "after a refusal");
}
#endif

TEST("eplb_engine_connect() ends at its time limit when a peer does not come") {
  const Shape shape = {1, 1, {8}};
  GpuWorld world(shape, {1, 1, 0, true});
  const auto start = std::chrono::steady_clock::now();
  const Outcome outcome = connect(world.engines[0], world.blobs, 1000);
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
  CHECK_EQ(outcome.status, EPLB_TIMEOUT);
  CHECK(took.count() < 10);
}

}  // namespace
