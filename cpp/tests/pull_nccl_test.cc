// SPDX-License-Identifier: Apache-2.0
// The pull+nccl transport in one process, one rank per GPU on pretended nodes, against the naive
// model: everything is sent, whatever the nodes. Ranks that are processes, and pull, are in
// tests/engine/gpu_test.ts. Needs two GPUs and NCCL; skipped without.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <set>
#include <thread>

#include "gpu_ranks.h"

using namespace ranks;

namespace {

constexpr int kSkipped = 77;  // SKIP_RETURN_CODE
constexpr uint64_t kConnectMs = 60000;
constexpr uint64_t kRunMs = 30000;

const uint32_t kGpus = [] {
  const int32_t count = require_gpus();
  char why[1024] = "fewer than two CUDA devices";
  int32_t version = 0;
  if (count >= 2 && eplb_nccl_open(nullptr, &version, nullptr, 0, why, sizeof(why)) == EPLB_OK) {
    return static_cast<uint32_t>(count);
  }
  std::printf("skipped: %s\n", why);
  std::exit(kSkipped);
}();

const std::set<uint32_t> kNodes = {1, 2, kGpus};

// One rank per GPU, in one engine or in one each, connected.
struct Cluster {
  Cluster(const Shape& shape, uint32_t nodes, bool engine_per_rank, const PullOptions& options)
      : shape(shape) {
    for (uint32_t rank = 0; rank < kGpus; ++rank) {
      weights.emplace_back(shape, static_cast<int32_t>(rank), options.registered);
    }
    const uint32_t locals = engine_per_rank ? 1 : kGpus;
    std::vector<std::vector<char>> blobs;
    for (uint32_t first = 0; first < kGpus; first += locals) {
      eplb_engine_config config = pull_config(kGpus, locals, options);
      config.transport = EPLB_TRANSPORT_PULL_NCCL;
      std::vector<int32_t> ranks, node_of;
      std::vector<eplb_handle> handles;
      for (uint32_t rank = first; rank < first + locals; ++rank) {
        ranks.push_back(static_cast<int32_t>(rank));
        node_of.push_back(static_cast<int32_t>(rank * nodes / kGpus));
        handles.push_back(weights[rank].handle());
      }
      engines.emplace_back(config, ranks, handles, node_of);
      for (uint32_t i = 0; i < locals; ++i) blobs.push_back(engines.back().blob(i));
    }
    std::vector<Outcome> outcomes(engines.size());
    in_parallel(engines.size(),
                [&](size_t i) { outcomes[i] = connect(engines[i], blobs, kConnectMs); });
    for (const Outcome& outcome : outcomes) CHECK_EQ(outcome.error, "");
  }

  std::vector<Bytes> fill(std::mt19937_64& random) const {
    return fill_all(weights, shape, random);
  }
  void expect(const std::vector<Bytes>& expected, const std::string& what) const {
    expect_all(weights, expected, what);
  }

  std::vector<RunReport> run_all(const Script& script) const {
    std::vector<RunReport> reports(engines.size());
    in_parallel(engines.size(), [&](size_t i) { reports[i] = run(engines[i], script, kRunMs); });
    return reports;
  }

