// SPDX-License-Identifier: Apache-2.0
// The pull transport on GPUs, against the naive model: by threads, and by processes, some of which
// are killed. Ranks share GPUs where there are fewer. Needs one GPU; skipped without.
#include <cuda_runtime_api.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <thread>

#include "allocation.h"
#include "ranks.h"

using namespace ranks;

namespace {

constexpr int kSkipped = 77;  // SKIP_RETURN_CODE
constexpr uint64_t kConnectMs = 60000;
constexpr uint64_t kRunMs = 30000;

// Asked by a child: what has used CUDA once cannot fork into processes that use it.
const int32_t kGpus = [] {
  std::fflush(stdout);
  const pid_t pid = ::fork();
  if (pid == 0) {
    char why[1024] = "";
    int32_t count = 0;
    eplb_device_count(&count, why, sizeof(why));
    if (count == 0) std::printf("skipped: %s\n", why);
    std::fflush(stdout);
    ::_exit(std::min(count, 100));
  }
  int status = 0;
  ::waitpid(pid, &status, 0);
  const int32_t count = WIFEXITED(status) ? WEXITSTATUS(status) : 0;
  if (count == 0) std::exit(kSkipped);
  std::printf("%d GPUs\n", count);
  return count;
}();

int32_t gpu_of(uint32_t rank) { return static_cast<int32_t>(rank) % kGpus; }

uint32_t count(const Script& script) { return static_cast<uint32_t>(script.batches.size()); }

// ---- weights on GPUs ----------------------------------------------------------------------------

class GpuWeights {
 public:
  // `registered`: an allocation of the test's own for each layer and tensor, at odd addresses.
  GpuWeights(const Shape& shape, int32_t ordinal, bool registered) : shape_(shape) {
    const eplb_weights_config config = {sizeof(config), 1,           ordinal,
                                        shape.layers,   shape.slots, shape.tensors()};
    MUST(eplb_weights_create, &config, shape.tensor_bytes.data(), &handle_);
    if (!registered) {
      MUST(eplb_weights_allocate, handle_, 1u);
      return;
    }
    const auto device = eplb::open_cuda_device(ordinal);
    std::vector<uint64_t> table;
    for (uint32_t i = 0; i < shape.layers * shape.tensors(); ++i) {
      const uint64_t stride = shape.tensor_bytes[i % shape.tensors()] + i % 5;
      own_.emplace_back(device, 3 + stride * shape.slots);
      table.push_back(own_.back().address() + i % 3);
      table.push_back(stride);
    }
    MUST(eplb_weights_register, handle_, table.data());
  }
  GpuWeights(GpuWeights&& other) noexcept
      : shape_(std::move(other.shape_)), own_(std::move(other.own_)), handle_(other.handle_) {
    other.handle_ = 0;
  }
  GpuWeights& operator=(GpuWeights&&) = delete;
  ~GpuWeights() {
    if (handle_ != 0) eplb_weights_destroy(handle_, nullptr, 0);
  }
  eplb_handle handle() const { return handle_; }

  void write(const Bytes& bytes) const {
    for_each_tensor([&](uint32_t layer, uint32_t slot, uint32_t tensor, uint64_t offset) {
      MUST(eplb_weights_write, handle_, layer, slot, tensor, uint64_t{0},
           static_cast<const void*>(&bytes[layer * shape_.slots + slot][offset]),
           shape_.tensor_bytes[tensor]);
    });
  }

  Bytes read() const {
    Bytes bytes(shape_.layers * shape_.slots, std::string(shape_.expert_bytes(), '\0'));
    for_each_tensor([&](uint32_t layer, uint32_t slot, uint32_t tensor, uint64_t offset) {
      MUST(eplb_weights_read, handle_, layer, slot, tensor, uint64_t{0},
           static_cast<void*>(&bytes[layer * shape_.slots + slot][offset]),
           shape_.tensor_bytes[tensor]);
    });
    return bytes;
  }

