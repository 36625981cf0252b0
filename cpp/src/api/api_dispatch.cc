// SPDX-License-Identifier: Apache-2.0
// The C entries of dispatchers.
#include <memory>
#include <mutex>

#include "base/entry.h"
#include "base/handles.h"
#include "base/structs.h"
#include "dispatch/dispatch.h"
#include "eplb.h"

namespace eplb {
namespace {

// Never destroyed: a call may still be running in another thread while the process exits.
HandleTable<Dispatcher>& dispatcher_table() {
  static auto* table = new HandleTable<Dispatcher>;
  return *table;
}

}  // namespace
}  // namespace eplb

using namespace eplb;

int32_t eplb_dispatch_create(const eplb_dispatch_config* config, eplb_handle* dispatcher,
                             char* error, uint64_t capacity) noexcept {
  return guard(error, capacity, [&] {
    const eplb_dispatch_config known = read_struct(config);
    require(dispatcher, "dispatcher");
    *dispatcher = dispatcher_table().insert(std::make_shared<Dispatcher>(known));
  });
}

int32_t eplb_dispatch_update(eplb_handle dispatcher, uint32_t first_layer, uint32_t layers,
                             const int32_t* physical, const int32_t* count,
                             const uint32_t* threshold, uint64_t stream, uint64_t timeout_ms,
                             char* error, uint64_t capacity) noexcept {
  return guard(error, capacity, [&] {
    require(physical, "physical");
    require(count, "count");
    require(threshold, "threshold");
    const LayerTables tables = {first_layer, layers, physical, count, threshold};
    dispatcher_table().borrow(dispatcher)->update(tables, stream, timeout_ms);
  });
}

int32_t eplb_dispatch_launch(eplb_handle dispatcher, const eplb_dispatch_call* what, char* error,
                             uint64_t capacity) noexcept {
  return guard(error, capacity, [&] {
    const eplb_dispatch_call known = read_struct(what);
    dispatcher_table().borrow(dispatcher)->launch(known);
  });
}

int32_t eplb_dispatch_host(eplb_handle dispatcher, const eplb_dispatch_call* what,
                           const void* logical, void* physical, char* error,
                           uint64_t capacity) noexcept {
  return guard(error, capacity, [&] {
    const eplb_dispatch_call known = read_struct(what);
    dispatcher_table().borrow(dispatcher)->launch_host(known, logical, physical);
  });
}

int32_t eplb_dispatch_snapshot(eplb_handle dispatcher, uint64_t stream, char* error,
                               uint64_t capacity) noexcept {
  return guard(error, capacity, [&] { dispatcher_table().borrow(dispatcher)->snapshot(stream); });
}

int32_t eplb_dispatch_read(eplb_handle dispatcher, uint64_t timeout_ms, uint64_t* loads,
                           char* error, uint64_t capacity) noexcept {
  return guard(error, capacity, [&] {
    require(loads, "loads");
    dispatcher_table().find(dispatcher)->read(timeout_ms, loads);
  });
}

int32_t eplb_dispatch_address(eplb_handle dispatcher, uint64_t* addresses, char* error,
                              uint64_t capacity) noexcept {
  return guard(error, capacity, [&] {
    require(addresses, "addresses");
    const Lease<Dispatcher> lease = dispatcher_table().borrow(dispatcher);
    const DispatchArrays& arrays = lease->arrays();
    addresses[0] = reinterpret_cast<uint64_t>(arrays.physical);
    addresses[1] = reinterpret_cast<uint64_t>(arrays.count);
    addresses[2] = reinterpret_cast<uint64_t>(arrays.threshold);
    addresses[3] = reinterpret_cast<uint64_t>(arrays.loads);
  });
}

int32_t eplb_dispatch_measure(eplb_handle dispatcher, const eplb_dispatch_call* what,
                              uint32_t repeats, double* seconds, char* error,
                              uint64_t capacity) noexcept {
  return guard(error, capacity, [&] {
    const eplb_dispatch_call known = read_struct(what);
    require(seconds, "seconds");
    dispatcher_table().borrow(dispatcher)->measure(known, repeats, seconds);
  });
}

int32_t eplb_dispatch_destroy(eplb_handle dispatcher, char* error, uint64_t capacity) noexcept {
  return guard(error, capacity, [&] {
    const std::shared_ptr<Dispatcher> object = dispatcher_table().find(dispatcher);
    object->stop();                                        // waits end
    const std::lock_guard<std::mutex> turn(object->turn);  // waits for a running call
    dispatcher_table().remove(dispatcher);                 // throws if another call was faster
    object->closed = true;
    object->close();
  });
}
