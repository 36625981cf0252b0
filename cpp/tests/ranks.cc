// SPDX-License-Identifier: Apache-2.0
// Ranks for tests.
#include "ranks.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <deque>
#include <map>
#include <numeric>
#include <set>
#include <tuple>
#include <utility>

namespace ranks {

uint64_t Shape::expert_bytes() const {
  return std::accumulate(tensor_bytes.begin(), tensor_bytes.end(), uint64_t{0});
}

Weights::Weights(const Shape& shape, Memory memory) {
  const eplb_weights_config config = {sizeof(config), 1,           -1,
                                      shape.layers,   shape.slots, shape.tensors()};
  MUST(eplb_weights_create, &config, shape.tensor_bytes.data(), &handle_);
  if (memory != Memory::kRegistered) {
    MUST(eplb_weights_allocate, handle_, memory == Memory::kShared ? 1u : 0u);
    return;
  }
  // Odd addresses and strides, with bytes in between that must never change.
  std::vector<uint64_t> table;
  uint64_t end = 1;
  for (uint32_t i = 0; i < shape.layers * shape.tensors(); ++i) {
    const uint64_t stride = shape.tensor_bytes[i % shape.tensors()] + i % 5;
    table.push_back(end);
    table.push_back(stride);
    end += stride * shape.slots + 3;
  }
  own_.assign(end, '#');
  for (size_t i = 0; i < table.size(); i += 2) table[i] += reinterpret_cast<uint64_t>(own_.data());
  MUST(eplb_weights_register, handle_, table.data());
}

Weights::~Weights() {
  if (handle_ != 0) eplb_weights_destroy(handle_, nullptr, 0);
}

Bytes random_bytes(const Shape& shape, std::mt19937_64& random) {
  Bytes bytes(shape.layers * shape.slots);
  for (std::string& expert : bytes) {
    while (expert.size() < shape.expert_bytes()) {
      const uint64_t word = random();
      expert.append(reinterpret_cast<const char*>(&word), sizeof(word));
    }
    expert.resize(shape.expert_bytes());
  }
  return bytes;
}

void write_all(const Weights& weights, const Shape& shape, const Bytes& bytes) {
  for (uint32_t layer = 0; layer < shape.layers; ++layer) {
    for (uint32_t slot = 0; slot < shape.slots; ++slot) {
      const char* next = bytes[layer * shape.slots + slot].data();
      for (uint32_t tensor = 0; tensor < shape.tensors(); ++tensor) {
        const uint64_t size = shape.tensor_bytes[tensor];
        MUST(eplb_weights_write, weights.handle(), layer, slot, tensor, uint64_t{0},
             static_cast<const void*>(next), size);
        next += size;
      }
    }
  }
}

Bytes read_all(const Weights& weights, const Shape& shape) {
  Bytes bytes(shape.layers * shape.slots, std::string(shape.expert_bytes(), '\0'));
  for (uint32_t layer = 0; layer < shape.layers; ++layer) {
    for (uint32_t slot = 0; slot < shape.slots; ++slot) {
      char* next = bytes[layer * shape.slots + slot].data();
      for (uint32_t tensor = 0; tensor < shape.tensors(); ++tensor) {
        const uint64_t size = shape.tensor_bytes[tensor];
        MUST(eplb_weights_read, weights.handle(), layer, slot, tensor, uint64_t{0},
             static_cast<void*>(next), size);
        next += size;
      }
    }
  }
  return bytes;
}

Window::Window(const Weights& weights, const Shape& shape) : shape_(shape) {
  for (uint32_t layer = 0; layer < shape.layers; ++layer) {
    for (uint32_t tensor = 0; tensor < shape.tensors(); ++tensor) {
      uint64_t address = 0, stride = 0;
      MUST(eplb_weights_address, weights.handle(), layer, tensor, &address, &stride);
      address_.push_back(address);
      stride_.push_back(stride);
    }
  }
}

Bytes Window::read() const {
  Bytes bytes;
  for (uint32_t layer = 0; layer < shape_.layers; ++layer) {
    for (uint32_t slot = 0; slot < shape_.slots; ++slot) {
      bytes.emplace_back();
      for (uint32_t tensor = 0; tensor < shape_.tensors(); ++tensor) {
        const size_t i = layer * shape_.tensors() + tensor;
        const uint64_t at = address_[i] + stride_[i] * slot;
        bytes.back().append(reinterpret_cast<const char*>(at), shape_.tensor_bytes[tensor]);
      }
    }
  }
  return bytes;
}

std::vector<int32_t> Script::words(const std::vector<int32_t>& local_ranks) const {
  std::vector<int32_t> body;
  int32_t count = 0;
  for (const BatchLayers& batch : batches) {
    body.push_back(batch.first);
    body.push_back(batch.end);
  }
  for (const Op& op : ops) {
    if (std::count(local_ranks.begin(), local_ranks.end(), op.rank) == 0) continue;
    for (const int32_t word :
         {op.batch, op.round, op.rank, op.code, op.layer, op.slot, op.peer, op.peer_slot}) {
      body.push_back(word);
    }
    ++count;
  }
  std::vector<int32_t> words = {EPLB_PROGRAM_MAGIC,
                                EPLB_PROGRAM_VERSION,
                                static_cast<int32_t>(batches.size()),
                                count,
                                static_cast<int32_t>(shape.layers),
                                static_cast<int32_t>(shape.slots),
                                static_cast<int32_t>(world),
                                0};
  words.insert(words.end(), body.begin(), body.end());
  return words;
}

std::vector<Bytes> Script::apply(std::vector<Bytes> memory, uint32_t batches) const {
  for (uint32_t batch = 0; batch < batches; ++batch) {
    const auto place = [&](int32_t layer, int32_t slot) {
      return layer * static_cast<int32_t>(shape.slots) + slot;
    };
    // A copy of the batch's layers, as they are before any operation; of others there is no need.
    const BatchLayers& layers = this->batches[batch];
    const int32_t first = place(layers.first, 0), end = place(layers.end, 0);
    std::vector<Bytes> before(world, Bytes(end));
    for (uint32_t rank = 0; rank < world; ++rank) {
      const auto slots = memory[rank].begin();
      std::copy(slots + first, slots + end, before[rank].begin() + first);
    }
    for (const bool duplicates : {false, true}) {  // a duplicate's base comes first
      for (const Op& op : ops) {
        if (op.batch != static_cast<int32_t>(batch) || op.code == EPLB_OP_SEND) continue;
        if ((op.code == EPLB_OP_DUPLICATE) != duplicates) continue;
        const std::vector<Bytes>& source = duplicates ? memory : before;
        memory[op.rank][place(op.layer, op.slot)] = source[op.peer][place(op.layer, op.peer_slot)];
      }
    }
  }
  return memory;
}

Script random_script(const Shape& shape, uint32_t world, uint32_t cells, std::mt19937_64& random) {
  const auto below = [&](uint64_t end) { return static_cast<int32_t>(random() % end); };
  Script script{shape, world, {}, {}};
  const int32_t layers = static_cast<int32_t>(shape.layers);
  for (int32_t layer = 0; layer < layers;) {
    const int32_t end = std::min(layers, layer + 1 + below(3));
    if (below(8) != 0) script.batches.push_back({layer, end});  // some layers are left out
    layer = end;
  }
  for (int32_t batch = 0; batch < static_cast<int32_t>(script.batches.size()); ++batch) {
    std::vector<uint32_t> used(world);
    for (int32_t layer = script.batches[batch].first; layer < script.batches[batch].end; ++layer) {
      for (int32_t rank = 0; rank < static_cast<int32_t>(world); ++rank) {
        int32_t base = -1;  // a slot that can be duplicated
        for (int32_t slot = 0; slot < static_cast<int32_t>(shape.slots); ++slot) {
          const int32_t kind = below(5), round = below(4), source = below(shape.slots);
          const int32_t peer = below(world);
          if (kind == 0) continue;
          if (kind == 1 && base >= 0) {
            script.ops.push_back({batch, round, rank, EPLB_OP_DUPLICATE, layer, slot, rank, base});
          } else if (used[rank] < cells) {
            ++used[rank];
            base = slot;
            const bool copy = peer == rank;
            script.ops.push_back({batch, round, rank, copy ? EPLB_OP_COPY : EPLB_OP_RECEIVE, layer,
                                  slot, peer, source});
            if (!copy) {
              script.ops.push_back({batch, round, peer, EPLB_OP_SEND, layer, source, rank, slot});
            }
          }
        }
      }
    }
  }
  std::stable_sort(script.ops.begin(), script.ops.end(), [](const Op& a, const Op& b) {
    return std::tie(a.batch, a.round) < std::tie(b.batch, b.round);
  });
  return script;
}

void make_direct(Script* script, std::mt19937_64& random) {
  using Place = std::tuple<int32_t, int32_t, int32_t>;  // rank, layer, slot
  std::set<Place> read;
  for (const Op& op : script->ops) {
    const bool sends = op.code == EPLB_OP_SEND;  // else a receive, copy or duplicate of peer slot
    read.insert({sends ? op.rank : op.peer, op.layer, sends ? op.slot : op.peer_slot});
  }
  for (Op& op : script->ops) {
    if (op.code != EPLB_OP_RECEIVE && op.code != EPLB_OP_COPY) continue;
    if (read.count({op.rank, op.layer, op.slot}) == 0 && random() % 3 != 0) {
      op.code |= EPLB_OP_DIRECT;
    }
  }
}

uint32_t cells_needed(const Script& script) {
  std::map<std::pair<int32_t, int32_t>, uint32_t> used;  // by rank and batch
  uint32_t most = 1;
  for (const Op& op : script.ops) {
    if (op.code != EPLB_OP_RECEIVE && op.code != EPLB_OP_COPY) continue;
    most = std::max(most, ++used[{op.rank, op.batch}]);
  }
  return most;
}

eplb_engine_config engine_config(uint32_t world, uint32_t locals, uint32_t cells, uint32_t sets) {
  eplb_engine_config config = {};
  config.size = sizeof(config);
  config.version = 1;
  config.world = world;
  config.locals = locals;
  config.transport = EPLB_TRANSPORT_PULL;
  config.staging_cells = cells;
  config.staging_sets = sets;
  return config;
}

Engine::Engine(const eplb_engine_config& config, const std::vector<int32_t>& local_ranks,
               const std::vector<eplb_handle>& weights, const std::vector<int32_t>& local_nodes)
    : ranks_(local_ranks) {
  MUST(eplb_engine_create, &config, local_ranks.data(),
       local_nodes.empty() ? nullptr : local_nodes.data(), weights.data(), &handle_);
}

Engine::~Engine() {
  if (handle_ != 0) eplb_engine_destroy(handle_, nullptr, 0);
}

std::vector<char> Engine::blob(uint32_t index) const {
  uint64_t bytes = 0;
  const Outcome sized =
      call(eplb_engine_export, handle_, index, static_cast<void*>(nullptr), uint64_t{0}, &bytes);
  if (sized.status != EPLB_INVALID_ARGUMENT) check::fail(__FILE__, __LINE__, sized.error);
  std::vector<char> blob(bytes);
  MUST(eplb_engine_export, handle_, index, static_cast<void*>(blob.data()), bytes, &bytes);
  return blob;
}

Outcome connect(const Engine& engine, const std::vector<std::vector<char>>& blobs,
                uint64_t timeout_ms) {
  std::vector<char> all;
  std::vector<uint64_t> lengths;
  for (const std::vector<char>& blob : blobs) {
    all.insert(all.end(), blob.begin(), blob.end());
    lengths.push_back(blob.size());
  }
  return call(eplb_engine_connect, engine.handle(), static_cast<const void*>(all.data()),
              lengths.data(), timeout_ms);
}

eplb_run_config run_config(uint64_t timeout_ms, bool held, uint64_t bytes_per_second) {
  return {sizeof(eplb_run_config), 1, timeout_ms, held ? 1u : 0u, 0, bytes_per_second};
}

RunReport run(const Engine& engine, const Script& script, const eplb_run_config& config) {
  RunReport report = {};
  report.result.size = sizeof(report.result);
  report.result.version = 1;
  report.rank_bytes.resize(2 * engine.local_ranks().size());
  const std::vector<int32_t> words = script.words(engine.local_ranks());
  report.outcome = call(eplb_engine_run, engine.handle(), words.data(), uint64_t{words.size()},
                        &config, &report.result, report.rank_bytes.data());
  return report;
}

RunReport run(const Engine& engine, const Script& script, uint64_t timeout_ms, bool held) {
  return run(engine, script, run_config(timeout_ms, held));
}

Counts progress(const Engine& engine) {
  Counts counts = {};
  MUST(eplb_engine_progress, engine.handle(), &counts.committed, &counts.agreed, &counts.runs);
  return counts;
}

Outcome commit(const Engine& engine, uint32_t batches, uint32_t* committed, uint64_t timeout_ms) {
  return call(eplb_engine_commit, engine.handle(), batches, timeout_ms, committed);
}

HeldRun::HeldRun(const Engine& engine, const Script& script, uint64_t timeout_ms,
                 uint64_t bytes_per_second)
    : engine_(engine) {
  const uint32_t before = progress(engine).runs;
  thread_ = std::thread([this, &script, config = run_config(timeout_ms, true, bytes_per_second)] {
    report_ = run(engine_, script, config);
    ended_ = true;
  });
  while (!ended_ && progress(engine).runs == before) std::this_thread::yield();
}

HeldRun::~HeldRun() {
  if (!thread_.joinable()) return;
  eplb_engine_abort(engine_.handle(), -1, "the test has ended", nullptr, 0);
  thread_.join();
}

void HeldRun::await_agreed(uint32_t agreed) const {
  const auto limit = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (progress(engine_).agreed < agreed) {
    if (ended_) check::fail(__FILE__, __LINE__, "the run has ended: ", report_.outcome.error);
    if (std::chrono::steady_clock::now() > limit) {
      check::fail(__FILE__, __LINE__, progress(engine_).agreed, " batches are agreed on, not ",
                  agreed);
    }
    std::this_thread::sleep_for(std::chrono::microseconds(50));
  }
}

const RunReport& HeldRun::report() {
  if (thread_.joinable()) thread_.join();
  return report_;
}

std::vector<RunReport> run_held(const std::vector<Engine>& engines, const Script& script,
                                uint32_t end, uint32_t sets) {
  const uint32_t batches = static_cast<uint32_t>(script.batches.size());
  std::deque<HeldRun> runs;  // these do not move
  for (const Engine& engine : engines) runs.emplace_back(engine, script);
  for (uint32_t permitted = 0; permitted < end;) {
    permitted = std::min(permitted + 2, end);
    std::vector<Outcome> outcomes(engines.size());
    std::vector<std::thread> callers;
    for (size_t i = 0; i < engines.size(); ++i) {
      callers.emplace_back([&, i] {
        uint32_t committed = 0;
        outcomes[i] = commit(engines[i], permitted, &committed);
      });
    }
    for (std::thread& caller : callers) caller.join();
    for (size_t i = 0; i < engines.size(); ++i) {
      CHECK_EQ(outcomes[i].error, "");
      CHECK_EQ(progress(engines[i]).committed, permitted);
    }
  }
  for (const HeldRun& run : runs) run.await_agreed(std::min(end + sets, batches));
  for (const Engine& engine : engines) {
    if (end < batches) MUST(eplb_engine_abort, engine.handle(), -1, "test");
  }
  std::vector<RunReport> reports;
  for (HeldRun& run : runs) {
    reports.push_back(run.report());
    CHECK_EQ(reports.back().outcome.status == EPLB_OK, end == batches);
    CHECK_EQ(reports.back().result.committed_batches, end);
  }
  return reports;
}

World::World(const Shape& shape, uint32_t world, uint32_t cells, uint32_t sets, Memory memory)
    : shape(shape) {
  std::vector<eplb_handle> handles;
  std::vector<int32_t> ranks;
  for (uint32_t rank = 0; rank < world; ++rank) {
    weights.emplace_back(shape, memory);
    handles.push_back(weights.back().handle());
    ranks.push_back(static_cast<int32_t>(rank));
  }
  engine.emplace_back(engine_config(world, world, cells, sets), ranks, handles);
  std::vector<std::vector<char>> blobs;
  for (uint32_t rank = 0; rank < world; ++rank) blobs.push_back(engine[0].blob(rank));
  const Outcome connected = connect(engine[0], blobs);
  if (connected.status != EPLB_OK) check::fail(__FILE__, __LINE__, connected.error);
  MUST(eplb_engine_seal, engine[0].handle());
}

std::vector<Bytes> World::fill(std::mt19937_64& random) {
  std::vector<Bytes> all;
  for (const Weights& own : weights) {
    all.push_back(random_bytes(shape, random));
    write_all(own, shape, all.back());
  }
  return all;
}

std::vector<Bytes> World::memory() const {
  std::vector<Bytes> all;
  for (const Weights& own : weights) all.push_back(read_all(own, shape));
  return all;
}

int names_left(const std::vector<char>& blob) {
  const std::string start = "/eplb-";
  int left = 0;
  for (auto at = blob.begin();; ++at) {
    at = std::search(at, blob.end(), start.begin(), start.end());
    if (at == blob.end()) return left;
    const std::string name(at, std::find(at, blob.end(), '\0'));
    left += ::access(("/dev/shm" + name).c_str(), F_OK) == 0 ? 1 : 0;
  }
}

}  // namespace ranks
