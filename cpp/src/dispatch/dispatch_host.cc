// SPDX-License-Identifier: Apache-2.0
// Dispatch in host memory: what the kernel does, as a plain loop.
#include <algorithm>
#include <chrono>
#include <cstring>
#include <vector>

#include "dispatch/dispatch.h"

namespace eplb {
namespace {

// `loads` may be null.
template <class Id>
void route_all(const RouteTable& table, const RouteTokens& tokens, uint64_t* loads) {
  const Id* logical = static_cast<const Id*>(tokens.logical);
  Id* physical = static_cast<Id*>(tokens.physical);  // may be `logical`
  const uint32_t valid = count_valid(tokens), salt = whole_salt(tokens);
  for (uint32_t token = 0; token < valid; ++token) {
    for (uint32_t k = 0; k < tokens.top_k; ++k, ++logical, ++physical) {
      const Id id = *logical;
      *physical = -1;
      if (!is_expert(id, table.experts)) continue;
      const uint32_t expert = static_cast<uint32_t>(id);
      *physical = route(table, token, expert, salt);
      if (loads != nullptr) ++loads[expert];
    }
  }
  std::fill_n(physical, static_cast<uint64_t>(tokens.tokens - valid) * tokens.top_k, Id{-1});
}

class HostDispatch : public DispatchDevice {
 public:
  HostDispatch(const DispatchShape& shape, const DispatchArrays& arrays)
      : shape_(shape), arrays_(arrays), taken_(shape.cells()) {}

  void update(const LayerTables& tables, uint64_t, const Cancellation&) override {
    const uint64_t cells = uint64_t{tables.layers} * shape_.experts;
    const uint64_t cell = uint64_t{tables.first_layer} * shape_.experts;
    const uint64_t places = cells * shape_.max_replicas, place = cell * shape_.max_replicas;
    std::copy_n(tables.physical, places, arrays_.physical + place);
    std::copy_n(tables.count, cells, arrays_.count + cell);
    std::copy_n(tables.threshold, places, arrays_.threshold + place);
  }

  void launch(const eplb_dispatch_call& call) override {
    const RouteTable table = layer_table(shape_, arrays_, call.layer);
    uint64_t* loads = layer_loads(shape_, arrays_, call);
    if (call.id_bytes == sizeof(int32_t)) {
      route_all<int32_t>(table, tokens_of(call), loads);
    } else {
      route_all<int64_t>(table, tokens_of(call), loads);
    }
  }

  void snapshot(uint64_t) override {
    std::copy_n(arrays_.loads, taken_.size(), taken_.data());
    std::fill_n(arrays_.loads, taken_.size(), 0);
  }

  const uint64_t* wait_snapshot(const Cancellation&) override { return taken_.data(); }

  void measure(const eplb_dispatch_call& call, uint32_t repeats, double* seconds) override {
    launch(call);  // the first one finds cold caches
    for (uint32_t i = 0; i < repeats; ++i) {
      const auto start = std::chrono::steady_clock::now();
      launch(call);
      seconds[i] = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    }
  }

 private:
  const DispatchShape shape_;
  const DispatchArrays arrays_;
  std::vector<uint64_t> taken_;  // [layers][experts]
};

}  // namespace

std::unique_ptr<DispatchDevice> make_host_dispatch(const DispatchShape& shape,
                                                   const DispatchArrays& arrays) {
  return std::make_unique<HostDispatch>(shape, arrays);
}

}  // namespace eplb
