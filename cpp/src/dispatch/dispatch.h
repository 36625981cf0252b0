// SPDX-License-Identifier: Apache-2.0
// A dispatcher: the tables that say which replica gets a token, and the loads that it counts.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>

#include "base/cancellation.h"
#include "base/handles.h"
#include "dispatch/route.h"
#include "eplb.h"
#include "memory/allocation.h"

namespace eplb {

struct DispatchShape {
  uint32_t layers, experts, max_replicas;
  uint64_t cells() const { return static_cast<uint64_t>(layers) * experts; }
  uint64_t places() const { return cells() * max_replicas; }
};

// The arrays of all layers, on the dispatcher's device; their addresses never change.
struct DispatchArrays {
  int32_t* physical;    // [layers][experts][max_replicas]
  int32_t* count;       // [layers][experts]
  uint32_t* threshold;  // [layers][experts][max_replicas]
  uint64_t* loads;      // [layers][experts]
};

// New tables of some layers, checked, in host memory.
struct LayerTables {
  uint32_t first_layer, layers;
  const int32_t* physical;
  const int32_t* count;
  const uint32_t* threshold;
};

// What differs between the host and a GPU. Calls are checked, and come one at a time, but for
// wait_snapshot(), which comes beside others.
class DispatchDevice {
 public:
  virtual ~DispatchDevice() = default;
  // The caller's arrays are free when it returns. Waits where a copy of the same layers is still
  // queued.
  virtual void update(const LayerTables& tables, uint64_t stream, const Cancellation& patience) = 0;
  virtual void launch(const eplb_dispatch_call& call) = 0;
  // Moves the loads out of the way, leaving zeros.
  virtual void snapshot(uint64_t stream) = 0;
  // The loads that the last snapshot took: [layers][experts].
  virtual const uint64_t* wait_snapshot(const Cancellation& patience) = 0;
  virtual void measure(const eplb_dispatch_call& call, uint32_t repeats, double* seconds) = 0;
};

std::unique_ptr<DispatchDevice> make_host_dispatch(const DispatchShape& shape,
                                                   const DispatchArrays& arrays);
// Defined in dispatch_cuda.cu, or in no_cuda.cc, where it throws EPLB_UNSUPPORTED.
std::unique_ptr<DispatchDevice> make_cuda_dispatch(int32_t ordinal, const DispatchShape& shape,
                                                   const DispatchArrays& arrays);

inline RouteTable layer_table(const DispatchShape& shape, const DispatchArrays& arrays,
                              uint32_t layer) {
  const uint64_t cell = static_cast<uint64_t>(layer) * shape.experts;
  const uint64_t place = cell * shape.max_replicas;
  return {arrays.physical + place, arrays.count + cell, arrays.threshold + place, shape.experts,
          shape.max_replicas};
}

// Where one layer's loads are counted; null when the call shall not count.
inline uint64_t* layer_loads(const DispatchShape& shape, const DispatchArrays& arrays,
                             const eplb_dispatch_call& call) {
  if (call.record == 0) return nullptr;
  return arrays.loads + static_cast<uint64_t>(call.layer) * shape.experts;
}

inline RouteTokens tokens_of(const eplb_dispatch_call& call) {
  return {reinterpret_cast<const void*>(call.logical),
          reinterpret_cast<void*>(call.physical),
          reinterpret_cast<const int32_t*>(call.valid_tokens),
          reinterpret_cast<const uint32_t*>(call.step_salt),
          call.tokens,
          call.top_k,
          call.salt};
}

class Dispatcher : public HandleObject {
 public:
  static constexpr char kName[] = "dispatcher";
  static constexpr uint64_t kHandleKind = 3;

  explicit Dispatcher(const eplb_dispatch_config& config);

  void update(const LayerTables& tables, uint64_t stream, uint64_t timeout_ms);
  void launch(const eplb_dispatch_call& call);
  // `call` with these buffers in place of its addresses; host dispatchers only.
  void launch_host(eplb_dispatch_call call, const void* logical, void* physical);
  void snapshot(uint64_t stream);
  void measure(const eplb_dispatch_call& call, uint32_t repeats, double* seconds);
  const DispatchArrays& arrays() const { return arrays_; }
  // Ends waits, then frees everything. The caller has the turn, or stop() was called before.
  void close();

  // Any time, by any thread.
  void read(uint64_t timeout_ms, uint64_t* loads);
  // Ends the waits of other calls, now and later.
  void stop();

 private:
  void check_tables(const LayerTables& tables) const;
  void check_call(const eplb_dispatch_call& call) const;

  const DispatchShape shape_;
  std::shared_ptr<Device> memory_;
  Allocation slab_;  // of all arrays
  DispatchArrays arrays_{};
  std::unique_ptr<DispatchDevice> device_;
  Cancellation update_wait_, read_wait_;

  std::mutex reading_;         // held by the call that reads or takes a snapshot
  bool has_snapshot_ = false;  // guarded by `reading_`
};

}  // namespace eplb
