// SPDX-License-Identifier: Apache-2.0
// Ranks for tests: weights and engines through the C API, programs, and a naive model of what a
// program does, on plain byte strings.
#pragma once

#include <atomic>
#include <cstdint>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "eplb.h"

namespace ranks {

// The status and text of one call.
struct Outcome {
  int32_t status;
  std::string error;
};

template <class Function, class... Arguments>
Outcome call(Function function, Arguments... arguments) {
  char error[1024] = "";
  const int32_t status = function(arguments..., error, sizeof(error));
  return {status, error};
}

// A call that must succeed.
#define MUST(...)                                                               \
  do {                                                                          \
    const ::ranks::Outcome must_outcome = ::ranks::call(__VA_ARGS__);           \
    if (must_outcome.status != EPLB_OK) {                                       \
      ::check::fail(__FILE__, __LINE__, #__VA_ARGS__ ": ", must_outcome.error); \
    }                                                                           \
  } while (false)

// A call that must fail with this status, and a text with this part.
#define MUST_FAIL(expected, part, ...)                                \
  do {                                                                \
    const ::ranks::Outcome must_outcome = ::ranks::call(__VA_ARGS__); \
    CHECK_EQ(must_outcome.status, expected);                          \
    CHECK_CONTAINS(must_outcome.error, part);                         \
  } while (false)

// Runs task(0) … task(count - 1), each on a thread of its own.
template <class Task>
void in_parallel(size_t count, Task task) {
  std::vector<std::thread> threads;
  for (size_t i = 0; i < count; ++i) threads.emplace_back([&task, i] { task(i); });
  for (std::thread& thread : threads) thread.join();
}

struct Shape {
  uint32_t layers = 1, slots = 1;
  std::vector<uint64_t> tensor_bytes = {8};
  uint32_t tensors() const { return static_cast<uint32_t>(tensor_bytes.size()); }
  uint64_t expert_bytes() const;
};

enum class Memory { kPrivate, kShared, kRegistered };

// The weights of one rank; destroyed with this.
class Weights {
 public:
  Weights(const Shape& shape, Memory memory);
  Weights(Weights&& other) noexcept : handle_(other.handle_), own_(std::move(other.own_)) {
    other.handle_ = 0;
  }
  Weights& operator=(Weights&&) = delete;
  ~Weights();
  eplb_handle handle() const { return handle_; }
  // The caller's memory, with what lies between the experts.
  const std::vector<char>& registered() const { return own_; }

 private:
  eplb_handle handle_ = 0;
  std::vector<char> own_;
};

// Experts of one rank as byte strings, all tensors back to back: [layers][slots].
using Bytes = std::vector<std::string>;

// Reads host weights where they are, as a model does: also while a run uses them.
class Window {
 public:
  Window(const Weights& weights, const Shape& shape);
  Bytes read() const;

 private:
  Shape shape_;
  std::vector<uint64_t> address_, stride_;  // [layers][tensors]
};

Bytes random_bytes(const Shape& shape, std::mt19937_64& random);
void write_all(const Weights& weights, const Shape& shape, const Bytes& bytes);
Bytes read_all(const Weights& weights, const Shape& shape);

// An operation, as in eplb.h.
struct Op {
  int32_t batch, round, rank, code, layer, slot, peer, peer_slot;
};
struct BatchLayers {
  int32_t first, end;
};

// A program of all ranks, and what it does.
struct Script {
  Shape shape;
  uint32_t world = 1;
  std::vector<BatchLayers> batches;
  std::vector<Op> ops;

  // The words for some local ranks.
  std::vector<int32_t> words(const std::vector<int32_t>& local_ranks) const;
  // Memory of all ranks after the leading `batches` batches.
  std::vector<Bytes> apply(std::vector<Bytes> memory, uint32_t batches) const;
};

// Every kind of operation, in one to three layers per batch; at most `cells` staging cells.
Script random_script(const Shape& shape, uint32_t world, uint32_t cells, std::mt19937_64& random);
// Flags about two thirds of the operations that may be direct.
void make_direct(Script* script, std::mt19937_64& random);
// The most staging cells that a rank needs for a batch, at least 1.
uint32_t cells_needed(const Script& script);

eplb_engine_config engine_config(uint32_t world, uint32_t locals, uint32_t cells, uint32_t sets);

// An engine of some ranks; destroyed with this.
class Engine {
 public:
  // Without `local_nodes` all ranks are on one node.
  Engine(const eplb_engine_config& config, const std::vector<int32_t>& local_ranks,
         const std::vector<eplb_handle>& weights, const std::vector<int32_t>& local_nodes = {});
  Engine(Engine&& other) noexcept : handle_(other.handle_), ranks_(std::move(other.ranks_)) {
    other.handle_ = 0;
  }
  Engine& operator=(Engine&&) = delete;
  ~Engine();
  eplb_handle handle() const { return handle_; }
  const std::vector<int32_t>& local_ranks() const { return ranks_; }
  std::vector<char> blob(uint32_t index) const;

 private:
  eplb_handle handle_ = 0;
  std::vector<int32_t> ranks_;
};

Outcome connect(const Engine& engine, const std::vector<std::vector<char>>& blobs,
                uint64_t timeout_ms = 10000);

struct RunReport {
  Outcome outcome;
  eplb_run_result result;
  std::vector<uint64_t> rank_bytes;  // [locals][2]
};
eplb_run_config run_config(uint64_t timeout_ms, bool held, uint64_t bytes_per_second = 0);
RunReport run(const Engine& engine, const Script& script, const eplb_run_config& config);
RunReport run(const Engine& engine, const Script& script, uint64_t timeout_ms = 10000,
              bool held = false);

struct Counts {
  uint32_t committed, agreed, runs;
};
Counts progress(const Engine& engine);
// `committed`: what the call wrote, also when it failed.
Outcome commit(const Engine& engine, uint32_t batches, uint32_t* committed,
               uint64_t timeout_ms = 10000);

// A held run in progress, on a thread of its own. Aborted with this.
class HeldRun {
 public:
  // Returns once the run has begun; or ended, if it is refused.
  HeldRun(const Engine& engine, const Script& script, uint64_t timeout_ms = 30000,
          uint64_t bytes_per_second = 0);
  HeldRun(const HeldRun&) = delete;
  ~HeldRun();
  // Fails unless `agreed` batches are agreed on within a few seconds.
  void await_agreed(uint32_t agreed) const;
  // Waits for its end.
  const RunReport& report();

 private:
  const Engine& engine_;
  RunReport report_ = {};
  std::atomic<bool> ended_{false};
  std::thread thread_;
};

// Runs a script in all engines of a job, held: permits two batches at a time, up to `end`. If more
// are left, all engines are aborted then, once what can be staged is. Fails if more is committed.
std::vector<RunReport> run_held(const std::vector<Engine>& engines, const Script& script,
                                uint32_t end, uint32_t sets);

// A whole world in this process, in one engine.
struct World {
  World(const Shape& shape, uint32_t world, uint32_t cells, uint32_t sets,
        Memory memory = Memory::kPrivate);
  Shape shape;
  std::vector<Weights> weights;
  std::vector<Engine> engine;  // one

  std::vector<Bytes> fill(std::mt19937_64& random);
  std::vector<Bytes> memory() const;
};

// How many of the names of shared memory in a blob exist.
int names_left(const std::vector<char>& blob);

}  // namespace ranks
