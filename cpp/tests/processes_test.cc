// SPDX-License-Identifier: Apache-2.0
// Several processes that pull from each other, some of which are killed. Every process of a job
// runs the same program text; blobs and results go through memory that the forked processes share.
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <functional>

#include "ranks.h"

using namespace ranks;

namespace {

constexpr uint32_t kWorld = 3;
constexpr size_t kMostBlobBytes = 16384;

// What the processes of one job share.
struct Board {
  struct Entry {
    std::atomic<uint32_t> round;  // the last engine whose blob is here
    uint64_t bytes;
    char blob[kMostBlobBytes];
    std::atomic<uint32_t> phase;
    int32_t status, failed_rank;
    uint32_t committed;
  } ranks[kWorld];
};

class SharedBoard {
 public:
  SharedBoard()
      : board_(static_cast<Board*>(::mmap(nullptr, sizeof(Board), PROT_READ | PROT_WRITE,
                                          MAP_SHARED | MAP_ANONYMOUS, -1, 0))) {}
  ~SharedBoard() { ::munmap(board_, sizeof(Board)); }
  Board* operator->() const { return board_; }

 private:
  Board* board_;
};

int names_left(const SharedBoard& board) {
  int left = 0;
  for (const Board::Entry& entry : board->ranks) {
    left += ranks::names_left({entry.blob, entry.blob + entry.bytes});
  }
  return left;
}

template <class Condition>
void await(Condition condition) {
  for (int i = 0; i < 20000; ++i) {
    if (condition()) return;
    ::usleep(500);
  }
  check::fail(__FILE__, __LINE__, "another process did not come");
}

// Exchanges blobs among `members` (by new rank; values are places on the board) and connects.
Outcome join(const SharedBoard& board, const Engine& engine, uint32_t place, uint32_t round,
             const std::vector<uint32_t>& members) {
  const std::vector<char> own = engine.blob(0);
  CHECK(own.size() <= kMostBlobBytes);
  std::memcpy(board->ranks[place].blob, own.data(), own.size());
  board->ranks[place].bytes = own.size();
  board->ranks[place].round = round;
  std::vector<std::vector<char>> blobs;
  for (const uint32_t member : members) {
    const Board::Entry& entry = board->ranks[member];
    await([&] { return entry.round == round; });
    blobs.emplace_back(entry.blob, entry.blob + entry.bytes);
  }
  return connect(engine, blobs);
}

void enter_phase(const SharedBoard& board, uint32_t place, uint32_t phase,
                 const std::vector<uint32_t>& members) {
  board->ranks[place].phase = phase;
  for (const uint32_t member : members) {
    await([&] { return board->ranks[member].phase >= phase; });
  }
}

// Forks one process per rank. A failed check in one is its exit code.
std::vector<pid_t> start(const std::function<void(uint32_t rank)>& body) {
  std::vector<pid_t> pids;
  for (uint32_t rank = 0; rank < kWorld; ++rank) {
    std::fflush(stdout);
    const pid_t pid = ::fork();
    if (pid == 0) {
      try {
        body(rank);
        ::_exit(0);
      } catch (const std::exception& error) {
        std::fprintf(stderr, "  process of rank %u: %s\n", rank, error.what());
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

const std::vector<uint32_t> kAll = {0, 1, 2};

// The memory of all ranks before anything moves, the same in every process.
std::vector<Bytes> initial_memory(const Shape& shape, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<Bytes> memory;
  for (uint32_t rank = 0; rank < kWorld; ++rank) memory.push_back(random_bytes(shape, random));
  return memory;
}

TEST("three processes pull from each other, run after run, and leave /dev/shm clean") {
  const Shape shape = {6, 3, {8, 1, 5000}};
  const SharedBoard board;
  const std::vector<pid_t> pids = start([&](uint32_t rank) {
    const Weights weights(shape, Memory::kShared);
    std::vector<Bytes> expected = initial_memory(shape, 1);
    write_all(weights, shape, expected[rank]);
    const Engine engine(engine_config(kWorld, 1, 3, 2), {static_cast<int32_t>(rank)},
                        {weights.handle()});
    CHECK_EQ(join(board, engine, rank, 1, kAll).error, "");
    enter_phase(board, rank, 1, kAll);
    MUST(eplb_engine_seal, engine.handle());
    enter_phase(board, rank, 2, kAll);
    CHECK_EQ(names_left(board), 0);
    std::mt19937_64 random(2);
    for (int i = 0; i < 10; ++i) {
      const Script script = random_script(shape, kWorld, 3, random);
      CHECK_EQ(run(engine, script).outcome.error, "");
      expected = script.apply(expected, static_cast<uint32_t>(script.batches.size()));
      CHECK(read_all(weights, shape) == expected[rank]);
    }
  });
  for (const pid_t pid : pids) CHECK_EQ(wait_for(pid), 0);
  CHECK_EQ(names_left(board), 0);
}

struct Ending {
  uint32_t committed, batches;
  bool blamed;  // a survivor named the killed rank
};

// Kills one process at a random moment of a run. The others must agree with each other and with the
// model, and go on with new engines on the weights that they have.
Ending kill_one(uint64_t seed) {
  const Shape shape = {10, 3, {8, 80000}};
  const SharedBoard board;
  std::mt19937_64 random(seed);
  const Script script = random_script(shape, kWorld, 3, random);
  const uint32_t victim = static_cast<uint32_t>(seed % kWorld);
  std::vector<uint32_t> survivors = kAll;
  survivors.erase(survivors.begin() + victim);
  const std::vector<pid_t> pids = start([&](uint32_t rank) {
    const Weights weights(shape, Memory::kShared);
    const std::vector<Bytes> before = initial_memory(shape, seed);
    write_all(weights, shape, before[rank]);
    std::vector<Bytes> expected;
    {
      const Engine engine(engine_config(kWorld, 1, 3, 1 + seed % 2), {static_cast<int32_t>(rank)},
                          {weights.handle()});
      CHECK_EQ(join(board, engine, rank, 1, kAll).error, "");
      enter_phase(board, rank, 1, kAll);
      MUST(eplb_engine_seal, engine.handle());
      enter_phase(board, rank, 2, kAll);
      const RunReport report = run(engine, script, 200);
      if (rank == victim) ::pause();
      board->ranks[rank].status = report.outcome.status;
      board->ranks[rank].committed = report.result.committed_batches;
      board->ranks[rank].failed_rank = report.result.failed_rank;
      expected = script.apply(before, report.result.committed_batches);
      CHECK(read_all(weights, shape) == expected[rank]);
    }
    // The survivors go on as a world of two.
    enter_phase(board, rank, 3, survivors);
    const int32_t place = rank == survivors[0] ? 0 : 1;
    const Engine next(engine_config(2, 1, 3, 1), {place}, {weights.handle()});
    CHECK_EQ(join(board, next, rank, 2, survivors).error, "");
    Script move{shape, 2, {{0, 10}}, {}};
    move.ops = {{0, 0, 0, EPLB_OP_SEND, 4, 1, 1, 2}, {0, 0, 1, EPLB_OP_RECEIVE, 4, 2, 0, 1}};
    CHECK_EQ(run(next, move).outcome.error, "");
    if (place == 1) expected[rank][4 * 3 + 2] = expected[survivors[0]][4 * 3 + 1];
    CHECK(read_all(weights, shape) == expected[rank]);
    enter_phase(board, rank, 4, survivors);
  });
  for (const uint32_t rank : kAll) await([&] { return board->ranks[rank].phase >= 2; });
  ::usleep(static_cast<useconds_t>(random() % 5000));
  ::kill(pids[victim], SIGKILL);
  CHECK(WIFSIGNALED(wait_for(pids[victim])));
  for (const uint32_t rank : survivors) CHECK_EQ(wait_for(pids[rank]), 0);
  const Board::Entry &a = board->ranks[survivors[0]], &b = board->ranks[survivors[1]];
  CHECK_EQ(a.committed, b.committed);
  CHECK_EQ(a.status == EPLB_OK, b.status == EPLB_OK);
  CHECK_EQ(names_left(board), 0);
  const int32_t killed = static_cast<int32_t>(victim);
  return {a.committed, static_cast<uint32_t>(script.batches.size()),
          a.failed_rank == killed || b.failed_rank == killed};
}

TEST("survivors of a killed process agree, and go on with the weights they have") {
  int halfway = 0, blamed = 0;
  // Moments are random: as many runs as it takes to meet what the test is about.
  for (uint64_t seed = 0; seed < 12 || (halfway * blamed == 0 && seed < 300); ++seed) {
    const Ending ending = kill_one(seed);
    halfway += ending.committed > 0 && ending.committed < ending.batches ? 1 : 0;
    blamed += ending.blamed ? 1 : 0;
  }
  CHECK(halfway > 0);
  CHECK(blamed > 0);
}

// Kills one process of a held run at a random moment, while callers permit at their own paces, one
// of them not to the end. The survivors commit only what is permitted to them, and settle on what
// one of them has committed.
// Returns what the two survivors had committed before, and the batches of the program.
std::vector<uint32_t> kill_one_held(uint64_t seed) {
  const Shape shape = {10, 3, {8, 20000}};
  const SharedBoard board;
  std::mt19937_64 random(seed);
  const Script script = random_script(shape, kWorld, 3, random);
  const uint32_t batches = static_cast<uint32_t>(script.batches.size());
  const uint32_t victim = static_cast<uint32_t>(seed % kWorld);
  std::vector<uint32_t> survivors = kAll;
  survivors.erase(survivors.begin() + victim);
  const std::vector<pid_t> pids = start([&](uint32_t rank) {
    const Weights weights(shape, Memory::kShared);
    const Window memory(weights, shape);
    const std::vector<Bytes> before = initial_memory(shape, seed);
    write_all(weights, shape, before[rank]);
    const Engine engine(engine_config(kWorld, 1, 3, 1 + seed % 3), {static_cast<int32_t>(rank)},
                        {weights.handle()});
    CHECK_EQ(join(board, engine, rank, 1, kAll).error, "");
    enter_phase(board, rank, 1, kAll);
    MUST(eplb_engine_seal, engine.handle());
    enter_phase(board, rank, 2, kAll);
    HeldRun run(engine, script, 300);
    std::mt19937_64 pace(seed + rank);
    const uint32_t end = rank == survivors[1] ? pace() % batches : batches;
    uint32_t permitted = 0, committed = 0;
    Outcome outcome{EPLB_OK, ""};
    while (permitted < end && outcome.status == EPLB_OK) {
      ::usleep(static_cast<useconds_t>(pace() % 600));
      outcome = commit(engine, ++permitted, &committed);
      CHECK(committed <= permitted);
    }
    if (rank == victim) ::pause();
    committed = run.report().result.committed_batches;
    CHECK(committed <= permitted);
    CHECK(memory.read() == script.apply(before, committed)[rank]);
    board->ranks[rank].committed = committed;
    enter_phase(board, rank, 3, survivors);
    const uint32_t most =
        std::max(board->ranks[survivors[0]].committed, board->ranks[survivors[1]].committed);
    MUST(eplb_engine_settle, engine.handle(), most, &committed);
    CHECK_EQ(committed, most);
    CHECK(memory.read() == script.apply(before, most)[rank]);
    enter_phase(board, rank, 4, survivors);
  });
  for (const uint32_t rank : kAll) await([&] { return board->ranks[rank].phase >= 2; });
  ::usleep(static_cast<useconds_t>(random() % 5000));
  ::kill(pids[victim], SIGKILL);
  CHECK(WIFSIGNALED(wait_for(pids[victim])));
  for (const uint32_t rank : survivors) CHECK_EQ(wait_for(pids[rank]), 0);
  CHECK_EQ(names_left(board), 0);
  return {board->ranks[survivors[0]].committed, board->ranks[survivors[1]].committed, batches};
}

TEST("survivors of a process killed in a held run settle on the same batches") {
  int halfway = 0, apart = 0;
  for (uint64_t seed = 0; seed < 12 || (halfway * apart == 0 && seed < 300); ++seed) {
    const std::vector<uint32_t> ending = kill_one_held(seed);
    halfway += ending[0] > 0 && ending[0] < ending[2] ? 1 : 0;
    apart += ending[0] != ending[1] ? 1 : 0;
  }
  CHECK(halfway > 0);
  CHECK(apart > 0);
}

TEST("a process that exits without destroying anything removes its names, and no parent's") {
  const Weights weights({1, 1, {8}}, Memory::kShared);
  const Engine engine(engine_config(2, 1, 1, 1), {0}, {weights.handle()});
  const std::vector<char> own = engine.blob(0);
  const SharedBoard board;
  std::fflush(stdout);
  const pid_t pid = ::fork();
  if (pid == 0) {
    static auto* kept = new Weights({1, 1, {8}}, Memory::kShared);
    static auto* joined = new Engine(engine_config(2, 1, 1, 1), {1}, {kept->handle()});
    const std::vector<char> blob = joined->blob(0);
    std::memcpy(board->ranks[1].blob, blob.data(), blob.size());
    board->ranks[1].bytes = blob.size();
    std::exit(names_left(board) == 1 ? 0 : 1);
  }
  CHECK_EQ(wait_for(pid), 0);
  CHECK_EQ(names_left(board), 0);
  CHECK_EQ(ranks::names_left(own), 2);
}

TEST("eplb_engine_seal() of the others removes the names of a process killed before its own") {
  const Shape shape = {1, 1, {8}};
  const SharedBoard board;
  const std::vector<pid_t> pids = start([&](uint32_t rank) {
    const Weights weights(shape, Memory::kShared);
    const Engine engine(engine_config(kWorld, 1, 1, 1), {static_cast<int32_t>(rank)},
                        {weights.handle()});
    CHECK_EQ(join(board, engine, rank, 1, kAll).error, "");
    enter_phase(board, rank, 1, kAll);
    CHECK(names_left(board) > 0);
    enter_phase(board, rank, 2, kAll);
    if (rank == 0) ::raise(SIGKILL);  // the one that made the control block
    MUST(eplb_engine_seal, engine.handle());
  });
  CHECK(WIFSIGNALED(wait_for(pids[0])));
  CHECK_EQ(wait_for(pids[1]), 0);
  CHECK_EQ(wait_for(pids[2]), 0);
  CHECK_EQ(names_left(board), 0);
}

}  // namespace
