// SPDX-License-Identifier: Apache-2.0
// Dispatch on a GPU against its twin on the host. Needs one GPU; skipped without.
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>

#include "dispatchers.h"
#include "memory/allocation.h"
#include "memory/cuda_check.h"
#include "memory/cuda_query.h"

using ranks::call;
using ranks::Outcome;
using namespace dispatchers;
using eplb::Allocation;

namespace {

constexpr int kSkipped = 77;  // SKIP_RETURN_CODE

const bool kHaveGpu = [] {
  std::string why_none;
  if (eplb::cuda_device_count(&why_none) > 0) return true;
  std::printf("skipped: %s\n", why_none.c_str());
  std::exit(kSkipped);
}();

std::shared_ptr<eplb::Device> gpu() {
  static const std::shared_ptr<eplb::Device> device = eplb::open_cuda_device(0);
  return device;
}

uint64_t address_of(const eplb::Stream& stream) {
  return reinterpret_cast<uint64_t>(static_cast<cudaStream_t>(stream));
}

// Values in GPU memory.
template <class T>
class OnGpu {
 public:
  explicit OnGpu(const std::vector<T>& values)
      : size_(values.size()), memory_(gpu(), std::max<uint64_t>(1, size_ * sizeof(T))) {
    write(values);
  }
  uint64_t address() const { return memory_.address(); }
  void write(const std::vector<T>& values) const {
    if (size_ > 0) gpu()->write(address(), values.data(), size_ * sizeof(T));
  }
  std::vector<T> read() const {
    std::vector<T> values(size_);
    if (size_ > 0) gpu()->read(values.data(), address(), size_ * sizeof(T));
    return values;
  }

