// SPDX-License-Identifier: Apache-2.0
// The pull transport on GPUs, by processes, some of which are killed. Needs one GPU.
#include <cuda_runtime_api.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstring>
#include <functional>
#include <numeric>

#include "gpu_ranks.h"

using namespace ranks;

namespace {

constexpr uint64_t kConnectMs = 60000;
constexpr uint64_t kRunMs = 30000;

const int32_t kGpus = require_gpus();

int32_t gpu_of(uint32_t rank) { return static_cast<int32_t>(rank) % kGpus; }

uint32_t count(const Script& script) { return static_cast<uint32_t>(script.batches.size()); }

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
                   const PullOptions& options) {
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
        const Engine engine(pull_config(world, locals, options), own, handles);
        CHECK_EQ(join(board, engine, process, round, all_of(processes)).error, "");
        for (int i = 0; i < 4; ++i) {
          const Script script = random_script(shape, world, options.cells, random);
          CHECK_EQ(run(engine, script, kRunMs).outcome.error, "");
          expected = script.apply(expected, count(script));
          for (uint32_t k = 0; k < locals; ++k) {
            weights[k].expect(expected[own[k]], "after a run");
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
  const PullOptions options = {kCells, 1 + static_cast<uint32_t>(seed % 3), 8192, seed % 2 == 0,
                               false};
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
      const Engine engine(pull_config(kWorld, 1, options), {static_cast<int32_t>(rank)},
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
    weights.expect(expected[rank], "after a peer was killed");
    // The survivors go on as a world of two.
    const int32_t place = rank == survivors[0] ? 0 : 1;
    const Engine next(pull_config(2, 1, options), {place}, {weights.handle()});
    CHECK_EQ(join(board, next, rank, 2, survivors).error, "");
    Script move{shape, 2, {{0, 12}}, {}};
    move.ops = {{0, 0, 0, EPLB_OP_SEND, 4, 1, 1, 2}, {0, 0, 1, EPLB_OP_RECEIVE, 4, 2, 0, 1}};
    CHECK_EQ(run(next, move, kRunMs).outcome.error, "");
    if (place == 1) expected[rank][4 * 3 + 2] = expected[survivors[0]][4 * 3 + 1];
    weights.expect(expected[rank], "after going on");
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
    const Engine engine(pull_config(2, 1, {}), {1}, {weights});
    uint64_t size = 0;
    const Outcome refused = call(eplb_engine_export, engine.handle(), 0u,
                                 static_cast<void*>(nullptr), uint64_t{0}, &size);
    CHECK_EQ(refused.status, EPLB_UNSUPPORTED);
    CHECK_CONTAINS(refused.error, "rank 1 with other processes: layer 0, tensor 1 is memory of a");
    CHECK_CONTAINS(refused.error, "expandable_segments:False");
  })[0];
  CHECK_EQ(wait_for(pid), 0);
}

}  // namespace