 private:
  template <class Visit>
  void for_each_tensor(Visit visit) const {
    for (uint32_t layer = 0; layer < shape_.layers; ++layer) {
      for (uint32_t slot = 0; slot < shape_.slots; ++slot) {
        uint64_t offset = 0;
        for (uint32_t tensor = 0; tensor < shape_.tensors(); ++tensor) {
          visit(layer, slot, tensor, offset);
          offset += shape_.tensor_bytes[tensor];
        }
      }
    }
  }

  Shape shape_;
  std::vector<eplb::Allocation> own_;
  eplb_handle handle_ = 0;
};

void expect_equal(const Bytes& actual, const Bytes& expected, const std::string& what) {
  for (size_t i = 0; i < actual.size(); ++i) {
    if (actual[i] == expected[i]) continue;
    const auto at = std::mismatch(actual[i].begin(), actual[i].end(), expected[i].begin()).first;
    check::fail(__FILE__, __LINE__, what, ": byte ", at - actual[i].begin(), " of expert place ", i,
                " differs");
  }
}

struct Options {
  uint32_t cells = 1, sets = 2;
  uint64_t small_bytes = 0;
  bool copy_engine_only = false, registered = false;
};

eplb_engine_config config_of(uint32_t world, uint32_t locals, const Options& options) {
  eplb_engine_config config = engine_config(world, locals, options.cells, options.sets);
  config.small_bytes = options.small_bytes;
  config.copy_engine_only = options.copy_engine_only ? 1 : 0;
  return config;
}

// ---- processes: these come first, see kGpus -----------------------------------------------------

constexpr uint32_t kMostProcesses = 8;
constexpr size_t kMostBlobBytes = 65536;

// What the processes of one job share.
struct Board {
  struct Entry {
    std::atomic<uint32_t> phase, blobs;
    uint64_t bytes[4];
    char blob[4][kMostBlobBytes];  // of the local ranks
    uint32_t runs, committed;
    int32_t status, failed_rank;
  } entries[kMostProcesses];
};

class SharedBoard {
 public:
  SharedBoard()
      : board_(static_cast<Board*>(::mmap(nullptr, sizeof(Board), PROT_READ | PROT_WRITE,
                                          MAP_SHARED | MAP_ANONYMOUS, -1, 0))) {}
  ~SharedBoard() { ::munmap(board_, sizeof(Board)); }
  Board::Entry& operator[](uint32_t process) const { return board_->entries[process]; }

