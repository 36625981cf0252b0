// SPDX-License-Identifier: Apache-2.0
// Weights: registration refusals, layout, access, digests and synthetic bytes.
#include <cstring>
#include <set>

#include "ranks.h"

using namespace ranks;

namespace {

class Bare {  // weights without memory
 public:
  explicit Bare(const Shape& shape) {
    const eplb_weights_config config = {sizeof(config), 1,           -1,
                                        shape.layers,   shape.slots, shape.tensors()};
    MUST(eplb_weights_create, &config, shape.tensor_bytes.data(), &handle);
  }
  ~Bare() { eplb_weights_destroy(handle, nullptr, 0); }
  eplb_handle handle = 0;
};

Outcome register_table(const Shape& shape, const std::vector<uint64_t>& table) {
  const Bare bare(shape);
  return call(eplb_weights_register, bare.handle, table.data());
}

void refused(const Shape& shape, const std::vector<uint64_t>& table, const std::string& part) {
  const Outcome outcome = register_table(shape, table);
  CHECK_EQ(outcome.status, EPLB_INVALID_ARGUMENT);
  CHECK_CONTAINS(outcome.error, part);
}

// Registration looks at addresses only, so they may be made up.
TEST("eplb_weights_register() refuses null, short strides and what reaches beyond memory") {
  const Shape shape = {2, 3, {8, 4}};
  const std::vector<uint64_t> good = {0x1000, 8, 0x2000, 4, 0x3000, 16, 0x4000, 4};
  CHECK_EQ(register_table(shape, good).error, "");
  std::vector<uint64_t> bad = good;
  bad[4] = 0;
  refused(shape, bad, "layer 1, tensor 0 has a null address");
  bad = good;
  bad[3] = 3;
  refused(shape, bad, "layer 0, tensor 1 has a stride of 3 bytes, below an expert's 4");
  bad = good;
  bad[6] = ~uint64_t{0} - 10;
  refused(shape, bad, "layer 1, tensor 1 with a stride of 4 bytes reaches beyond");
  bad = good;
  bad[7] = ~uint64_t{0} / 2 + 1;
  refused(shape, bad, "reaches beyond");
}

TEST("eplb_weights_register() refuses any two experts that share a byte") {
  const Shape shape = {2, 3, {8, 4}};
  // Layer 1, tensor 1 begins at the last byte of layer 0, tensor 0, slot 2.
  refused(shape, {0x1000, 8, 0x2000, 4, 0x3000, 16, 0x1017, 4},
          "layer 0, tensor 0, slot 2 overlaps layer 1, tensor 1, slot 0");
  CHECK_EQ(register_table(shape, {0x1000, 8, 0x2000, 4, 0x3000, 16, 0x1018, 4}).error, "");
  // The same place twice.
  refused(shape, {0x1000, 8, 0x2000, 4, 0x1000, 8, 0x4000, 4}, "overlaps");
}

TEST("eplb_weights_register() takes the tensors of an expert side by side") {
  const Shape shape = {1, 3, {8, 4}};
  CHECK_EQ(register_table(shape, {0x1000, 12, 0x1008, 12}).error, "");
  refused(shape, {0x1000, 12, 0x1007, 12}, "overlaps");
}

TEST("weights get memory once, and are refused before they have it") {
  const Bare bare({1, 1, {8}});
  uint64_t words[2] = {};
  MUST_FAIL(EPLB_INVALID_ARGUMENT, "no memory", eplb_weights_digest, bare.handle, words);
  MUST_FAIL(EPLB_INVALID_ARGUMENT, "no memory", eplb_weights_address, bare.handle, 0u, 0u,
            &words[0], &words[1]);
  const int32_t rank = 0;
  const eplb_engine_config config = engine_config(1, 1, 1, 1);
  eplb_handle engine = 0;
  MUST_FAIL(EPLB_INVALID_ARGUMENT, "rank 0 have no memory", eplb_engine_create, &config, &rank,
            nullptr, &bare.handle, &engine);
  MUST(eplb_weights_allocate, bare.handle, 0u);
  MUST_FAIL(EPLB_INVALID_ARGUMENT, "have memory already", eplb_weights_allocate, bare.handle, 0u);
  MUST_FAIL(EPLB_INVALID_ARGUMENT, "have memory already", eplb_weights_register, bare.handle,
            words);
}

TEST("eplb_weights_create() refuses shapes that no memory can have") {
  const auto refuse = [](uint32_t layers, uint32_t slots, std::vector<uint64_t> bytes,
                         const std::string& part) {
    const eplb_weights_config config = {sizeof(config), 1,     -1,
                                        layers,         slots, static_cast<uint32_t>(bytes.size())};
    eplb_handle handle = 0;
    bytes.push_back(0);  // data() of an empty vector may be null
    const Outcome outcome = call(eplb_weights_create, &config, bytes.data(), &handle);
    CHECK_EQ(outcome.status, EPLB_INVALID_ARGUMENT);
    CHECK_CONTAINS(outcome.error, part);
  };
  refuse(0, 1, {8}, "0 layers");
  refuse(1, 0, {8}, "0 slots");
  refuse(1, 1, {}, "0 tensors");
  refuse(1, 1, {8, 0}, "tensor 1 of an expert has 0 bytes");
  refuse(1, 2, {uint64_t{1} << 60}, "tensor 0");
  refuse(0xFFFFFFFF, 0xFFFFFFFF, {8}, "product");
  refuse(0x10000, 0x4000, {8, 8}, "product");
}

TEST("eplb_weights_allocate() lays out tensors apart, aligned and zeroed") {
  const Shape shape = {3, 5, {1, 16, 100}};
  for (const Memory memory : {Memory::kPrivate, Memory::kShared}) {
    const Weights weights(shape, memory);
    for (const std::string& expert : read_all(weights, shape)) {
      CHECK_EQ(expert, std::string(shape.expert_bytes(), '\0'));
    }
    std::set<uint64_t> used;  // 16-byte places
    for (uint32_t layer = 0; layer < 3; ++layer) {
      for (uint32_t tensor = 0; tensor < 3; ++tensor) {
        uint64_t address = 0, stride = 0;
        MUST(eplb_weights_address, weights.handle(), layer, tensor, &address, &stride);
        CHECK_EQ(address % 256, 0u);
        CHECK_EQ(stride, std::vector<uint64_t>({16, 16, 112})[tensor]);
        for (uint64_t at = address; at < address + 5 * stride; at += 16) {
          CHECK(used.insert(at).second);
        }
      }
    }
  }
}

TEST("eplb_weights_write() and eplb_weights_read() stay inside one expert's tensor") {
  const Shape shape = {2, 3, {8, 4}};
  const Weights weights(shape, Memory::kPrivate);
  char bytes[9] = "abcdefgh";
  const auto write = [&](uint32_t layer, uint32_t slot, uint32_t tensor, uint64_t offset,
                         uint64_t size) {
    return call(eplb_weights_write, weights.handle(), layer, slot, tensor, offset,
                static_cast<const void*>(bytes), size)
        .status;
  };
  CHECK_EQ(write(1, 2, 0, 0, 8), EPLB_OK);
  CHECK_EQ(write(1, 2, 1, 3, 1), EPLB_OK);
  CHECK_EQ(write(1, 2, 1, 4, 0), EPLB_OK);
  CHECK_EQ(write(2, 0, 0, 0, 1), EPLB_INVALID_ARGUMENT);
  CHECK_EQ(write(0, 3, 0, 0, 1), EPLB_INVALID_ARGUMENT);
  CHECK_EQ(write(0, 0, 2, 0, 1), EPLB_INVALID_ARGUMENT);
  CHECK_EQ(write(0, 0, 1, 3, 2), EPLB_INVALID_ARGUMENT);
  CHECK_EQ(write(0, 0, 1, 5, 0), EPLB_INVALID_ARGUMENT);
  CHECK_EQ(write(0, 0, 1, ~uint64_t{0}, 2), EPLB_INVALID_ARGUMENT);
  const Bytes all = read_all(weights, shape);
  CHECK_EQ(all[5], std::string("abcdefgh\0\0\0a", 12));
  MUST_FAIL(EPLB_INVALID_ARGUMENT, "3 bytes at offset 2 of layer 0, tensor 1, which has 4 bytes",
            eplb_weights_read, weights.handle(), 0u, 0u, 1u, uint64_t{2}, static_cast<void*>(bytes),
            uint64_t{3});
}

// digest.h in its own words, byte by byte.
uint64_t scramble(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

uint64_t naive_digest(const std::string& bytes) {
  uint64_t sum = scramble(bytes.size());
  for (size_t start = 0; start < bytes.size(); start += 8) {
    uint64_t word = 0;
    for (size_t i = start; i < bytes.size() && i < start + 8; ++i) {
      word |= static_cast<uint64_t>(static_cast<unsigned char>(bytes[i])) << (8 * (i - start));
    }
    sum += scramble(word + scramble(start / 8 + 1));
  }
  return sum;
}

TEST("eplb_weights_digest() is the digest of each expert's tensor, whatever its size") {
  std::mt19937_64 random(1);
  const Shape shape = {2, 3, {1, 7, 8, 9, 100, 4096}};
  for (const Memory memory : {Memory::kPrivate, Memory::kRegistered}) {
    const Weights weights(shape, memory);
    const Bytes bytes = random_bytes(shape, random);
    write_all(weights, shape, bytes);
    std::vector<uint64_t> digests(2 * 3 * 6);
    MUST(eplb_weights_digest, weights.handle(), digests.data());
    for (size_t place = 0; place < bytes.size(); ++place) {
      size_t start = 0;
      for (size_t tensor = 0; tensor < 6; ++tensor) {
        const size_t size = shape.tensor_bytes[tensor];
        CHECK_EQ(digests[place * 6 + tensor], naive_digest(bytes[place].substr(start, size)));
        start += size;
      }
    }
  }
}

TEST("eplb_weights_digest() tells swapped words and lengths of zeros apart") {
  const Shape shape = {1, 2, {16, 24}};
  const Weights weights(shape, Memory::kPrivate);
  const uint64_t ab[2] = {1, 2}, ba[2] = {2, 1};
  MUST(eplb_weights_write, weights.handle(), 0u, 0u, 0u, uint64_t{0}, static_cast<const void*>(ab),
       uint64_t{16});
  MUST(eplb_weights_write, weights.handle(), 0u, 1u, 0u, uint64_t{0}, static_cast<const void*>(ba),
       uint64_t{16});
  uint64_t digests[4];
  MUST(eplb_weights_digest, weights.handle(), digests);
  CHECK(digests[0] != digests[2]);
  CHECK_EQ(digests[1], digests[3]);
  CHECK(digests[0] != digests[1]);
}

TEST("eplb_weights_fill() gives an expert the same bytes in any slot, and leaves -1 alone") {
  const Shape shape = {2, 4, {3, 20}};
  const Weights one(shape, Memory::kPrivate), other(shape, Memory::kRegistered);
  const std::string untouched(23, '*');
  write_all(one, shape, Bytes(8, untouched));
  const int32_t map[8] = {5, 6, -1, 5, 7, 6, 5, 8}, moved[8] = {6, 5, 5, 5, 5, 8, 7, 6};
  MUST(eplb_weights_fill, one.handle(), map, uint64_t{42});
  MUST(eplb_weights_fill, other.handle(), moved, uint64_t{42});
  const Bytes a = read_all(one, shape), b = read_all(other, shape);
  CHECK_EQ(a[0], a[3]);
  CHECK_EQ(a[0], b[1]);
  CHECK_EQ(a[1], b[0]);
  CHECK_EQ(a[2], untouched);
  CHECK_EQ(a[7], b[5]);
  CHECK(a[0] != a[6]);  // expert 5 of another layer
  CHECK(a[1] != a[0]);
  MUST(eplb_weights_fill, one.handle(), map, uint64_t{43});
  CHECK(read_all(one, shape)[0] != a[0]);  // another seed
  const int32_t bad[8] = {0, 0, 0, 0, 0, -2, 0, 0};
  MUST_FAIL(EPLB_INVALID_ARGUMENT, "layer 1, slot 1 has logical expert -2", eplb_weights_fill,
            one.handle(), bad, uint64_t{1});
}

TEST("eplb_engine_create() refuses ranks that share memory, weights or shape") {
  std::vector<char> memory(4096);
  const uint64_t base = reinterpret_cast<uint64_t>(memory.data());
  const Shape shape = {1, 2, {8}};
  const Bare a(shape), b(shape), c({1, 2, {9}});
  const uint64_t first[2] = {base, 8}, second[2] = {base + 15, 8}, third[2] = {base + 100, 9};
  MUST(eplb_weights_register, a.handle, first);
  MUST(eplb_weights_register, b.handle, second);
  MUST(eplb_weights_register, c.handle, third);
  const eplb_engine_config config = engine_config(4, 2, 1, 1);
  const auto refuse = [&](std::vector<int32_t> ranks, std::vector<eplb_handle> handles,
                          const std::string& part) {
    eplb_handle engine = 0;
    MUST_FAIL(EPLB_INVALID_ARGUMENT, part, eplb_engine_create, &config, ranks.data(), nullptr,
              handles.data(), &engine);
  };
  refuse({2, 3}, {a.handle, b.handle}, "the weights of ranks 2 and 3 overlap");
  refuse({2, 3}, {a.handle, a.handle}, "have the same weights");
  refuse({2, 3}, {a.handle, c.handle}, "ranks 2 and 3 differ");
  refuse({2, 2}, {a.handle, c.handle}, "rank 2 is there twice");
  refuse({2, 4}, {a.handle, c.handle}, "rank 4 is not in a world of 4");
  refuse({-1, 3}, {a.handle, c.handle}, "rank -1 is not in a world of 4");
}

TEST("eplb_engine_create() refuses configs out of range") {
  const Weights weights({1, 2, {8}}, Memory::kPrivate);
  const auto refuse = [&](const char* part, int32_t status, auto change) {
    eplb_engine_config config = engine_config(2, 1, 1, 1);
    change(config);
    const int32_t rank = 0;
    const eplb_handle handle = weights.handle();
    eplb_handle engine = 0;
    MUST_FAIL(status, part, eplb_engine_create, &config, &rank, nullptr, &handle, &engine);
  };
  const int32_t bad = EPLB_INVALID_ARGUMENT;
  refuse("world is 0", bad, [](auto& config) { config.world = 0; });
  refuse("locals is 0", bad, [](auto& config) { config.locals = 0; });
  refuse("locals is 3", bad, [](auto& config) { config.locals = 3; });
  refuse("transport is 7", bad, [](auto& config) { config.transport = 7; });
  refuse("staging_cells is 0", bad, [](auto& config) { config.staging_cells = 0; });
  refuse("staging_cells is 3", bad, [](auto& config) { config.staging_cells = 3; });
  refuse("staging_sets is 5", bad, [](auto& config) { config.staging_sets = 5; });
  refuse("max_ctas is -1", bad, [](auto& config) { config.max_ctas = -1; });
  refuse("use pull", EPLB_UNSUPPORTED,
         [](auto& config) { config.transport = EPLB_TRANSPORT_NCCL; });
  refuse("use pull", EPLB_UNSUPPORTED,
         [](auto& config) { config.transport = EPLB_TRANSPORT_PULL_NCCL; });
}

}  // namespace
