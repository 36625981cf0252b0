// SPDX-License-Identifier: Apache-2.0
// Ranks on GPUs, for tests. Ranks share GPUs where there are fewer.
#pragma once

#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "memory/allocation.h"
#include "ranks.h"

namespace ranks {

// The GPUs of this machine. Ends the program as skipped where there are none. A child asks for
// them, as a process that has used CUDA cannot fork into processes that use it.
int32_t require_gpus();

// The weights of one rank; destroyed with this.
class GpuWeights {
 public:
  // `registered`: an allocation of the test's own for each layer and tensor, at odd addresses.
  GpuWeights(const Shape& shape, int32_t ordinal, bool registered);
  GpuWeights(GpuWeights&& other) noexcept;
  GpuWeights& operator=(GpuWeights&&) = delete;
  ~GpuWeights();
  eplb_handle handle() const { return handle_; }

  void write(const Bytes& bytes) const;
  // Fails unless they hold this.
  void expect(const Bytes& expected, const std::string& what) const;

 private:
  template <class Visit>
  void for_each_tensor(Visit visit) const;

  Shape shape_;
  std::vector<eplb::Allocation> own_;
  eplb_handle handle_ = 0;
};

// Fills the weights of all ranks with random bytes, and returns these.
std::vector<Bytes> fill_all(const std::vector<GpuWeights>& weights, const Shape& shape,
                            std::mt19937_64& random);
// Fails unless they hold this.
void expect_all(const std::vector<GpuWeights>& weights, const std::vector<Bytes>& expected,
                const std::string& what);

struct PullOptions {
  uint32_t cells = 1, sets = 2;
  uint64_t small_bytes = 0;
  bool copy_engine_only = false, registered = false;
};
eplb_engine_config pull_config(uint32_t world, uint32_t locals, const PullOptions& options);

}  // namespace ranks