 private:
  size_t size_;
  Allocation memory_;
};

// The same dispatcher twice.
struct Twins {
  Twins(const Shape& shape, const Tables& tables) : on_gpu(shape, 0), on_host(shape, -1) {
    on_gpu.update(tables);
    on_host.update(tables);
  }
  // The ids that the host gives.
  template <class Id>
  std::vector<Id> on_the_host(eplb_dispatch_call call, const std::vector<Id>& logical,
                              const int32_t* valid, const uint32_t* step_salt) const {
    call.valid_tokens = reinterpret_cast<uint64_t>(valid);
    call.step_salt = reinterpret_cast<uint64_t>(step_salt);
    call.stream = 0;
    std::vector<Id> physical(logical.size());
    MUST(eplb_dispatch_host, on_host.handle(), &call, static_cast<const void*>(logical.data()),
         static_cast<void*>(physical.data()));
    return physical;
  }
  Dispatcher on_gpu, on_host;
};

template <class Id>
void compare_with_host(const Shape& shape, uint64_t seed) {
  std::mt19937_64 random(seed);
  const Twins twins(shape, random_tables(shape, random));
  const eplb::Stream stream;
  for (const uint32_t tokens : {0u, 1u, 63u, 64u, 511u, 4096u, 40000u}) {
    for (const uint32_t top_k : {1u, 3u, 8u}) {
      const std::vector<Id> logical =
          random_ids<Id>(uint64_t{tokens} * top_k, shape.experts, random);
      const int32_t valid = static_cast<int32_t>(random() % (tokens + 10)) - 5;
      const uint32_t step_salt = static_cast<uint32_t>(random());
      const OnGpu<int32_t> valid_there({valid});
      const OnGpu<uint32_t> salt_there({step_salt});
      const OnGpu<Id> source(logical), target(std::vector<Id>(logical.size(), 77));
      const bool padded = random() % 2 == 0, salted = random() % 2 == 0,
                 in_place = random() % 4 == 0;
      eplb_dispatch_call call = call_of<Id>(random() % shape.layers, tokens, top_k);
      call.salt = static_cast<uint32_t>(random());
      call.record = random() % 4 != 0;
      const std::vector<Id> expected = twins.on_the_host(call, logical, padded ? &valid : nullptr,
                                                         salted ? &step_salt : nullptr);
      call.logical = source.address();
      call.physical = in_place ? source.address() : target.address();
      call.valid_tokens = padded ? valid_there.address() : 0;
      call.step_salt = salted ? salt_there.address() : 0;
      call.stream = address_of(stream);
      MUST(eplb_dispatch_launch, twins.on_gpu.handle(), &call);
      stream.synchronize();
      CHECK((in_place ? source : target).read() == expected);
    }
  }
  CHECK(twins.on_gpu.loads(address_of(stream)) == twins.on_host.loads());
}

TEST("the kernel gives the ids and loads of the host") {
  // The last two: the most experts that fit into shared memory, and more.
  const Shape shapes[] = {{1, 1, 1}, {3, 7, 2}, {2, 256, 33}, {1, 12288, 2}, {2, 12289, 3}};
  uint64_t seed = 0;
  for (const Shape& shape : shapes) {
    compare_with_host<int32_t>(shape, ++seed);
    compare_with_host<int64_t>(shape, ++seed);
  }
}

TEST("the default stream serves, too") {
  std::mt19937_64 random(20);
  const Shape shape = {2, 16, 4};
  const Twins twins(shape, random_tables(shape, random));
  const std::vector<int32_t> logical = random_ids<int32_t>(1000, shape.experts, random);
  const OnGpu<int32_t> ids(logical);
  eplb_dispatch_call call = call_of<int32_t>(1, 125, 8);
  const std::vector<int32_t> expected = twins.on_the_host(call, logical, nullptr, nullptr);
  call.logical = call.physical = ids.address();
  MUST(eplb_dispatch_launch, twins.on_gpu.handle(), &call);
  EPLB_CUDA(cudaDeviceSynchronize());
  CHECK(ids.read() == expected);
  CHECK(twins.on_gpu.loads() == twins.on_host.loads());
}

// A captured call, instantiated; destroyed with this.
class Replay {
 public:
  Replay(const eplb::Stream& stream, eplb_handle dispatcher, const eplb_dispatch_call& what) {
    cudaGraph_t graph = nullptr;
    EPLB_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    const Outcome outcome = call(eplb_dispatch_launch, dispatcher, &what);
    EPLB_CUDA(cudaStreamEndCapture(stream, &graph));
    CHECK_EQ(outcome.error, "");
    EPLB_CUDA(cudaGraphInstantiate(&graph_, graph, 0));
    EPLB_CUDA(cudaGraphDestroy(graph));
  }
  Replay(const Replay&) = delete;
  ~Replay() { (void)cudaGraphExecDestroy(graph_); }
  void launch(const eplb::Stream& stream) const { EPLB_CUDA(cudaGraphLaunch(graph_, stream)); }

