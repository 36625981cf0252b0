// SPDX-License-Identifier: Apache-2.0
// Checks everything that callers pass to a dispatcher, and keeps its memory.
#include "dispatch/dispatch.h"

#include <algorithm>
#include <chrono>
#include <vector>

#include "base/round_up.h"
#include "base/text.h"

namespace eplb {
namespace {

constexpr uint64_t kMostPlaces = INT32_MAX;  // in the tables of all layers
constexpr uint64_t kMostIds = INT32_MAX;     // of one call
constexpr uint64_t kLongestTimeout = uint64_t{1} << 31;
constexpr uint64_t kBaseAlignment = 256;  // what CUDA's allocator gives
constexpr uint32_t kMostRepeats = 1 << 16;

[[noreturn]] void refuse(const std::string& message) {
  throw Error(EPLB_INVALID_ARGUMENT, message);
}

DispatchShape checked_shape(const eplb_dispatch_config& config) {
  if (config.ordinal < -1) {
    refuse(
        text("Cannot create dispatcher: ordinal is ", config.ordinal, ", not -1 or a CUDA device"));
  }
  const uint64_t cells = static_cast<uint64_t>(config.layers) * config.experts;
  if (config.layers < 1 || config.experts < 1 || config.max_replicas < 1 || cells > kMostPlaces ||
      cells * config.max_replicas > kMostPlaces) {
    refuse(text("Cannot create dispatcher: ", config.layers, " layers, ", config.experts,
                " experts and ", config.max_replicas,
                " replicas; each must be at least 1, their product at most ", kMostPlaces));
  }
  return {config.layers, config.experts, config.max_replicas};
}

std::chrono::steady_clock::time_point deadline_of(uint64_t timeout_ms, const char* what) {
  if (timeout_ms == 0) refuse(text("Cannot ", what, ": the timeout is 0 milliseconds"));
  return std::chrono::steady_clock::now() +
         std::chrono::milliseconds(std::min(timeout_ms, kLongestTimeout));
}

void check_address(const char* name, uint64_t address, uint64_t alignment) {
  if (address % alignment == 0) return;
  refuse(text("Cannot dispatch: ", name, " is at address ", address, ", which ", alignment,
              " does not divide"));
}

}  // namespace

Dispatcher::Dispatcher(const eplb_dispatch_config& config) : shape_(checked_shape(config)) {
  memory_ = config.ordinal < 0 ? open_host_device() : open_cuda_device(config.ordinal);
  uint64_t bytes = 0;
  const auto reserve = [&](uint64_t size) {
    const uint64_t offset = bytes;
    bytes += round_up(size, kBaseAlignment);
    return offset;
  };
  const uint64_t physical = reserve(shape_.places() * sizeof(int32_t));
  const uint64_t count = reserve(shape_.cells() * sizeof(int32_t));
  const uint64_t threshold = reserve(shape_.places() * sizeof(uint32_t));
  const uint64_t loads = reserve(shape_.cells() * sizeof(uint64_t));
  slab_ = Allocation(memory_, bytes);
  const uint64_t base = slab_.address();
  arrays_ = {reinterpret_cast<int32_t*>(base + physical), reinterpret_cast<int32_t*>(base + count),
             reinterpret_cast<uint32_t*>(base + threshold),
             reinterpret_cast<uint64_t*>(base + loads)};
  const std::vector<int32_t> none(shape_.places(), -1);
  memory_->write(base + physical, none.data(), none.size() * sizeof(int32_t));
  device_ = config.ordinal < 0 ? make_host_dispatch(shape_, arrays_)
                               : make_cuda_dispatch(config.ordinal, shape_, arrays_);
}

void Dispatcher::check_tables(const LayerTables& tables) const {
  if (tables.layers > shape_.layers || tables.first_layer > shape_.layers - tables.layers) {
    refuse(text("Cannot update dispatch tables: ", tables.layers, " layers from layer ",
                tables.first_layer, " on are outside of ", shape_.layers, " layers"));
  }
  const uint32_t most = shape_.max_replicas;
  for (uint64_t cell = 0; cell < uint64_t{tables.layers} * shape_.experts; ++cell) {
    const auto refuse_cell = [&](const auto&... state) {
      refuse(text("Cannot update dispatch tables: layer ",
                  tables.first_layer + cell / shape_.experts, ", expert ", cell % shape_.experts,
                  " ", state...));
    };
    const int32_t count = tables.count[cell];
    if (count < 0 || static_cast<uint32_t>(count) > most) {
      refuse_cell("lists ", count, " replicas, not 0 to ", most);
    }
    const int32_t* physical = tables.physical + cell * most;
    const uint32_t* threshold = tables.threshold + cell * most;
    const uint32_t listed = static_cast<uint32_t>(count);
    for (uint32_t i = 0; i < listed; ++i) {
      if (physical[i] < 0) refuse_cell("lists slot ", physical[i]);
      if (i > 0 && threshold[i] < threshold[i - 1]) {
        refuse_cell("has threshold ", threshold[i], " after ", threshold[i - 1]);
      }
    }
    if (listed > 0 && threshold[listed - 1] != UINT32_MAX) {
      refuse_cell("has ", threshold[listed - 1], " as its last threshold, not ", UINT32_MAX);
    }
    for (uint32_t i = listed; i < most; ++i) {
      if (physical[i] != -1) refuse_cell("has slot ", physical[i], " behind those it lists");
    }
  }
}

void Dispatcher::update(const LayerTables& tables, uint64_t stream, uint64_t timeout_ms) {
  check_tables(tables);
  update_wait_.reset(deadline_of(timeout_ms, "update dispatch tables"));
  if (tables.layers > 0) device_->update(tables, stream, update_wait_);
}

void Dispatcher::check_call(const eplb_dispatch_call& call) const {
  if (call.layer >= shape_.layers) {
    refuse(
        text("Cannot dispatch: layer ", call.layer, " is outside of ", shape_.layers, " layers"));
  }
  const uint64_t ids = static_cast<uint64_t>(call.tokens) * call.top_k;
  if (call.top_k < 1 || ids > kMostIds) {
    refuse(text("Cannot dispatch: ", call.tokens, " tokens of ", call.top_k,
                " experts each; these must be at least 1, all ids at most ", kMostIds));
  }
  if (call.id_bytes != sizeof(int32_t) && call.id_bytes != sizeof(int64_t)) {
    refuse(text("Cannot dispatch: ids have ", call.id_bytes, " bytes, not 4 or 8"));
  }
  if (call.record > 1) refuse(text("Cannot dispatch: \"record\" is ", call.record, ", not 0 or 1"));
  if (ids > 0 && (call.logical == 0 || call.physical == 0)) {
    refuse("Cannot dispatch: the address of the ids is null");
  }
  check_address("\"logical\"", call.logical, call.id_bytes);
  check_address("\"physical\"", call.physical, call.id_bytes);
  check_address("\"valid_tokens\"", call.valid_tokens, sizeof(int32_t));
  check_address("\"step_salt\"", call.step_salt, sizeof(uint32_t));
}

void Dispatcher::launch(const eplb_dispatch_call& call) {
  check_call(call);
  if (call.tokens > 0) device_->launch(call);
}

void Dispatcher::launch_host(eplb_dispatch_call call, const void* logical, void* physical) {
  if (memory_->ordinal() >= 0) {
    refuse(text("Cannot dispatch buffers: the dispatcher is on CUDA device ", memory_->ordinal()));
  }
  call.logical = reinterpret_cast<uint64_t>(logical);
  call.physical = reinterpret_cast<uint64_t>(physical);
  launch(call);
}

void Dispatcher::measure(const eplb_dispatch_call& call, uint32_t repeats, double* seconds) {
  check_call(call);
  if (call.tokens < 1 || repeats < 1 || repeats > kMostRepeats) {
    refuse(text("Cannot measure dispatch: ", repeats, " repeats of ", call.tokens, " tokens"));
  }
  device_->measure(call, repeats, seconds);
}

void Dispatcher::snapshot(uint64_t stream) {
  const std::unique_lock<std::mutex> turn(reading_, std::try_to_lock);
  if (!turn.owns_lock() || has_snapshot_) {
    throw Error(EPLB_BUSY, "Cannot take snapshot of dispatch loads: the last one is not read yet");
  }
  device_->snapshot(stream);
  has_snapshot_ = true;
}

void Dispatcher::read(uint64_t timeout_ms, uint64_t* loads) {
  constexpr char kWhat[] = "read dispatch loads";
  const auto deadline = deadline_of(timeout_ms, kWhat);
  const std::unique_lock<std::mutex> turn(reading_, std::try_to_lock);
  if (!turn.owns_lock()) {
    throw Error(EPLB_BUSY, text("Cannot ", kWhat, ": another call reads or takes a snapshot"));
  }
  read_wait_.reset(deadline);
  read_wait_.check(kWhat);  // when it is destroyed, there is nothing to look at
  if (!has_snapshot_) refuse(text("Cannot ", kWhat, ": no snapshot was taken since the last read"));
  std::copy_n(device_->wait_snapshot(read_wait_), shape_.cells(), loads);
  has_snapshot_ = false;
}

void Dispatcher::stop() {
  for (Cancellation* wait : {&update_wait_, &read_wait_}) {
    wait->cancel(EPLB_ABORTED, -1, "the dispatcher was destroyed");
  }
}

void Dispatcher::close() {
  stop();
  const std::lock_guard<std::mutex> turn(reading_);  // waits for a running read
  device_.reset();
  slab_ = {};
}

}  // namespace eplb
