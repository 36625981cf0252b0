// SPDX-License-Identifier: Apache-2.0
// Kernels and GPU memory against their twins on the host. Needs one GPU; skipped without.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "memory/allocation.h"
#include "memory/cuda_check.h"
#include "memory/cuda_query.h"
#include "memory/digest.h"
#include "memory/kernels.h"
#include "ranks.h"

using namespace eplb;

namespace {

constexpr int kSkipped = 77;  // SKIP_RETURN_CODE

const bool kHaveGpu = [] {
  std::string why_none;
  if (cuda_device_count(&why_none) > 0) return true;
  std::printf("skipped: %s\n", why_none.c_str());
  std::exit(kSkipped);
}();

std::shared_ptr<Device> gpu() {
  static const std::shared_ptr<Device> device = open_cuda_device(0);
  return device;
}

std::string random_string(uint64_t bytes, std::mt19937_64& random) {
  std::string text(bytes, '\0');
  for (char& byte : text) byte = static_cast<char>(random());
  return text;
}

// Sizes around everything that kernels treat specially, and some large ones.
uint64_t random_size(std::mt19937_64& random) {
  const uint64_t around[] = {1, 8, 16, 512 * 16, kChunkBytes, 3 * kChunkBytes, 4 << 20};
  const uint64_t size = around[random() % std::size(around)] + random() % 40;
  return std::max<uint64_t>(1, size - std::min<uint64_t>(size, 20));
}

// Items and their running sum on the GPU, which may be a part of a longer list.
template <class Item>
class OnGpu {
 public:
  explicit OnGpu(const std::vector<Item>& items)
      : first_chunk_(count_chunks(items)),
        items_(gpu(), items.size() * sizeof(Item)),
        sums_(gpu(), first_chunk_.size() * sizeof(uint64_t)) {
    gpu()->write(items_.address(), items.data(), items.size() * sizeof(Item));
    gpu()->write(sums_.address(), first_chunk_.data(), first_chunk_.size() * sizeof(uint64_t));
  }
  WorkList<Item> list(size_t first, size_t last) const {
    return {reinterpret_cast<const Item*>(items_.address()) + first,
            reinterpret_cast<const uint64_t*>(sums_.address()) + first,
            static_cast<uint32_t>(last - first), first_chunk_[first], first_chunk_[last]};
  }