  Shape shape;
  std::vector<GpuWeights> weights;
  std::vector<Engine> engines;
};

uint32_t count(const Script& script) { return static_cast<uint32_t>(script.batches.size()); }

// Bytes that come into a rank, or go out of it.
uint64_t bytes_of(const Script& script, int32_t rank, int32_t code) {
  const auto ops = std::count_if(script.ops.begin(), script.ops.end(), [&](const Op& op) {
    return op.rank == rank && (op.code & ~EPLB_OP_DIRECT) == code;
  });
  return static_cast<uint64_t>(ops) * script.shape.expert_bytes();
}

TEST("pull+nccl: random programs put every expert where the naive model puts it") {
  std::mt19937_64 random(1);
  const Shape shape = {6, 6, {512 << 10, 100003, 7168, 5}};
  int i = 0;
  for (const uint32_t nodes : kNodes) {
    for (const uint64_t small_bytes : {uint64_t{0}, uint64_t{8192}, uint64_t{1} << 20}) {
      PullOptions options;
      options.cells = shape.slots;
      options.sets = 1 + static_cast<uint32_t>(i % 2);
      options.small_bytes = small_bytes;
      options.copy_engine_only = i % 3 == 0;
      options.registered = i % 3 == 1;
      const Cluster all(shape, nodes, ++i % 2 == 0, options);
      std::vector<Bytes> expected = all.fill(random);
      for (const bool direct : {false, true, false}) {
        Script script = random_script(shape, kGpus, shape.slots, random);
        if (direct) make_direct(&script, random);
        int32_t rank = 0;
        for (const RunReport& report : all.run_all(script)) {
          CHECK_EQ(report.outcome.error, "");
          for (size_t at = 0; at < report.rank_bytes.size(); at += 2, ++rank) {
            CHECK_EQ(report.rank_bytes[at], bytes_of(script, rank, EPLB_OP_RECEIVE));
            CHECK_EQ(report.rank_bytes[at + 1], bytes_of(script, rank, EPLB_OP_SEND));
          }
        }
        expected = script.apply(expected, count(script));
        all.expect(expected, "on " + std::to_string(nodes) + " nodes");
      }
    }
  }
}

TEST("pull+nccl: an abort at any moment ends the run soon, and settling brings ranks together") {
  std::mt19937_64 random(2);
  const Shape shape = {48, 2, {4 << 20, 7168, 3}};
  PullOptions options;
  options.cells = 2;
  options.small_bytes = 8192;
  uint32_t partial = 0;
  for (const uint32_t nodes : kNodes) {
    for (int i = 0; i < 3; ++i) {
      const Cluster all(shape, nodes, true, options);
      std::vector<Bytes> before = all.fill(random);
      Script script = random_script(shape, kGpus, 2, random);
      double seconds = 0;
      for (const RunReport& report : all.run_all(script)) {
        CHECK_EQ(report.outcome.error, "");
        seconds = std::max(seconds, report.result.seconds);
      }
      before = script.apply(before, count(script));
      script = random_script(shape, kGpus, 2, random);
      const auto start = std::chrono::steady_clock::now();
      std::thread abort([&, wait = std::chrono::duration<double>(seconds * (i + 1) / 4)] {
        std::this_thread::sleep_for(wait);
        eplb_engine_abort(all.engines[0].handle(), -1, "test", nullptr, 0);
      });
      // Ranks of other engines are not told, and hear of it through NCCL or run into this limit.
      std::vector<RunReport> reports(all.engines.size());
      in_parallel(reports.size(),
                  [&](size_t j) { reports[j] = run(all.engines[j], script, 2000); });
      abort.join();
      const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
      CHECK(took.count() < 10);
      uint32_t most = 0;
      for (const RunReport& report : reports) {
        most = std::max(most, report.result.committed_batches);
      }
      partial += most > 0 && most < count(script) ? 1 : 0;
      for (const Engine& engine : all.engines) {
        uint32_t committed = 0;
        MUST(eplb_engine_settle, engine.handle(), most, &committed);
        CHECK_EQ(committed, most);
      }
      all.expect(script.apply(before, most), "after settling");
    }
  }
  std::printf("  %u of %zu runs were ended halfway\n", partial, 3 * kNodes.size());
}

TEST("pull+nccl: memory that cannot be shared is fine where nobody pulls from it") {
  const Shape shape = {1, 1, {64}};
  const GpuWeights plain(shape, 0, false);
  void* pooled = nullptr;
  CHECK(cudaSetDevice(1) == cudaSuccess && cudaMallocAsync(&pooled, 64, nullptr) == cudaSuccess &&
        cudaStreamSynchronize(nullptr) == cudaSuccess);
  const eplb_weights_config config = {sizeof(config), 1, 1, 1, 1, 1};
  const uint64_t table[2] = {reinterpret_cast<uint64_t>(pooled), 64};
  eplb_handle weights = 0;
  MUST(eplb_weights_create, &config, shape.tensor_bytes.data(), &weights);
  MUST(eplb_weights_register, weights, static_cast<const uint64_t*>(table));
  for (const int32_t node : {0, 1}) {
    eplb_engine_config one = pull_config(2, 1, {});
    one.transport = EPLB_TRANSPORT_PULL_NCCL;
    const Engine engines[2] = {{one, {0}, {plain.handle()}, {0}}, {one, {1}, {weights}, {node}}};
    const std::vector<std::vector<char>> blobs = {engines[0].blob(0), engines[1].blob(0)};
    Outcome outcomes[2];
    in_parallel(2, [&](size_t i) { outcomes[i] = connect(engines[i], blobs, kConnectMs); });
    for (const Outcome& outcome : outcomes) CHECK_EQ(outcome.error, "");
  }
  MUST(eplb_weights_destroy, weights);
  CHECK(cudaFreeAsync(pooled, nullptr) == cudaSuccess);
}

}  // namespace
