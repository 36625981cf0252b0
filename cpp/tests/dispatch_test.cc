// SPDX-License-Identifier: Apache-2.0
// Dispatch on the host against a naive model, refusals, snapshots of loads.
#include <atomic>
#include <set>
#include <thread>

#include "dispatchers.h"

using ranks::call;
using ranks::Outcome;
using namespace dispatchers;

namespace {

constexpr uint64_t kSecond = 1000;  // milliseconds

// Random calls of one id type, each compared with the model; loads in the end.
template <class Id>
void compare_with_model(const Shape& shape, uint64_t seed) {
  std::mt19937_64 random(seed);
  const Dispatcher dispatcher(shape, -1);
  const Tables tables = random_tables(shape, random);
  dispatcher.update(tables);
  std::vector<uint64_t> loads(shape.cells(), 0);
  for (int round = 0; round < 40; ++round) {
    const uint32_t tokens = random() % 50, top_k = 1 + random() % 9;
    eplb_dispatch_call call = call_of<Id>(random() % shape.layers, tokens, top_k);
    const std::vector<Id> logical = random_ids<Id>(uint64_t{tokens} * top_k, shape.experts, random);
    const int32_t valid = static_cast<int32_t>(random() % (tokens + 10)) - 5;
    const uint32_t step_salt = static_cast<uint32_t>(random());
    call.salt = static_cast<uint32_t>(random());
    call.record = random() % 4 != 0;
    if (round % 2 == 0) call.valid_tokens = reinterpret_cast<uint64_t>(&valid);
    if (round % 3 == 0) call.step_salt = reinterpret_cast<uint64_t>(&step_salt);
    const std::vector<Id> expected =
        naive_dispatch(tables, call, logical, round % 2 == 0 ? int64_t{valid} : int64_t{tokens},
                       uint64_t{call.salt} + (round % 3 == 0 ? step_salt : 0), &loads);

    std::vector<Id> ids = logical, physical(logical.size(), 77);
    if (round % 5 == 0) {  // in place
      MUST(eplb_dispatch_host, dispatcher.handle(), &call, static_cast<const void*>(ids.data()),
           static_cast<void*>(ids.data()));
      CHECK(ids == expected);
    } else if (round % 5 == 1) {  // by address
      call.logical = address_of(logical);
      call.physical = address_of(physical);
      MUST(eplb_dispatch_launch, dispatcher.handle(), &call);
      CHECK(physical == expected);
    } else {
      MUST(eplb_dispatch_host, dispatcher.handle(), &call, static_cast<const void*>(ids.data()),
           static_cast<void*>(physical.data()));
      CHECK(physical == expected);
    }
  }
  CHECK(dispatcher.loads() == loads);
}

TEST("a host dispatcher gives the ids and loads of the model") {
  const Shape shapes[] = {{1, 1, 1}, {3, 7, 2}, {2, 256, 33}, {5, 20000, 3}};
  for (uint64_t seed = 0; seed < 12; ++seed) {
    compare_with_model<int32_t>(shapes[seed % std::size(shapes)], seed);
    compare_with_model<int64_t>(shapes[seed % std::size(shapes)], 100 + seed);
  }
}

// Golden: MurmurHash3_x86_32 of no bytes with seed 1 is fmix32(1); the others were computed with
// unbounded integers.
TEST("naive_hash() is the documented one") {
  CHECK_EQ(naive_hash(0, 0, 0), 0u);
  CHECK_EQ(naive_hash(244002641, 0, 0), 0x514E28B7u);  // the token whose product is 1
  CHECK_EQ(naive_hash(1, 2, 3), 3591307500u);
  CHECK_EQ(naive_hash(4095, 255, 0xFFFFFFFF), 854955791u);
}

// One expert with two slots, half of the tokens each; one with one.
Tables small_tables() {
  Tables tables({1, 3, 2});
  tables.physical = {4, 9, 7, -1, -1, -1};
  tables.count = {2, 1, 0};
  tables.threshold[0] = 0x80000000;
  return tables;
}

TEST("ids that are no expert's, padding and experts without slots give -1; only the last count") {
  const Dispatcher dispatcher({1, 3, 2}, -1);
  dispatcher.update(small_tables());
  eplb_dispatch_call call = call_of<int32_t>(0, 4, 2);
  const int32_t valid = 3;
  call.valid_tokens = reinterpret_cast<uint64_t>(&valid);
  const std::vector<int32_t> logical = {1, 2, -1, 3, 1, INT32_MIN, 1, 1};
  std::vector<int32_t> physical(8, 77);
  MUST(eplb_dispatch_host, dispatcher.handle(), &call, static_cast<const void*>(logical.data()),
       static_cast<void*>(physical.data()));
  CHECK(physical == std::vector<int32_t>({7, -1, -1, -1, 7, -1, -1, -1}));
  CHECK(dispatcher.loads() == std::vector<uint64_t>({0, 2, 1}));
}

TEST("a token goes to the first slot whose threshold is above its hash, not at it") {
  const Dispatcher dispatcher({1, 3, 2}, -1);
  Tables tables = small_tables();
  const uint32_t hash = naive_hash(0, 0, 9);
  for (const uint32_t above : {0u, 1u}) {
    tables.threshold[0] = hash + above;
    dispatcher.update(tables);
    eplb_dispatch_call call = call_of<int32_t>(0, 1, 1);
    call.salt = 9;
    int32_t id = 0;
    MUST(eplb_dispatch_host, dispatcher.handle(), &call, static_cast<const void*>(&id),
         static_cast<void*>(&id));
    CHECK_EQ(id, above == 1 ? 4 : 9);
  }
}

TEST("a new dispatcher has no slots, and takes calls of no tokens") {
  const Dispatcher dispatcher({2, 3, 4}, -1);
  uint64_t addresses[4] = {};
  MUST(eplb_dispatch_address, dispatcher.handle(), addresses);
  for (int i = 0; i < 24; ++i) CHECK_EQ(reinterpret_cast<const int32_t*>(addresses[0])[i], -1);
  for (int i = 0; i < 6; ++i) CHECK_EQ(reinterpret_cast<const int32_t*>(addresses[1])[i], 0);
  const eplb_dispatch_call none = call_of<int32_t>(0, 0, 8);
  MUST(eplb_dispatch_launch, dispatcher.handle(), &none);
  MUST(eplb_dispatch_host, dispatcher.handle(), &none, static_cast<const void*>(nullptr),
       static_cast<void*>(nullptr));
  CHECK(dispatcher.loads() == std::vector<uint64_t>(6, 0));
}

TEST("eplb_dispatch_update() changes its layers only, at addresses that stay") {
  const Shape shape = {6, 5, 3};
  std::mt19937_64 random(7);
  const Dispatcher dispatcher(shape, -1);
  uint64_t before[4] = {}, after[4] = {};
  MUST(eplb_dispatch_address, dispatcher.handle(), before);
  CHECK_EQ(std::set<uint64_t>(before, before + 4).size(), 4u);
  Tables expected = random_tables(shape, random);
  dispatcher.update(expected);
  for (int round = 0; round < 20; ++round) {
    const Tables next = random_tables(shape, random);
    const uint32_t layers = random() % 4, first = random() % (shape.layers - layers + 1);
    CHECK_EQ(dispatcher.try_update(next, first, layers).error, "");
    for (uint64_t cell = first * shape.experts; cell < (first + layers) * shape.experts; ++cell) {
      expected.count[cell] = next.count[cell];
      for (uint64_t place = cell * 3; place < cell * 3 + 3; ++place) {
        expected.physical[place] = next.physical[place];
        expected.threshold[place] = next.threshold[place];
      }
    }
    MUST(eplb_dispatch_address, dispatcher.handle(), after);
    CHECK(std::equal(before, before + 4, after));
    CHECK(std::equal(expected.physical.begin(), expected.physical.end(),
                     reinterpret_cast<const int32_t*>(after[0])));
    CHECK(std::equal(expected.count.begin(), expected.count.end(),
                     reinterpret_cast<const int32_t*>(after[1])));
    CHECK(std::equal(expected.threshold.begin(), expected.threshold.end(),
                     reinterpret_cast<const uint32_t*>(after[2])));
  }
}

TEST("eplb_dispatch_update() refuses wrong tables before it changes any") {
  const Dispatcher dispatcher({2, 3, 2}, -1);
  Tables good({2, 3, 2});
  std::copy_n(small_tables().physical.begin(), 6, good.physical.begin() + 6);
  std::copy_n(small_tables().count.begin(), 3, good.count.begin() + 3);
  std::copy_n(small_tables().threshold.begin(), 6, good.threshold.begin() + 6);
  dispatcher.update(good);
  const auto refused = [&](const Tables& tables, const std::string& part) {
    const Outcome outcome = dispatcher.try_update(tables, 0, 2);
    CHECK_EQ(outcome.status, EPLB_INVALID_ARGUMENT);
    CHECK_CONTAINS(outcome.error, part);
    uint64_t addresses[4] = {};
    MUST(eplb_dispatch_address, dispatcher.handle(), addresses);
    CHECK(std::equal(good.physical.begin(), good.physical.end(),
                     reinterpret_cast<const int32_t*>(addresses[0])));
    CHECK(std::equal(good.count.begin(), good.count.end(),
                     reinterpret_cast<const int32_t*>(addresses[1])));
  };
  const auto with = [&](auto change) {
    Tables tables = good;
    tables.physical[0] = 5;  // right so far
    tables.count[0] = 1;
    change(tables);
    return tables;
  };
  refused(with([](Tables& t) { t.count[4] = 3; }),
          "layer 1, expert 1 lists 3 replicas, not 0 to 2");
  refused(with([](Tables& t) { t.count[4] = -1; }), "layer 1, expert 1 lists -1 replicas");
  refused(with([](Tables& t) { t.physical[7] = -1; }), "layer 1, expert 0 lists slot -1");
  refused(with([](Tables& t) { t.physical[9] = 3; }), "expert 1 has slot 3 behind those it lists");
  refused(with([](Tables& t) { t.physical[9] = -2; }),
          "expert 1 has slot -2 behind those it lists");
  refused(with([](Tables& t) { t.threshold[7] = 9; }), "expert 0 has threshold 9 after 2147483648");
  refused(with([](Tables& t) { t.threshold[8] = 9; }), "expert 1 has 9 as its last threshold");

  const auto outside = [&](uint32_t first, uint32_t layers) {
    MUST_FAIL(EPLB_INVALID_ARGUMENT, "are outside of 2 layers", eplb_dispatch_update,
              dispatcher.handle(), first, layers, good.physical.data(), good.count.data(),
              good.threshold.data(), uint64_t{0}, kSecond);
  };
  outside(0, 3);
  outside(2, 1);
  outside(0xFFFFFFFF, 2);
  outside(1, 0xFFFFFFFF);
  MUST_FAIL(EPLB_INVALID_ARGUMENT, "timeout is 0", eplb_dispatch_update, dispatcher.handle(), 0u,
            2u, good.physical.data(), good.count.data(), good.threshold.data(), uint64_t{0},
            uint64_t{0});
  MUST_FAIL(EPLB_INVALID_ARGUMENT, "\"count\" is null", eplb_dispatch_update, dispatcher.handle(),
            0u, 2u, good.physical.data(), static_cast<const int32_t*>(nullptr),
            good.threshold.data(), uint64_t{0}, kSecond);
}

TEST("eplb_dispatch_create() refuses shapes that no tables can have") {
  const auto refused = [](int32_t ordinal, const Shape& shape, const std::string& part) {
    const eplb_dispatch_config config = {sizeof(config),    1, ordinal, shape.layers, shape.experts,
                                         shape.max_replicas};
    eplb_handle handle = 5;
    MUST_FAIL(EPLB_INVALID_ARGUMENT, part, eplb_dispatch_create, &config, &handle);
    CHECK_EQ(handle, 5u);
  };
  refused(-1, {0, 1, 1}, "0 layers");
  refused(-1, {1, 0, 1}, "0 experts");
  refused(-1, {1, 1, 0}, "0 replicas");
  refused(-1, {1 << 16, 1 << 16, 1}, "product");
  refused(-1, {0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF}, "product");
  refused(-2, {1, 1, 1}, "ordinal is -2");
}

TEST("eplb_dispatch_launch() refuses calls that would leave memory") {
  const Dispatcher dispatcher({2, 3, 2}, -1);
  const std::vector<int32_t> ids(16, 0);
  eplb_dispatch_call good = call_of<int32_t>(1, 4, 2);
  good.logical = good.physical = address_of(ids);
  MUST(eplb_dispatch_launch, dispatcher.handle(), &good);
  const auto refused = [&](auto change, const std::string& part) {
    eplb_dispatch_call call = good;
    change(call);
    MUST_FAIL(EPLB_INVALID_ARGUMENT, part, eplb_dispatch_launch, dispatcher.handle(), &call);
  };
  refused([](auto& c) { c.layer = 2; }, "layer 2 is outside of 2 layers");
  refused([](auto& c) { c.top_k = 0; }, "4 tokens of 0 experts");
  refused([](auto& c) { c.tokens = c.top_k = 1 << 16; }, "at most 2147483647");
  refused([](auto& c) { c.id_bytes = 2; }, "ids have 2 bytes");
  refused([](auto& c) { c.record = 2; }, "\"record\" is 2");
  refused([](auto& c) { c.logical = 0; }, "address of the ids is null");
  refused([](auto& c) { c.physical = 0; }, "address of the ids is null");
  refused([](auto& c) { c.logical += 2; }, "\"logical\" is at address");
  refused([](auto& c) { c.physical += 1; }, "\"physical\" is at address");
  refused([](auto& c) { c.valid_tokens = 1; }, "\"valid_tokens\" is at address 1, which 4");
  refused([](auto& c) { c.step_salt = 3; }, "\"step_salt\" is at address 3");
  eplb_dispatch_call short_call = good;
  short_call.size = 64;
  MUST_FAIL(EPLB_BAD_STRUCT, "its size is 64", eplb_dispatch_launch, dispatcher.handle(),
            &short_call);
  double seconds = 0;
  MUST_FAIL(EPLB_INVALID_ARGUMENT, "0 repeats of 4 tokens", eplb_dispatch_measure,
            dispatcher.handle(), &good, 0u, &seconds);
}

TEST("snapshots hold each token once, and are read once") {
  const Dispatcher dispatcher({1, 3, 2}, -1);
  dispatcher.update(small_tables());
  const std::vector<int32_t> ids = {0, 1, 1, 2};
  std::vector<int32_t> physical(4);
  eplb_dispatch_call what = call_of<int32_t>(0, 4, 1);
  what.logical = address_of(ids);
  what.physical = address_of(physical);
  uint64_t loads[3] = {9, 9, 9};
  const auto read = [&] { return call(eplb_dispatch_read, dispatcher.handle(), kSecond, loads); };
  CHECK_CONTAINS(read().error, "no snapshot was taken");
  MUST(eplb_dispatch_launch, dispatcher.handle(), &what);
  MUST(eplb_dispatch_snapshot, dispatcher.handle(), uint64_t{0});
  MUST(eplb_dispatch_launch, dispatcher.handle(), &what);  // belongs to the next
  MUST_FAIL(EPLB_BUSY, "the last one is not read yet", eplb_dispatch_snapshot, dispatcher.handle(),
            uint64_t{0});
  CHECK_EQ(loads[0], 9u);
  CHECK_EQ(read().error, "");
  CHECK(std::vector<uint64_t>(loads, loads + 3) == std::vector<uint64_t>({1, 2, 1}));
  CHECK_EQ(read().status, EPLB_INVALID_ARGUMENT);
  MUST(eplb_dispatch_launch, dispatcher.handle(), &what);
  CHECK(dispatcher.loads() == std::vector<uint64_t>({2, 4, 2}));
  CHECK(dispatcher.loads() == std::vector<uint64_t>({0, 0, 0}));
  MUST_FAIL(EPLB_INVALID_ARGUMENT, "timeout is 0", eplb_dispatch_read, dispatcher.handle(),
            uint64_t{0}, loads);
}

TEST("loads are counted beyond 32 bits") {
  const Dispatcher dispatcher({1, 3, 2}, -1);
  dispatcher.update(small_tables());
  uint64_t addresses[4] = {};
  MUST(eplb_dispatch_address, dispatcher.handle(), addresses);
  reinterpret_cast<uint64_t*>(addresses[3])[1] = 0xFFFFFFFF;
  std::vector<int32_t> ids = {1, 1};
  const eplb_dispatch_call call = call_of<int32_t>(0, 2, 1);
  MUST(eplb_dispatch_host, dispatcher.handle(), &call, static_cast<const void*>(ids.data()),
       static_cast<void*>(ids.data()));
  CHECK_EQ(dispatcher.loads()[1], uint64_t{0x100000001});
}

TEST("eplb_dispatch_measure() takes the time of calls, which count") {
  const Dispatcher dispatcher({1, 3, 2}, -1);
  dispatcher.update(small_tables());
  const std::vector<int64_t> ids = {1, 1, 0};
  std::vector<int64_t> physical(3);
  eplb_dispatch_call call = call_of<int64_t>(0, 3, 1);
  call.logical = address_of(ids);
  call.physical = address_of(physical);
  double seconds[5] = {};
  MUST(eplb_dispatch_measure, dispatcher.handle(), &call, 5u, seconds);
  for (const double one : seconds) CHECK(one > 0 && one < 1);
  CHECK_EQ(physical[0], 7);
  CHECK_EQ(dispatcher.loads()[1], 12u);  // 5, and one to warm up, of 2 tokens
}

TEST("every entry of dispatchers refuses handles of anything else") {
  const ranks::Weights weights({2, 2, {8}}, ranks::Memory::kPrivate);
  const eplb_dispatch_call call = call_of<int32_t>(0, 0, 1);
  const int32_t number = 0;
  const uint32_t bound = 0;
  uint64_t words[4] = {};
  double seconds = 0;
  for (const eplb_handle handle : {eplb_handle{0}, ~eplb_handle{0}, weights.handle()}) {
    MUST_FAIL(EPLB_INVALID_HANDLE, "dispatcher", eplb_dispatch_update, handle, 0u, 0u, &number,
              &number, &bound, uint64_t{0}, kSecond);
    MUST_FAIL(EPLB_INVALID_HANDLE, "dispatcher", eplb_dispatch_launch, handle, &call);
    MUST_FAIL(EPLB_INVALID_HANDLE, "dispatcher", eplb_dispatch_host, handle, &call,
              static_cast<const void*>(&number), static_cast<void*>(words));
    MUST_FAIL(EPLB_INVALID_HANDLE, "dispatcher", eplb_dispatch_snapshot, handle, uint64_t{0});
    MUST_FAIL(EPLB_INVALID_HANDLE, "dispatcher", eplb_dispatch_read, handle, kSecond, words);
    MUST_FAIL(EPLB_INVALID_HANDLE, "dispatcher", eplb_dispatch_address, handle, words);
    MUST_FAIL(EPLB_INVALID_HANDLE, "dispatcher", eplb_dispatch_measure, handle, &call, 1u,
              &seconds);
    MUST_FAIL(EPLB_INVALID_HANDLE, "dispatcher", eplb_dispatch_destroy, handle);
  }
}

TEST("eplb_dispatch_destroy() refuses a second time") {
  const eplb_dispatch_config config = {sizeof(config), 1, -1, 1, 1, 1};
  eplb_handle handle = 0;
  MUST(eplb_dispatch_create, &config, &handle);
  MUST(eplb_dispatch_destroy, handle);
  MUST_FAIL(EPLB_INVALID_HANDLE, "not of one that exists", eplb_dispatch_destroy, handle);
}

TEST("GPU dispatchers of a build without CUDA are refused") {
  if ((eplb_capabilities() & EPLB_CAPABILITY_CUDA) != 0) return;
  const eplb_dispatch_config config = {sizeof(config), 1, 0, 1, 1, 1};
  eplb_handle handle = 0;
  MUST_FAIL(EPLB_UNSUPPORTED, "built without CUDA", eplb_dispatch_create, &config, &handle);
}

// For the thread sanitizer, too: read() comes beside launches, and destroy() beside all of them.
TEST("eplb_dispatch_read() in one thread gets every token that another one dispatches") {
  constexpr int kCalls = 2000;
  const eplb_dispatch_config config = {sizeof(config), 1, -1, 1, 3, 2};
  eplb_handle handle = 0;
  MUST(eplb_dispatch_create, &config, &handle);
  const Tables tables = small_tables();
  MUST(eplb_dispatch_update, handle, 0u, 1u, tables.physical.data(), tables.count.data(),
       tables.threshold.data(), uint64_t{0}, kSecond);
  std::atomic<bool> done{false};
  uint64_t sum = 0;
  std::thread reader([&] {
    uint64_t loads[3] = {};
    for (bool last = false; !last;) {
      last = done;
      while (call(eplb_dispatch_read, handle, kSecond, loads).status == EPLB_OK) sum += loads[1];
    }
  });
  const std::vector<int32_t> ids = {1, 0, 1};
  std::vector<int32_t> physical(3);
  const eplb_dispatch_call what = call_of<int32_t>(0, 3, 1);
  int failures = 0;
  for (int i = 0; i < kCalls; ++i) {
    failures += call(eplb_dispatch_host, handle, &what, static_cast<const void*>(ids.data()),
                     static_cast<void*>(physical.data()))
                    .status != EPLB_OK;
    const int32_t status = call(eplb_dispatch_snapshot, handle, uint64_t{0}).status;
    failures += status != EPLB_OK && status != EPLB_BUSY;
  }
  while (call(eplb_dispatch_snapshot, handle, uint64_t{0}).status == EPLB_BUSY) {
    std::this_thread::yield();
  }
  done = true;
  reader.join();
  CHECK_EQ(failures, 0);
  CHECK_EQ(sum, uint64_t{2 * kCalls});

  std::thread user([&] {
    while (call(eplb_dispatch_host, handle, &what, static_cast<const void*>(ids.data()),
                static_cast<void*>(physical.data()))
               .status != EPLB_INVALID_HANDLE) {
    }
  });
  MUST(eplb_dispatch_destroy, handle);
  user.join();
}

}  // namespace
