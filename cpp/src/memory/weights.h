// SPDX-License-Identifier: Apache-2.0
// The expert memory of one rank: where each tensor of each slot is.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "base/handles.h"
#include "eplb.h"
#include "memory/allocation.h"
#include "memory/ranges.h"
#include "memory/shared_memory.h"
#include "memory/weights_view.h"

namespace eplb {

struct TensorPlace {
  uint64_t address, stride;  // of slot 0; from slot to slot
};

class Weights : public HandleObject {
 public:
  static constexpr char kName[] = "weights";
  static constexpr uint64_t kHandleKind = 1;

  Weights(const eplb_weights_config& config, const uint64_t* tensor_bytes);

  // Once, one of the two: the caller's memory, or the library's.
  void register_memory(const uint64_t* table);
  void allocate(bool shareable);

  void write(uint32_t layer, uint32_t slot, uint32_t tensor, uint64_t offset, const void* source,
             uint64_t bytes);
  void read(uint32_t layer, uint32_t slot, uint32_t tensor, uint64_t offset, void* target,
            uint64_t bytes);
  void fill(const int32_t* map, uint64_t seed);
  void digest(uint64_t* digests);
  TensorPlace find(uint32_t layer, uint32_t tensor) const;
  // Frees what the library owns.
  void release();

  bool has_memory() const { return !view_.address.empty(); }
  const WeightsView& view() const { return view_; }
  const std::shared_ptr<Device>& device() const { return device_; }
  // Null for memory that other processes cannot map.
  const SharedMemory* segment() const { return segment_ ? &segment_ : nullptr; }
  // Every byte of the weights is in one of these, which do not overlap; `owner` is as given.
  std::vector<Range> hulls(int32_t owner) const;

  // Engines that use the weights now. The first comes in a turn.
  std::atomic<int32_t> users{0};
  void require_unused() const;

 private:
  void require_memory(const char* verb) const;
  uint64_t locate(const char* verb, uint32_t layer, uint32_t slot, uint32_t tensor, uint64_t offset,
                  uint64_t bytes) const;
  void check_registration(const WeightsView& view) const;
  void check_overlaps(const WeightsView& view) const;

  std::shared_ptr<Device> device_;
  WeightsView view_;      // addresses are empty until there is memory
  Allocation slab_;       // the library's memory, when private
  SharedMemory segment_;  // the library's memory, when shareable
};

}  // namespace eplb