 private:
  Board* board_;
};

template <class Condition>
void await(Condition condition) {
  for (int i = 0; i < 60000; ++i) {
    if (condition()) return;
    ::usleep(500);
  }
  check::fail(__FILE__, __LINE__, "another process did not come");
}

void enter_phase(const SharedBoard& board, uint32_t own, uint32_t phase,
                 const std::vector<uint32_t>& members) {
  board[own].phase = phase;
  for (const uint32_t member : members) await([&] { return board[member].phase >= phase; });
}

// Exchanges blobs among `members`, in rank order, and connects. `round` counts a process' engines.
Outcome join(const SharedBoard& board, const Engine& engine, uint32_t own, uint32_t round,
             const std::vector<uint32_t>& members) {
  const uint32_t locals = static_cast<uint32_t>(engine.local_ranks().size());
  for (uint32_t i = 0; i < locals; ++i) {
    const std::vector<char> blob = engine.blob(i);
    CHECK(blob.size() <= kMostBlobBytes);
    std::memcpy(board[own].blob[i], blob.data(), blob.size());
    board[own].bytes[i] = blob.size();
  }
  board[own].blobs = round;
  std::vector<std::vector<char>> blobs;
  for (const uint32_t member : members) {
    Board::Entry& entry = board[member];
    await([&] { return entry.blobs == round; });
    for (uint32_t i = 0; i < locals; ++i) {
      blobs.emplace_back(entry.blob[i], entry.blob[i] + entry.bytes[i]);
    }
  }
  return connect(engine, blobs, kConnectMs);
}

// A failed check in a process is its exit code.
std::vector<pid_t> start(uint32_t processes, const std::function<void(uint32_t process)>& body) {
  std::vector<pid_t> pids;
  for (uint32_t process = 0; process < processes; ++process) {
    std::fflush(stdout);
    const pid_t pid = ::fork();
    if (pid == 0) {
      try {
        body(process);
        ::_exit(0);
      } catch (const std::exception& error) {
        std::fprintf(stderr, "  process %u: %s\n", process, error.what());
        ::_exit(1);
      }
    }
    pids.push_back(pid);
  }
  return pids;
}

int wait_for(pid_t pid) {
  int status = -1;
  ::waitpid(pid, &status, 0);
  return status;
}

std::vector<uint32_t> all_of(uint32_t processes) {
  std::vector<uint32_t> all(processes);
  std::iota(all.begin(), all.end(), 0);
  return all;
}

// The memory of all ranks before anything moves, the same in every process.
std::vector<Bytes> initial_memory(const Shape& shape, uint32_t world, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<Bytes> memory;
  for (uint32_t rank = 0; rank < world; ++rank) memory.push_back(random_bytes(shape, random));
  return memory;
}

void run_processes(uint32_t processes, uint32_t locals, const Shape& shape,
                   const Options& options) {
  const SharedBoard board;
  const uint32_t world = processes * locals;
  const std::vector<pid_t> pids = start(processes, [&](uint32_t process) {
    std::vector<Bytes> expected = initial_memory(shape, world, 1);
    std::vector<GpuWeights> weights;
    std::vector<int32_t> own;
    std::vector<eplb_handle> handles;
    for (uint32_t rank = process * locals; rank < (process + 1) * locals; ++rank) {
      weights.emplace_back(shape, gpu_of(rank), options.registered);
      weights.back().write(expected[rank]);
      own.push_back(static_cast<int32_t>(rank));
      handles.push_back(weights.back().handle());
    }
    std::mt19937_64 random(2);
    for (uint32_t round = 1; round <= 2; ++round) {  // the same weights, engine after engine
      {
        const Engine engine(config_of(world, locals, options), own, handles);
        CHECK_EQ(join(board, engine, process, round, all_of(processes)).error, "");
        for (int i = 0; i < 4; ++i) {
          const Script script = random_script(shape, world, options.cells, random);
          CHECK_EQ(run(engine, script, kRunMs).outcome.error, "");
          expected = script.apply(expected, count(script));
          for (uint32_t k = 0; k < locals; ++k) {
            expect_equal(weights[k].read(), expected[own[k]], "after a run");
          }
        }
      }
      enter_phase(board, process, round, all_of(processes));  // all have unmapped
    }
  });
  for (const pid_t pid : pids) CHECK_EQ(wait_for(pid), 0);
}

TEST("processes pull from each other, run after run, engine after engine") {
  const Shape shape = {6, 3, {8, 1, 5000, 700000}};
  run_processes(2, 1, shape, {3, 2, 8192, false, false});
  run_processes(4, 1, shape, {2, 1, 0, true, false});
}

TEST("processes pull from memory that their callers own, in many allocations") {
  run_processes(3, 1, {5, 3, {16, 3, 100000, 3 << 20}}, {3, 2, 4096, false, true});
}

TEST("processes of several ranks each pull from each other") {
  run_processes(2, 2, {5, 4, {8, 300000, 77}}, {4, 2, 100, false, false});
  run_processes(2, 4, {4, 2, {1 << 20, 9}}, {2, 2, 100, true, true});
}

struct Ending {
  uint32_t runs, committed, batches;
  bool blamed;  // a survivor named the killed rank
};

// Kills one process at a random moment. The others must agree with each other and with the model,
// and go on with new engines on the weights that they have.
Ending kill_one(uint64_t seed) {
  constexpr uint32_t kWorld = 3;
  constexpr uint32_t kCells = 3;
  const Shape shape = {12, 3, {200000, 5000}};
  const Options options = {kCells, 1 + static_cast<uint32_t>(seed % 3), 8192, seed % 2 == 0, false};
  const uint32_t victim = static_cast<uint32_t>(seed % kWorld);
  std::vector<uint32_t> survivors = all_of(kWorld);
  survivors.erase(survivors.begin() + victim);
  const auto nth_script = [&](uint32_t run) {
    std::mt19937_64 random(1000 * seed + run % 8);
    return random_script(shape, kWorld, kCells, random);
  };
  const SharedBoard board;
  const std::vector<pid_t> pids = start(kWorld, [&](uint32_t rank) {
    std::vector<Bytes> expected = initial_memory(shape, kWorld, seed);
    const GpuWeights weights(shape, gpu_of(rank), false);
    weights.write(expected[rank]);
    std::vector<Script> scripts;
    for (uint32_t i = 0; i < 8; ++i) scripts.push_back(nth_script(i));
    RunReport report;
    uint32_t runs = 0;
    {
      const Engine engine(config_of(kWorld, 1, options), {static_cast<int32_t>(rank)},
                          {weights.handle()});
      CHECK_EQ(join(board, engine, rank, 1, all_of(kWorld)).error, "");
      enter_phase(board, rank, 1, all_of(kWorld));
      for (;; ++runs) {
        report = run(engine, scripts[runs % 8], 500);
        if (report.outcome.status != EPLB_OK) break;
      }
      if (rank == victim) ::pause();
      enter_phase(board, rank, 2, survivors);
    }
    board[rank].runs = runs;
    board[rank].committed = report.result.committed_batches;
    board[rank].status = report.outcome.status;
    board[rank].failed_rank = report.result.failed_rank;
    for (uint32_t i = 0; i < runs; ++i) {
      expected = scripts[i % 8].apply(expected, count(scripts[i % 8]));
    }
    expected = scripts[runs % 8].apply(expected, report.result.committed_batches);
    expect_equal(weights.read(), expected[rank], "after a peer was killed");
    // The survivors go on as a world of two.
    const int32_t place = rank == survivors[0] ? 0 : 1;
    const Engine next(config_of(2, 1, options), {place}, {weights.handle()});
    CHECK_EQ(join(board, next, rank, 2, survivors).error, "");
    Script move{shape, 2, {{0, 12}}, {}};
    move.ops = {{0, 0, 0, EPLB_OP_SEND, 4, 1, 1, 2}, {0, 0, 1, EPLB_OP_RECEIVE, 4, 2, 0, 1}};
    CHECK_EQ(run(next, move, kRunMs).outcome.error, "");
    if (place == 1) expected[rank][4 * 3 + 2] = expected[survivors[0]][4 * 3 + 1];
    expect_equal(weights.read(), expected[rank], "after going on");
    enter_phase(board, rank, 3, survivors);
  });
  for (const uint32_t rank : all_of(kWorld)) await([&] { return board[rank].phase >= 1; });
  std::mt19937_64 random(seed);
  ::usleep(static_cast<useconds_t>(random() % 8000));
  ::kill(pids[victim], SIGKILL);
  CHECK(WIFSIGNALED(wait_for(pids[victim])));
  for (const uint32_t rank : survivors) CHECK_EQ(wait_for(pids[rank]), 0);
  const Board::Entry &a = board[survivors[0]], &b = board[survivors[1]];
  CHECK_EQ(a.runs, b.runs);
  CHECK_EQ(a.committed, b.committed);
  const int32_t killed = static_cast<int32_t>(victim);
  return {a.runs, a.committed, count(nth_script(a.runs)),
          a.failed_rank == killed || b.failed_rank == killed};
}

TEST("survivors of a killed process agree, and go on with the weights they have") {
  int halfway = 0, blamed = 0;
  for (uint64_t seed = 0; seed < 6; ++seed) {
    const Ending ending = kill_one(seed);
    halfway += ending.committed > 0 && ending.committed < ending.batches ? 1 : 0;
    blamed += ending.blamed ? 1 : 0;
    std::printf("  killed in run %u after %u of %u batches\n", ending.runs, ending.committed,
                ending.batches);
  }
  CHECK(halfway > 0);  // else the test has not met what it is about
  CHECK(blamed > 0);
}

TEST("eplb_engine_export() names the layer and tensor that other processes cannot map") {
  const pid_t pid = start(1, [](uint32_t) {
    const auto device = eplb::open_cuda_device(0);
    const eplb::Allocation plain(device, 64);
    void* pooled = nullptr;
    CHECK(cudaSetDevice(0) == cudaSuccess && cudaMallocAsync(&pooled, 64, nullptr) == cudaSuccess &&
          cudaStreamSynchronize(nullptr) == cudaSuccess);
    const eplb_weights_config config = {sizeof(config), 1, 0, 1, 1, 2};
    const uint64_t bytes[2] = {8, 8};
    const uint64_t table[4] = {plain.address(), 8, reinterpret_cast<uint64_t>(pooled), 8};
    eplb_handle weights = 0;
    MUST(eplb_weights_create, &config, static_cast<const uint64_t*>(bytes), &weights);
    MUST(eplb_weights_register, weights, static_cast<const uint64_t*>(table));
    const Engine engine(config_of(2, 1, {}), {1}, {weights});
    uint64_t size = 0;
    const Outcome refused = call(eplb_engine_export, engine.handle(), 0u,
                                 static_cast<void*>(nullptr), uint64_t{0}, &size);
    CHECK_EQ(refused.status, EPLB_UNSUPPORTED);
    CHECK_CONTAINS(refused.error, "rank 1 with other processes: layer 0, tensor 1 is memory of a");
    CHECK_CONTAINS(refused.error, "expandable_segments:False");
  })[0];
  CHECK_EQ(wait_for(pid), 0);
}

// ---- one process: CUDA is used from here on -----------------------------------------------------

template <class Task>
void in_parallel(size_t tasks, Task task) {
  std::vector<std::thread> threads;
  for (size_t i = 0; i < tasks; ++i) threads.emplace_back([&task, i] { task(i); });
  for (std::thread& thread : threads) thread.join();
}

struct GpuWorld {
  GpuWorld(const Shape& shape, uint32_t world, const Options& options, bool engine_per_rank)
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
      engines.emplace_back(config_of(world, locals, options), own, handles);
      for (uint32_t i = 0; i < locals; ++i) blobs.push_back(engines.back().blob(i));
    }
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
    std::vector<Bytes> all;
    for (const GpuWeights& own : weights) {
      all.push_back(random_bytes(shape, random));
      own.write(all.back());
    }
    return all;
  }

  void expect(const std::vector<Bytes>& expected, const std::string& what) const {
    for (size_t rank = 0; rank < weights.size(); ++rank) {
      expect_equal(weights[rank].read(), expected[rank], text_of(what, rank));
    }
  }

  static std::string text_of(const std::string& what, size_t rank) {
    return what + ", rank " + std::to_string(rank);
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
        const Options options = {1 + static_cast<uint32_t>(random() % shape.slots),
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
  const eplb_engine_config both = config_of(2, 2, {}), one = config_of(2, 1, {});
  eplb_handle engine = 0;
  const int32_t all[2] = {0, 1};
  const eplb_handle handles[2] = {host.handle(), gpu.handle()};
  MUST_FAIL(EPLB_UNSUPPORTED, "of rank 1 are on a GPU, but those of rank 0 in host memory",
            eplb_engine_create, &both, static_cast<const int32_t*>(all),
            static_cast<const eplb_handle*>(handles), &engine);
  const Engine on_host(one, {0}, {host.handle()}), on_gpu(one, {1}, {gpu.handle()});
  const Outcome refused = connect(on_host, {on_host.blob(0), on_gpu.blob(0)});
  CHECK_EQ(refused.status, EPLB_PEER_MISMATCH);
  CHECK_CONTAINS(refused.error, "rank 1: its memory is a GPU's, but rank 0's is the host's");
}

}  // namespace