 private:
  cudaGraphExec_t graph_ = nullptr;
};

TEST("a captured launch reads tables, ids, padding and salt as they are in each replay") {
  std::mt19937_64 random(30);
  const Shape shape = {2, 256, 6};
  const Twins twins(shape, random_tables(shape, random));
  const eplb::Stream stream;
  constexpr uint32_t kTokens = 700, kTopK = 8;
  const std::vector<int64_t> empty(kTokens * kTopK, 0);
  const OnGpu<int64_t> source(empty), target(empty);
  const OnGpu<int32_t> valid_there({0});
  const OnGpu<uint32_t> salt_there({0u});
  eplb_dispatch_call call = call_of<int64_t>(1, kTokens, kTopK);
  call.logical = source.address();
  call.physical = target.address();
  call.valid_tokens = valid_there.address();
  call.step_salt = salt_there.address();
  call.stream = address_of(stream);
  call.salt = 5;
  uint64_t before[4] = {}, after[4] = {};
  MUST(eplb_dispatch_address, twins.on_gpu.handle(), before);
  const Replay replay(stream, twins.on_gpu.handle(), call);
  for (int round = 0; round < 10; ++round) {
    const std::vector<int64_t> logical =
        random_ids<int64_t>(kTokens * kTopK, shape.experts, random);
    const int32_t valid = static_cast<int32_t>(random() % kTokens);
    const uint32_t salt = static_cast<uint32_t>(random());
    const Tables tables = random_tables(shape, random);
    source.write(logical);
    valid_there.write({valid});
    salt_there.write({salt});
    twins.on_gpu.update(tables, address_of(stream));
    twins.on_host.update(tables);
    const std::vector<int64_t> expected = twins.on_the_host(call, logical, &valid, &salt);
    replay.launch(stream);
    stream.synchronize();
    CHECK(target.read() == expected);
  }
  MUST(eplb_dispatch_address, twins.on_gpu.handle(), after);
  CHECK(std::equal(before, before + 4, after));
  CHECK(twins.on_gpu.loads(address_of(stream)) == twins.on_host.loads());
}

TEST("updates and snapshots are refused while their stream is captured") {
  std::mt19937_64 random(31);
  const Shape shape = {1, 4, 2};
  const Tables tables = random_tables(shape, random);
  const Twins twins(shape, tables);
  const eplb::Stream stream;
  cudaGraph_t graph = nullptr;
  EPLB_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  const Outcome update = twins.on_gpu.try_update(tables, 0, 1, address_of(stream));
  const Outcome snapshot = call(eplb_dispatch_snapshot, twins.on_gpu.handle(), address_of(stream));
  EPLB_CUDA(cudaStreamEndCapture(stream, &graph));
  EPLB_CUDA(cudaGraphDestroy(graph));
  CHECK_CONTAINS(update.error, "Cannot update dispatch tables: the stream is being captured");
  CHECK_CONTAINS(snapshot.error, "the stream is being captured");
  CHECK(twins.on_gpu.loads() == std::vector<uint64_t>(4, 0));
}

// Nothing waits between the calls, and the caller's tables are overwritten at once.
TEST("updates, launches and snapshots of one stream happen in order") {
  std::mt19937_64 random(40);
  const Shape shape = {4, 256, 33};
  const Dispatcher on_gpu(shape, 0), on_host(shape, -1);
  const eplb::Stream stream;
  constexpr uint32_t kTokens = 4096, kTopK = 8;
  const std::vector<int32_t> logical = random_ids<int32_t>(kTokens * kTopK, shape.experts, random);
  const OnGpu<int32_t> source(logical);
  std::vector<OnGpu<int32_t>> targets;
  std::vector<std::vector<int32_t>> expected;
  for (int round = 0; round < 40; ++round) targets.emplace_back(logical);
  for (int round = 0; round < 40; ++round) {
    Tables tables = random_tables(shape, random);
    const uint32_t layers = 1 + random() % 3, first = random() % (shape.layers - layers + 1);
    eplb_dispatch_call call = call_of<int32_t>(random() % shape.layers, kTokens, kTopK);
    CHECK_EQ(on_host.try_update(tables, first, layers).error, "");
    std::vector<int32_t> physical(logical.size());
    MUST(eplb_dispatch_host, on_host.handle(), &call, static_cast<const void*>(logical.data()),
         static_cast<void*>(physical.data()));
    expected.push_back(physical);
    CHECK_EQ(on_gpu.try_update(tables, first, layers, address_of(stream)).error, "");
    std::fill(tables.physical.begin(), tables.physical.end(), 99);
    std::fill(tables.threshold.begin(), tables.threshold.end(), 0);
    call.logical = source.address();
    call.physical = targets[static_cast<size_t>(round)].address();
    call.stream = address_of(stream);
    MUST(eplb_dispatch_launch, on_gpu.handle(), &call);
    if (round % 10 == 9) {
      MUST(eplb_dispatch_snapshot, on_gpu.handle(), address_of(stream));
      MUST(eplb_dispatch_launch, on_gpu.handle(), &call);  // belongs to the next
      CHECK(on_gpu.read() == on_host.loads());
      MUST(eplb_dispatch_host, on_host.handle(), &call, static_cast<const void*>(logical.data()),
           static_cast<void*>(physical.data()));
    }
  }
  stream.synchronize();
  for (size_t i = 0; i < targets.size(); ++i) CHECK(targets[i].read() == expected[i]);
}

// The host blocks its stream in a function until it is told to go on.
struct Gate {
  static void CUDART_CB wait(void* self) {
    while (!static_cast<Gate*>(self)->open) std::this_thread::yield();
  }
  std::atomic<bool> open{false};
};

TEST("waits for the stream end in time, and can be tried again") {
  std::mt19937_64 random(50);
  const Shape shape = {2, 4, 2};
  const Dispatcher dispatcher(shape, 0);
  const Tables tables = random_tables(shape, random);
  const eplb::Stream stream;
  Gate gate;
  EPLB_CUDA(cudaLaunchHostFunc(stream, Gate::wait, &gate));
  const auto update = [&](uint32_t layer, uint64_t timeout_ms) {
    return call(eplb_dispatch_update, dispatcher.handle(), layer, 1u,
                tables.physical.data() + layer * 8, tables.count.data() + layer * 4,
                tables.threshold.data() + layer * 8, address_of(stream), timeout_ms);
  };
  std::vector<uint64_t> loads(shape.cells());
  const auto read = [&](uint64_t timeout_ms) {
    return call(eplb_dispatch_read, dispatcher.handle(), timeout_ms, loads.data());
  };
  const Outcome first = update(0, 10000), other = update(1, 10000), again = update(0, 50);
  const Outcome snapshot = call(eplb_dispatch_snapshot, dispatcher.handle(), address_of(stream));
  const Outcome early = read(50);
  gate.open = true;
  CHECK_EQ(first.error, "");
  CHECK_EQ(other.error, "");
  CHECK_EQ(again.status, EPLB_TIMEOUT);
  CHECK_EQ(snapshot.error, "");
  CHECK_EQ(early.status, EPLB_TIMEOUT);
  CHECK_EQ(read(10000).error, "");
  CHECK_EQ(update(0, 10000).error, "");
  stream.synchronize();
}

TEST("eplb_dispatch_destroy() ends a read that waits") {
  const eplb_dispatch_config config = {sizeof(config), 1, 0, 1, 1, 1};
  eplb_handle handle = 0;
  MUST(eplb_dispatch_create, &config, &handle);
  const eplb::Stream stream;
  Gate gate;
  EPLB_CUDA(cudaLaunchHostFunc(stream, Gate::wait, &gate));
  MUST(eplb_dispatch_snapshot, handle, address_of(stream));
  Outcome read{EPLB_OK, ""};
  std::thread reader([&] {
    uint64_t load = 0;
    read = call(eplb_dispatch_read, handle, uint64_t{60000}, &load);
    gate.open = true;  // destroy waits for the device
  });
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  MUST(eplb_dispatch_destroy, handle);
  reader.join();
  CHECK_EQ(read.status, EPLB_ABORTED);
}

TEST("eplb_dispatch_host() refuses buffers of the host") {
  const Dispatcher dispatcher({1, 1, 1}, 0);
  const eplb_dispatch_call call = call_of<int32_t>(0, 1, 1);
  const int32_t logical = 0;
  int32_t physical = 0;
  MUST_FAIL(EPLB_INVALID_ARGUMENT, "the dispatcher is on CUDA device 0", eplb_dispatch_host,
            dispatcher.handle(), &call, static_cast<const void*>(&logical),
            static_cast<void*>(&physical));
}

TEST("eplb_dispatch_measure() tells how long a launch takes") {
  const Shape shape = {1, 256, 33};
  std::mt19937_64 random(60);
  const Twins twins(shape, random_tables(shape, random));
  std::vector<int32_t> logical(4096 * 8);
  for (int32_t& id : logical) id = static_cast<int32_t>(random() % 256);
  const OnGpu<int32_t> source(logical), target(logical);
  eplb_dispatch_call call = call_of<int32_t>(0, 4096, 8);
  call.logical = source.address();
  call.physical = target.address();
  std::vector<double> seconds(50);
  MUST(eplb_dispatch_measure, twins.on_gpu.handle(), &call, 50u, seconds.data());
  std::sort(seconds.begin(), seconds.end());
  std::printf("  4096 tokens x top 8 of 256 experts: median %.2f us, worst %.2f us\n",
              1e6 * seconds[25], 1e6 * seconds[49]);
  CHECK(seconds[0] > 0 && seconds[49] < 0.01);
  const std::vector<uint64_t> loads = twins.on_gpu.loads();
  uint64_t sum = 0;
  for (const uint64_t load : loads) sum += load;
  CHECK_EQ(sum, uint64_t{51} * 20 * 4096 * 8);
}

}  // namespace
