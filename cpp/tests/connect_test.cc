// SPDX-License-Identifier: Apache-2.0
// Joining engines: blobs that do not fit, memory that cannot be reached, names that go away.
#include <algorithm>
#include <cstring>

#include "ranks.h"
#include "transport/blob.h"

using namespace ranks;

namespace {

const Shape kShape = {2, 2, {8, 24}};

// A rank of a world of two with an engine of its own, as in a process of its own.
struct Single {
  Single(int32_t rank, const Shape& shape, Memory memory, eplb_engine_config config)
      : weights(shape, memory), engine(config, {rank}, {weights.handle()}), blob(engine.blob(0)) {}
  Single(int32_t rank, const Shape& shape = kShape, Memory memory = Memory::kShared)
      : Single(rank, shape, memory, engine_config(2, 1, 1, 1)) {}
  Weights weights;
  Engine engine;
  std::vector<char> blob;
};

void refused(const Single& here, const std::vector<std::vector<char>>& blobs, int32_t status,
             const std::string& part) {
  const Outcome outcome = connect(here.engine, blobs);
  CHECK_EQ(outcome.status, status);
  CHECK_CONTAINS(outcome.error, part);
  CHECK_EQ(names_left(here.blob), 0);
  const Outcome again = connect(here.engine, blobs);
  CHECK_EQ(again.status, EPLB_BROKEN);
}

TEST("eplb_engine_connect() refuses ranks whose weights or settings differ, naming both") {
  const auto differ = [](const Shape& shape, eplb_engine_config config, const std::string& part) {
    const Single here(0), there(1, shape, Memory::kShared, config);
    refused(here, {here.blob, there.blob}, EPLB_PEER_MISMATCH,
            "Cannot connect to rank 1: its " + part);
    CHECK_EQ(names_left(there.blob), 0);  // a failing connect removes what names it knows
  };
  const eplb_engine_config config = engine_config(2, 1, 1, 1);
  differ({3, 2, {8, 24}}, config, "number of layers is 3, but rank 0's is 2");
  differ({2, 4, {8, 24}}, config, "number of slots is 4, but rank 0's is 2");
  differ({2, 2, {8}}, config, "number of tensors is 1, but rank 0's is 2");
  differ({2, 2, {8, 25}}, config, "size of tensor 1 is 25, but rank 0's is 24");
  differ(kShape, engine_config(3, 1, 1, 1), "world is 3, but rank 0's is 2");
  differ(kShape, engine_config(2, 1, 1, 2), "number of staging sets is 2, but rank 0's is 1");
}

TEST("eplb_engine_connect() refuses blobs that are damaged, misplaced or stale") {
  const auto damaged = [](auto change, const std::string& part) {
    const Single here(0), there(1);
    std::vector<std::vector<char>> blobs = {here.blob, there.blob};
    change(blobs);
    refused(here, blobs, EPLB_PEER_MISMATCH, part);
  };
  using Blobs = std::vector<std::vector<char>>;
  damaged([](Blobs& blobs) { blobs[1].pop_back(); }, "rank 1: its blob is cut short");
  damaged([](Blobs& blobs) { blobs[1].resize(20); }, "rank 1: its blob is cut short");
  damaged([](Blobs& blobs) { blobs[1].clear(); }, "rank 1: its blob is cut short");
  damaged([](Blobs& blobs) { blobs[1].push_back(0); }, "rank 1: its blob is too long");
  damaged([](Blobs& blobs) { blobs[1][0] ^= 1; }, "rank 1: its blob is not one of");
  damaged([](Blobs& blobs) { blobs[1][4] ^= 1; }, "rank 1: its library has ABI version 0, not 1");
  damaged([](Blobs& blobs) { blobs[1] = blobs[0]; }, "rank 1: its blob is that of rank 0");
  damaged([](Blobs& blobs) { blobs[1].back() = 0x7F; }, "outside of its shared memory");
  const Single here(0), there(1), earlier(0);
  refused(here, {earlier.blob, there.blob}, EPLB_PEER_MISMATCH, "not the one that this engine");
}

TEST("eplb_engine_connect() survives damaged blobs") {
  std::mt19937_64 random(3);
  for (int i = 0; i < 300; ++i) {
    const Single here(0, {1, 1, {8}}), there(1, {1, 1, {8}});
    std::vector<std::vector<char>> blobs = {here.blob, there.blob};
    blobs[1][random() % blobs[1].size()] ^= static_cast<char>(1u << random() % 8);
    connect(here.engine, blobs);  // any status, no crash
  }
}

TEST("eplb_engine_connect() says what to do about private memory of another process") {
  for (const Memory memory : {Memory::kPrivate, Memory::kRegistered}) {
    const Single here(0), there(1, kShape, memory);
    refused(here, {here.blob, there.blob}, EPLB_UNSUPPORTED,
            "rank 1: it is in another process and its weights are private; let the library");
    // The rank itself fails in the same way, and does not wait for others that cannot come.
    const Single other(0);
    refused(there, {other.blob, there.blob}, EPLB_UNSUPPORTED, "Cannot pull from rank 1");
  }
}

TEST("eplb_engine_connect() names both hosts when they share no memory") {
  const Single here(0), there(1);
  std::vector<char> blob = there.blob;
  // The boot id is the one place of the blob with text of this form.
  FILE* file = std::fopen("/proc/sys/kernel/random/boot_id", "r");
  char boot_id[37] = "";
  CHECK(file != nullptr && std::fread(boot_id, 1, 36, file) == 36);
  std::fclose(file);
  const auto at = std::search(blob.begin(), blob.end(), boot_id, boot_id + 36);
  CHECK(at != blob.end());
  *at ^= 1;
  refused(here, {here.blob, blob}, EPLB_UNSUPPORTED, "and they share no memory");
}

TEST("eplb_engine_connect() refuses a timeout of 0, a second time, and an aborted engine") {
  const Single here(0), there(1);
  CHECK_EQ(connect(here.engine, {here.blob, there.blob}, 0).status, EPLB_INVALID_ARGUMENT);
  CHECK_EQ(connect(here.engine, {here.blob, there.blob}).error, "");
  CHECK_CONTAINS(connect(here.engine, {here.blob, there.blob}).error, "connected already");
  MUST(eplb_engine_abort, there.engine.handle(), 0, "rank 0 is gone");
  const Outcome aborted = connect(there.engine, {here.blob, there.blob});
  CHECK_EQ(aborted.status, EPLB_ABORTED);
  CHECK_CONTAINS(aborted.error, "aborted: rank 0 is gone");
}

TEST("eplb_engine_run() before connect is refused, and after an abort names the rank to blame") {
  Single here(0), there(1);
  const Script script{kShape, 2, {{0, 1}}, {}};
  CHECK_CONTAINS(run(here.engine, script).outcome.error, "the engine is not connected");
  MUST_FAIL(EPLB_INVALID_ARGUMENT, "it is not connected", eplb_engine_seal, here.engine.handle());
  CHECK_EQ(connect(here.engine, {here.blob, there.blob}).error, "");
  CHECK_EQ(connect(there.engine, {here.blob, there.blob}).error, "");
  CHECK_EQ(run(here.engine, script, 0).outcome.status, EPLB_INVALID_ARGUMENT);
  MUST_FAIL(EPLB_INVALID_ARGUMENT, "rank 2 is not in a world of 2", eplb_engine_abort,
            here.engine.handle(), 2, "x");
  MUST(eplb_engine_abort, here.engine.handle(), 1, "no heartbeat");
  const RunReport report = run(here.engine, script);
  CHECK_EQ(report.outcome.status, EPLB_ABORTED);
  CHECK_EQ(report.result.failed_rank, 1);
  CHECK_EQ(report.result.committed_batches, 0u);
  CHECK_CONTAINS(report.outcome.error, "aborted: no heartbeat");
  const RunReport peer = run(there.engine, script);
  CHECK_EQ(peer.outcome.status, EPLB_PEER_FAILED);
  CHECK_EQ(peer.result.failed_rank, 1);
  CHECK_CONTAINS(peer.outcome.error, "rank 0 gave up: ");
}

TEST("names of shared memory go away with seal, or with the engine and the weights") {
  const Single here(0), there(1);
  const auto left = [&] { return names_left(here.blob) + names_left(there.blob); };
  CHECK_EQ(left(), 3);  // two slabs and the control block
  CHECK_EQ(connect(here.engine, {here.blob, there.blob}).error, "");
  CHECK_EQ(connect(there.engine, {here.blob, there.blob}).error, "");
  CHECK_EQ(left(), 3);
  MUST(eplb_engine_seal, here.engine.handle());
  CHECK_EQ(left(), 0);
  MUST(eplb_engine_seal, there.engine.handle());
  std::vector<char> blob;
  {
    const Single never_connected(0);
    blob = never_connected.blob;
    CHECK_EQ(names_left(blob), 2);
    MUST(eplb_engine_destroy, never_connected.engine.handle());
    CHECK_EQ(names_left(blob), 0);
  }
}

TEST("are_neighbors() looks at transport, node, host and process, from either side") {
  const auto expect = [](int32_t transport, bool same_node, bool same_host, bool expected,
                         bool same_process = false) {
    eplb::RankBlob a, b;
    a.fixed.transport = b.fixed.transport = transport;
    a.fixed.host = b.fixed.host = eplb::this_host();
    a.fixed.process = b.fixed.process = eplb::this_process();
    if (!same_process) b.fixed.process.token ^= 1;
    a.fixed.layers = a.fixed.slots = a.fixed.tensors = 1;
    a.tensor_bytes = {8};
    a.fixed.node = 7;
    b.fixed.node = same_node ? 7 : 0;
    if (!same_host) b.fixed.host.boot_id[0] ^= 1;
    const std::vector<char> sent = a.encode();
    const eplb::RankBlob received = eplb::RankBlob::decode(sent.data(), sent.size(), 0);
    CHECK_EQ(eplb::are_neighbors(received, b), expected);
    CHECK_EQ(eplb::are_neighbors(b, received), expected);
  };
  expect(EPLB_TRANSPORT_PULL_NCCL, true, true, true);
  expect(EPLB_TRANSPORT_PULL_NCCL, true, true, false, true);
  expect(EPLB_TRANSPORT_PULL_NCCL, false, true, false);
  expect(EPLB_TRANSPORT_PULL_NCCL, true, false, false);
  for (const bool same : {false, true}) {
    expect(EPLB_TRANSPORT_PULL, same, same, true, same);
    expect(EPLB_TRANSPORT_NCCL, same, same, false);
  }
}

TEST("eplb_engine_export() gives the same blob each time, and its size before") {
  const Single here(0);
  CHECK(here.engine.blob(0) == here.blob);
  uint64_t bytes = 0;
  char small[16];
  MUST_FAIL(EPLB_INVALID_ARGUMENT, "the buffer 16", eplb_engine_export, here.engine.handle(), 0u,
            static_cast<void*>(small), uint64_t{16}, &bytes);
  CHECK_EQ(bytes, here.blob.size());
  MUST_FAIL(EPLB_INVALID_ARGUMENT, "has 1 local ranks", eplb_engine_export, here.engine.handle(),
            1u, static_cast<void*>(small), uint64_t{16}, &bytes);
}

}  // namespace