 private:
  std::vector<uint64_t> first_chunk_;
  Allocation items_, sums_;
};

// A buffer on the GPU and its twin on the host.
struct Twin {
  Twin(uint64_t bytes, std::mt19937_64& random)
      : host(random_string(bytes, random)), memory(gpu(), bytes) {
    gpu()->write(memory.address(), host.data(), bytes);
  }
  uint64_t host_address() const { return reinterpret_cast<uint64_t>(host.data()); }
  void expect_equal(const char* what) const {
    std::string actual(host.size(), '\0');
    gpu()->read(actual.data(), memory.address(), actual.size());
    const auto at = std::mismatch(actual.begin(), actual.end(), host.begin()).first;
    if (at != actual.end()) {
      check::fail(__FILE__, __LINE__, what, ": byte ", at - actual.begin(), " of ", host.size(),
                  " differs");
    }
  }
  std::string host;
  Allocation memory;
};

// Spans that do not overlap, in order, `aligned` to 16 bytes or at any address.
std::vector<Span> random_spans(uint64_t bytes, bool aligned, std::mt19937_64& random) {
  std::vector<Span> spans;
  for (uint64_t end = 0;;) {
    const uint64_t start = aligned ? (end + 15) / 16 * 16 : end + random() % 20;
    const uint64_t size = random_size(random);
    if (start + size > bytes) return spans;
    spans.push_back({start, size});
    end = start + size;
  }
}

TEST("launch_copy() moves the bytes of every piece and no others") {
  std::mt19937_64 random(1);
  constexpr uint64_t kBytes = 48 << 20;
  for (const bool aligned : {true, false}) {
    for (const uint32_t blocks : {1u, 3u, kCopyBlocks, 2000u}) {
      const Twin source(kBytes, random);
      Twin target(kBytes, random);
      std::vector<Piece> pieces;
      for (const Span& span : random_spans(kBytes, aligned, random)) {
        const uint64_t room = kBytes - span.bytes + 1;
        const uint64_t from = aligned ? random() % room / 16 * 16 : random() % room;
        pieces.push_back(
            {target.memory.address() + span.address, source.memory.address() + from, span.bytes});
      }
      std::shuffle(pieces.begin(), pieces.end(), random);
      // The middle of the list, as a run uses it: pieces before and after belong to other batches.
      const size_t first = pieces.size() / 4, last = pieces.size() - pieces.size() / 4;
      for (size_t i = first; i < last; ++i) {
        std::memcpy(target.host.data() + (pieces[i].target - target.memory.address()),
                    source.host.data() + (pieces[i].source - source.memory.address()),
                    pieces[i].bytes);
      }
      const OnGpu<Piece> work(pieces);
      const Stream stream;
      launch_copy(work.list(first, last), stream, blocks);
      stream.synchronize();
      target.expect_equal(aligned ? "aligned pieces" : "pieces at any address");
    }
  }
}

TEST("launch_copy() keeps up with thousands of pieces of a few bytes") {
  std::mt19937_64 random(2);
  constexpr uint64_t kPieces = 20000, kStride = 24;
  const Twin source(kPieces * kStride, random);
  Twin target(kPieces * kStride, random);
  std::vector<Piece> pieces;
  for (uint64_t i = 0; i < kPieces; ++i) {
    const uint64_t from = (kPieces - 1 - i) * kStride, bytes = 1 + i % kStride;
    pieces.push_back(
        {target.memory.address() + i * kStride, source.memory.address() + from, bytes});
    std::memcpy(target.host.data() + i * kStride, source.host.data() + from, bytes);
  }
  const OnGpu<Piece> work(pieces);
  const Stream stream;
  launch_copy(work.list(0, kPieces), stream);
  stream.synchronize();
  target.expect_equal("small pieces");
}

TEST("Device::fill() writes the same bytes as on the host") {
  std::mt19937_64 random(3);
  const std::shared_ptr<Device> host = open_host_device();
  for (const bool aligned : {true, false}) {
    Twin twin(24 << 20, random);
    std::vector<FillSpan> on_gpu, on_host;
    for (const Span& span : random_spans(twin.host.size(), aligned, random)) {
      const uint64_t key = random();
      on_gpu.push_back({twin.memory.address() + span.address, span.bytes, key});
      on_host.push_back({twin.host_address() + span.address, span.bytes, key});
    }
    gpu()->fill(on_gpu);
    host->fill(on_host);
    twin.expect_equal(aligned ? "aligned spans" : "spans at any address");
  }
}

TEST("Device::digest() is the same as on the host") {
  std::mt19937_64 random(4);
  const std::shared_ptr<Device> host = open_host_device();
  for (const bool aligned : {true, false}) {
    const Twin twin(24 << 20, random);
    std::vector<Span> on_gpu, on_host;
    for (const Span& span : random_spans(twin.host.size(), aligned, random)) {
      on_gpu.push_back({twin.memory.address() + span.address, span.bytes});
      on_host.push_back({twin.host_address() + span.address, span.bytes});
    }
    std::vector<uint64_t> actual(on_gpu.size()), expected(on_host.size());
    gpu()->digest(on_gpu, actual.data());
    host->digest(on_host, expected.data());
    for (size_t i = 0; i < actual.size(); ++i) CHECK_EQ(actual[i], expected[i]);
  }
}

TEST("Device::allocate() gives zeroed memory that write() and read() reach") {
  constexpr uint64_t kBytes = (8 << 20) + 5;
  for (int i = 0; i < 3; ++i) {  // the allocator hands out again what was written
    const Allocation memory(gpu(), kBytes);
    std::string bytes(kBytes, '?');
    gpu()->read(bytes.data(), memory.address(), kBytes);
    CHECK(bytes == std::string(kBytes, '\0'));
    std::mt19937_64 random(5);
    const std::string written = random_string(kBytes - 7, random);
    gpu()->write(memory.address() + 3, written.data(), written.size());
    gpu()->read(bytes.data(), memory.address(), kBytes);
    CHECK(bytes == std::string(3, '\0') + written + std::string(4, '\0'));
  }
}

std::string refusal(const Span& span) {
  try {
    gpu()->check_owned_by_caller(span);
  } catch (const Error& error) {
    CHECK_EQ(error.status, EPLB_INVALID_ARGUMENT);
    return error.what();
  }
  return "";
}

TEST("Device::check_owned_by_caller() accepts memory of the device, to its last byte") {
  const Allocation memory(gpu(), 3 << 20);
  CHECK_EQ(refusal({memory.address(), 3 << 20}), "");
  CHECK_EQ(refusal({memory.address() + 5, 100}), "");
  CHECK_CONTAINS(refusal({memory.address() + 5, 3 << 20}), "ends at address");
  const std::string host(100, '\0');
  CHECK_CONTAINS(refusal({reinterpret_cast<uint64_t>(host.data()), 100}), "not known to CUDA");
  const PinnedMemory pinned(100);
  CHECK_CONTAINS(refusal({reinterpret_cast<uint64_t>(pinned.as<char>()), 100}), "page-locked");
  if (cuda_device_count(nullptr) < 2) return;
  const Allocation elsewhere(open_cuda_device(1), 100);
  CHECK_CONTAINS(refusal({elsewhere.address(), 100}), "memory of CUDA device 1");
}

TEST("Device::allocate() says how much memory there is not") {
  try {
    gpu()->allocate(uint64_t{1} << 50);
  } catch (const Error& error) {
    CHECK_EQ(error.status, EPLB_OUT_OF_MEMORY);
    CHECK_CONTAINS(error.what(), "Cannot allocate 1125899906842624 bytes");
    return;
  }
  CHECK(false);
}

TEST("launch_announce() contributes the proof until the rank gives up") {
  const Stream stream;
  const Allocation value(gpu(), sizeof(uint64_t));
  const PinnedMemory giving_up(sizeof(uint32_t)), report(sizeof(FenceReport));
  uint64_t* contribution = reinterpret_cast<uint64_t*>(value.address());
  for (const uint32_t flag : {0u, 1u}) {
    *giving_up.as<uint32_t>() = flag;
    launch_announce(contribution, 12345, giving_up.as<uint32_t>(), stream);
    launch_report(report.as<FenceReport>(), contribution, 7 + flag, stream);
    stream.synchronize();
    CHECK_EQ(report.as<FenceReport>()->fence, 7 + flag);
    CHECK_EQ(report.as<FenceReport>()->sum, flag == 0 ? 12345u : 0u);
  }
}

std::vector<uint64_t> digests_of_filled(int32_t ordinal) {
  const std::vector<uint64_t> tensor_bytes = {3 << 20, 100001, 7168, 3, 8};
  const eplb_weights_config config = {sizeof(config), 1, ordinal, 3, 4, 5};
  const std::vector<int32_t> map = {0, 1, 2, 3, 7, -1, 7, 0, 2, 2, 9, 1};
  std::vector<uint64_t> digests(map.size() * tensor_bytes.size());
  eplb_handle weights = 0;
  MUST(eplb_weights_create, &config, tensor_bytes.data(), &weights);
  MUST(eplb_weights_allocate, weights, 0u);
  MUST(eplb_weights_fill, weights, map.data(), uint64_t{42});
  MUST(eplb_weights_digest, weights, digests.data());
  MUST(eplb_weights_destroy, weights);
  return digests;
}

TEST("eplb_weights_fill() and _digest() are alike on the host and on the GPU") {
  CHECK(digests_of_filled(0) == digests_of_filled(-1));
}

TEST("eplb_device_describe() knows the GPU") {
  eplb_device_info info = {};
  info.size = sizeof(info);
  info.version = 1;
  MUST(eplb_device_describe, 0, &info);
  CHECK(info.compute_major >= 7);
  CHECK(info.multiprocessors > 0);
  CHECK(info.total_bytes >= info.free_bytes && info.free_bytes > 0);
  CHECK(std::strlen(info.name) > 0);
  CHECK_CONTAINS(info.pci_bus_id, ":");
  MUST_FAIL(EPLB_INVALID_ARGUMENT, "Cannot use CUDA device 99", eplb_device_describe, 99, &info);
}

}  // namespace
