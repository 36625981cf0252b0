// SPDX-License-Identifier: Apache-2.0
// Ranks on GPUs, for tests.
#include "gpu_ranks.h"

#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <utility>

namespace ranks {

int32_t require_gpus() {
  constexpr int kSkipped = 77;  // SKIP_RETURN_CODE
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
}

GpuWeights::GpuWeights(const Shape& shape, int32_t ordinal, bool registered) : shape_(shape) {
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

GpuWeights::GpuWeights(GpuWeights&& other) noexcept
    : shape_(std::move(other.shape_)),
      own_(std::move(other.own_)),
      handle_(std::exchange(other.handle_, 0)) {}

GpuWeights::~GpuWeights() {
  if (handle_ != 0) eplb_weights_destroy(handle_, nullptr, 0);
}

// Calls visit(layer, slot, tensor, place of the expert, offset in it).
template <class Visit>
void GpuWeights::for_each_tensor(Visit visit) const {
  for (uint32_t place = 0; place < shape_.layers * shape_.slots; ++place) {
    uint64_t offset = 0;
    for (uint32_t tensor = 0; tensor < shape_.tensors(); ++tensor) {
      visit(place / shape_.slots, place % shape_.slots, tensor, place, offset);
      offset += shape_.tensor_bytes[tensor];
    }
  }
}

void GpuWeights::write(const Bytes& bytes) const {
  for_each_tensor(
      [&](uint32_t layer, uint32_t slot, uint32_t tensor, uint32_t place, uint64_t offset) {
        MUST(eplb_weights_write, handle_, layer, slot, tensor, uint64_t{0},
             static_cast<const void*>(&bytes[place][offset]), shape_.tensor_bytes[tensor]);
      });
}

void GpuWeights::expect(const Bytes& expected, const std::string& what) const {
  Bytes actual(expected.size(), std::string(shape_.expert_bytes(), '\0'));
  for_each_tensor(
      [&](uint32_t layer, uint32_t slot, uint32_t tensor, uint32_t place, uint64_t offset) {
        MUST(eplb_weights_read, handle_, layer, slot, tensor, uint64_t{0},
             static_cast<void*>(&actual[place][offset]), shape_.tensor_bytes[tensor]);
      });
  for (size_t i = 0; i < actual.size(); ++i) {
    if (actual[i] == expected[i]) continue;
    const auto at = std::mismatch(actual[i].begin(), actual[i].end(), expected[i].begin()).first;
    check::fail(__FILE__, __LINE__, what, ": layer ", i / shape_.slots, ", slot ", i % shape_.slots,
                ", byte ", at - actual[i].begin(), " differs");
  }
}

std::vector<Bytes> fill_all(const std::vector<GpuWeights>& weights, const Shape& shape,
                            std::mt19937_64& random) {
  std::vector<Bytes> all;
  for (const GpuWeights& own : weights) {
    all.push_back(random_bytes(shape, random));
    own.write(all.back());
  }
  return all;
}

void expect_all(const std::vector<GpuWeights>& weights, const std::vector<Bytes>& expected,
                const std::string& what) {
  for (size_t rank = 0; rank < weights.size(); ++rank) {
    weights[rank].expect(expected[rank], what + ", rank " + std::to_string(rank));
  }
}

eplb_engine_config pull_config(uint32_t world, uint32_t locals, const PullOptions& options) {
  eplb_engine_config config = engine_config(world, locals, options.cells, options.sets);
  config.small_bytes = options.small_bytes;
  config.copy_engine_only = options.copy_engine_only ? 1 : 0;
  return config;
}

}  // namespace ranks
