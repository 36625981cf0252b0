// SPDX-License-Identifier: Apache-2.0
// Handles: stale, doubly destroyed, of another kind, in use.
#include "base/handles.h"

#include <atomic>
#include <set>
#include <thread>

#include "ranks.h"

using namespace ranks;

namespace {

const Shape kShape = {2, 2, {8}};

TEST("every entry refuses handle 0 and a handle that never was") {
  for (const eplb_handle handle : {eplb_handle{0}, eplb_handle{12345}, ~eplb_handle{0}}) {
    uint64_t word = 0;
    int32_t map[4] = {};
    uint32_t count = 0;
    eplb_engine_info info = {sizeof(info), 1, 0, 0};
    MUST_FAIL(EPLB_INVALID_HANDLE, "weights", eplb_weights_register, handle, &word);
    MUST_FAIL(EPLB_INVALID_HANDLE, "weights", eplb_weights_allocate, handle, 0u);
    MUST_FAIL(EPLB_INVALID_HANDLE, "weights", eplb_weights_write, handle, 0u, 0u, 0u, uint64_t{0},
              static_cast<const void*>(&word), uint64_t{8});
    MUST_FAIL(EPLB_INVALID_HANDLE, "weights", eplb_weights_read, handle, 0u, 0u, 0u, uint64_t{0},
              static_cast<void*>(&word), uint64_t{8});
    MUST_FAIL(EPLB_INVALID_HANDLE, "weights", eplb_weights_fill, handle, map, uint64_t{0});
    MUST_FAIL(EPLB_INVALID_HANDLE, "weights", eplb_weights_digest, handle, &word);
    MUST_FAIL(EPLB_INVALID_HANDLE, "weights", eplb_weights_address, handle, 0u, 0u, &word, &word);
    MUST_FAIL(EPLB_INVALID_HANDLE, "weights", eplb_weights_destroy, handle);
    MUST_FAIL(EPLB_INVALID_HANDLE, "engine", eplb_engine_describe, handle, &info);
    MUST_FAIL(EPLB_INVALID_HANDLE, "engine", eplb_engine_export, handle, 0u,
              static_cast<void*>(&word), uint64_t{8}, &word);
    MUST_FAIL(EPLB_INVALID_HANDLE, "engine", eplb_engine_connect, handle,
              static_cast<const void*>(&word), &word, uint64_t{1});
    MUST_FAIL(EPLB_INVALID_HANDLE, "engine", eplb_engine_seal, handle);
    MUST_FAIL(EPLB_INVALID_HANDLE, "engine", eplb_engine_settle, handle, 0u, &count);
    MUST_FAIL(EPLB_INVALID_HANDLE, "engine", eplb_engine_progress, handle, &count, &count, &count);
    MUST_FAIL(EPLB_INVALID_HANDLE, "engine", eplb_engine_commit, handle, 0u, uint64_t{1}, &count);
    MUST_FAIL(EPLB_INVALID_HANDLE, "engine", eplb_engine_abort, handle, -1,
              static_cast<const char*>(nullptr));
    MUST_FAIL(EPLB_INVALID_HANDLE, "engine", eplb_engine_destroy, handle);
    double seconds = 0;
    MUST_FAIL(EPLB_INVALID_HANDLE, "products", eplb_products_run, handle, &seconds);
    MUST_FAIL(EPLB_INVALID_HANDLE, "products", eplb_products_destroy, handle);
  }
}

TEST("eplb_weights_destroy() refuses a second time, also when the place is used again") {
  const eplb_weights_config config = {sizeof(config), 1, -1, 1, 1, 1};
  const uint64_t bytes = 8;
  eplb_handle first = 0, second = 0;
  MUST(eplb_weights_create, &config, &bytes, &first);
  MUST(eplb_weights_destroy, first);
  MUST(eplb_weights_create, &config, &bytes, &second);
  CHECK(first != second);
  MUST_FAIL(EPLB_INVALID_HANDLE, "not of one that exists", eplb_weights_destroy, first);
  MUST(eplb_weights_destroy, second);
}

TEST("a handle of weights is none of an engine") {
  Weights weights(kShape, Memory::kPrivate);
  MUST_FAIL(EPLB_INVALID_HANDLE, "engine", eplb_engine_destroy, weights.handle());
}

TEST("eplb_weights_destroy() refuses weights of an engine until it is destroyed") {
  World all(kShape, 2, 1, 1);
  MUST_FAIL(EPLB_BUSY, "an engine uses them", eplb_weights_destroy, all.weights[0].handle());
  MUST(eplb_engine_destroy, all.engine[0].handle());
  MUST(eplb_weights_destroy, all.weights[0].handle());
}

TEST("a failed eplb_engine_create() leaves the weights free") {
  Weights weights(kShape, Memory::kPrivate);
  eplb_engine_config config = engine_config(2, 1, 1, 1);
  const int32_t rank = 7;
  const eplb_handle handle = weights.handle();
  eplb_handle engine = 99;
  MUST_FAIL(EPLB_INVALID_ARGUMENT, "rank 7 is not in a world of 2", eplb_engine_create, &config,
            &rank, nullptr, &handle, &engine);
  CHECK_EQ(engine, 99u);  // outputs are written on success only
  MUST(eplb_weights_destroy, handle);
}

TEST("a second call on an object is refused while one is running, and so is one on its weights") {
  Weights a(kShape, Memory::kShared), b(kShape, Memory::kShared);
  Engine here(engine_config(2, 1, 2, 1), {0}, {a.handle()});
  Engine there(engine_config(2, 1, 2, 1), {1}, {b.handle()});
  const std::vector<std::vector<char>> blobs = {here.blob(0), there.blob(0)};
  CHECK_EQ(connect(here, blobs).error, "");
  CHECK_EQ(connect(there, blobs).error, "");
  const Script script{kShape, 2, {{0, 1}}, {}};
  RunReport report;
  std::thread runner([&] {  // waits for the other rank
    do {
      report = run(here, script);
    } while (report.outcome.status == EPLB_BUSY);
  });
  Outcome seal{EPLB_OK, ""}, read{EPLB_OK, ""};
  while (seal.status == EPLB_OK) {
    std::this_thread::yield();
    seal = call(eplb_engine_seal, here.handle());
  }
  CHECK_EQ(seal.status, EPLB_BUSY);
  CHECK_CONTAINS(seal.error, "another call is using it");
  uint64_t word = 0;
  while (read.status == EPLB_OK) {  // the run waits for those that are first
    std::this_thread::yield();
    read = call(eplb_weights_read, a.handle(), 0u, 0u, 0u, uint64_t{0}, static_cast<void*>(&word),
                uint64_t{8});
  }
  CHECK_EQ(read.status, EPLB_BUSY);
  CHECK_EQ(progress(here).committed, 0u);  // any time
  CHECK_EQ(run(there, script).outcome.error, "");
  runner.join();
  CHECK_EQ(report.outcome.error, "");
}

struct Thing : eplb::HandleObject {
  static constexpr char kName[] = "thing";
  static constexpr uint64_t kHandleKind = 9;
};

TEST("HandleTable gives many threads ids of their own, each removed once") {
  eplb::HandleTable<Thing> table;
  std::atomic<int> refused{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 2000; ++i) {
        const eplb_handle handle = table.insert(std::make_shared<Thing>());
        table.remove(handle);
        try {
          table.remove(handle);
        } catch (const eplb::Error& error) {
          if (error.status == EPLB_INVALID_HANDLE) ++refused;
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK_EQ(refused.load(), 8000);
}

}  // namespace
