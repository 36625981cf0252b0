// SPDX-License-Identifier: Apache-2.0
// The C entries but those of dispatchers and measurements: arguments in, status and text out.
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/entry.h"
#include "base/error.h"
#include "base/handles.h"
#include "base/structs.h"
#include "base/text.h"
#include "engine/engine.h"
#include "eplb.h"
#include "memory/cuda_query.h"
#include "memory/weights.h"
#include "nccl/nccl_factory.h"

namespace eplb {
namespace {

// Never destroyed: a call may still be running in another thread while the process exits.
HandleTable<Weights>& weights_table() {
  static auto* table = new HandleTable<Weights>;
  return *table;
}

HandleTable<Engine>& engine_table() {
  static auto* table = new HandleTable<Engine>;
  return *table;
}

// A whole text, or an error.
int32_t copy_text(const char* source, char* target, uint64_t capacity) noexcept {
  if (target == nullptr || std::strlen(source) >= capacity) return EPLB_INVALID_ARGUMENT;
  write_text(target, capacity, source);
  return EPLB_OK;
}

const char* status_name(int32_t status) {
#define EPLB_CASE(name) \
  case name:            \
    return #name
  switch (status) {
    EPLB_CASE(EPLB_OK);
    EPLB_CASE(EPLB_INVALID_ARGUMENT);
    EPLB_CASE(EPLB_INVALID_HANDLE);
    EPLB_CASE(EPLB_BUSY);
    EPLB_CASE(EPLB_UNSUPPORTED);
    EPLB_CASE(EPLB_BAD_STRUCT);
    EPLB_CASE(EPLB_BROKEN);
    EPLB_CASE(EPLB_OUT_OF_MEMORY);
    EPLB_CASE(EPLB_SYSTEM_ERROR);
    EPLB_CASE(EPLB_CUDA_ERROR);
    EPLB_CASE(EPLB_NCCL_ERROR);
    EPLB_CASE(EPLB_TIMEOUT);
    EPLB_CASE(EPLB_ABORTED);
    EPLB_CASE(EPLB_PEER_FAILED);
    EPLB_CASE(EPLB_PEER_MISMATCH);
    EPLB_CASE(EPLB_INTERNAL_ERROR);
    default:
      return nullptr;
  }
#undef EPLB_CASE
}

// The turns of all weights of a new engine; each handle may be there once.
std::vector<Lease<Weights>> borrow_all(const eplb_handle* handles, uint32_t count) {
  std::vector<Lease<Weights>> leases;
  for (uint32_t i = 0; i < count; ++i) {
    for (uint32_t k = 0; k < i; ++k) {
      if (handles[k] == handles[i]) {
        throw Error(EPLB_INVALID_ARGUMENT, text("Cannot create engine: local ranks ", k, " and ", i,
                                                " have the same weights"));
      }
    }
    leases.push_back(weights_table().borrow(handles[i]));
  }
  return leases;
}

}  // namespace
}  // namespace eplb

using namespace eplb;

// ---- library ------------------------------------------------------------------------------------

uint32_t eplb_abi_version(void) noexcept { return EPLB_ABI_VERSION; }

uint32_t eplb_capabilities(void) noexcept {
  uint32_t bits = 0;
#ifdef EPLB_WITH_CUDA
  bits |= EPLB_CAPABILITY_CUDA;
#endif
#ifdef EPLB_WITH_NCCL
  bits |= EPLB_CAPABILITY_NCCL;
#endif
  return bits;
}

uint32_t eplb_struct_size(uint32_t kind) noexcept {
  switch (kind) {
    case EPLB_STRUCT_DEVICE_INFO:
      return sizeof(eplb_device_info);
    case EPLB_STRUCT_WEIGHTS_CONFIG:
      return sizeof(eplb_weights_config);
    case EPLB_STRUCT_ENGINE_CONFIG:
      return sizeof(eplb_engine_config);
    case EPLB_STRUCT_ENGINE_INFO:
      return sizeof(eplb_engine_info);
    case EPLB_STRUCT_RUN_RESULT:
      return sizeof(eplb_run_result);
    case EPLB_STRUCT_COPY_MEASURE:
      return sizeof(eplb_copy_measure);
    case EPLB_STRUCT_PRODUCT_MEASURE:
      return sizeof(eplb_product_measure);
    case EPLB_STRUCT_RUN_CONFIG:
      return sizeof(eplb_run_config);
    case EPLB_STRUCT_DISPATCH_CONFIG:
      return sizeof(eplb_dispatch_config);
    case EPLB_STRUCT_DISPATCH_CALL:
      return sizeof(eplb_dispatch_call);
    default:
      return 0;
  }
}

int32_t eplb_version(char* text, uint64_t capacity) noexcept {
  return copy_text(EPLB_VERSION, text, capacity);
}

int32_t eplb_status_name(int32_t status, char* text, uint64_t capacity) noexcept {
  const char* name = status_name(status);
  return name == nullptr ? EPLB_INVALID_ARGUMENT : copy_text(name, text, capacity);
}

// ---- devices ------------------------------------------------------------------------------------

int32_t eplb_device_count(int32_t* count, char* error, uint64_t capacity) noexcept {
  return guard(error, capacity, [&] {
    require(count, "count");
    std::string why_none;
    *count = cuda_device_count(&why_none);
    if (*count == 0) write_text(error, capacity, why_none.c_str());
  });
}

int32_t eplb_device_describe(int32_t ordinal, eplb_device_info* info, char* error,
                             uint64_t capacity) noexcept {
  return guard(error, capacity, [&] {
    eplb_device_info known = read_struct(info);
    known.ordinal = ordinal;
    cuda_device_describe(ordinal, &known);
    write_struct(info, known);
  });
}

int32_t eplb_device_peer_access(int32_t ordinal, int32_t peer, int32_t* reachable, char* error,
                                uint64_t capacity) noexcept {
  return guard(error, capacity, [&] {
    require(reachable, "reachable");
    *reachable = cuda_peer_access(ordinal, peer) ? 1 : 0;
  });
}

int32_t eplb_nccl_open(const char* path, int32_t* version, char* found, uint64_t found_capacity,
                       char* error, uint64_t capacity) noexcept {
  return guard(error, capacity, [&] {
    require(version, "version");
    std::string file;
    *version = nccl_open(path, &file);
    write_text(found, found_capacity, file.c_str());
  });
}

// ---- weights ------------------------------------------------------------------------------------

int32_t eplb_weights_create(const eplb_weights_config* config, const uint64_t* tensor_bytes,
                            eplb_handle* weights, char* error, uint64_t capacity) noexcept {
  return guard(error, capacity, [&] {
    const eplb_weights_config known = read_struct(config);
    require(tensor_bytes, "tensor_bytes");
    require(weights, "weights");
    *weights = weights_table().insert(std::make_shared<Weights>(known, tensor_bytes));
  });
}

int32_t eplb_weights_register(eplb_handle weights, const uint64_t* table, char* error,
                              uint64_t capacity) noexcept {
  return guard(error, capacity, [&] {
    require(table, "table");
    weights_table().borrow(weights)->register_memory(table);
  });
}

int32_t eplb_weights_allocate(eplb_handle weights, uint32_t shareable, char* error,
                              uint64_t capacity) noexcept {
  return guard(error, capacity, [&] { weights_table().borrow(weights)->allocate(shareable != 0); });
}

int32_t eplb_weights_write(eplb_handle weights, uint32_t layer, uint32_t slot, uint32_t tensor,
                           uint64_t offset, const void* source, uint64_t bytes, char* error,
                           uint64_t capacity) noexcept {
  return guard(error, capacity, [&] {
    if (bytes > 0) require(source, "source");
    weights_table().borrow(weights)->write(layer, slot, tensor, offset, source, bytes);
  });
}

int32_t eplb_weights_read(eplb_handle weights, uint32_t layer, uint32_t slot, uint32_t tensor,
                          uint64_t offset, void* target, uint64_t bytes, char* error,
                          uint64_t capacity) noexcept {
  return guard(error, capacity, [&] {
    if (bytes > 0) require(target, "target");
    weights_table().borrow(weights)->read(layer, slot, tensor, offset, target, bytes);
  });
}

int32_t eplb_weights_fill(eplb_handle weights, const int32_t* map, uint64_t seed, char* error,
                          uint64_t capacity) noexcept {
  return guard(error, capacity, [&] {
    require(map, "map");
    weights_table().borrow(weights)->fill(map, seed);
  });
}

int32_t eplb_weights_digest(eplb_handle weights, uint64_t* digests, char* error,
                            uint64_t capacity) noexcept {
  return guard(error, capacity, [&] {
    require(digests, "digests");
    weights_table().borrow(weights)->digest(digests);
  });
}

int32_t eplb_weights_address(eplb_handle weights, uint32_t layer, uint32_t tensor,
                             uint64_t* address, uint64_t* stride, char* error,
                             uint64_t capacity) noexcept {
  return guard(error, capacity, [&] {
    require(address, "address");
    require(stride, "stride");
    const TensorPlace place = weights_table().borrow(weights)->find(layer, tensor);
    *address = place.address;
    *stride = place.stride;
  });
}

int32_t eplb_weights_destroy(eplb_handle weights, char* error, uint64_t capacity) noexcept {
  return guard(error, capacity, [&] {
    const std::shared_ptr<Weights> object = weights_table().find(weights);
    object->require_unused();                              // without waiting for a run
    const std::lock_guard<std::mutex> turn(object->turn);  // waits for a running call
    object->require_unused();
    weights_table().remove(weights);  // throws if another call was faster
    object->closed = true;
    object->release();
  });
}

// ---- engine -------------------------------------------------------------------------------------

int32_t eplb_engine_create(const eplb_engine_config* config, const int32_t* local_ranks,
                           const int32_t* local_nodes, const eplb_handle* weights,
                           eplb_handle* engine, char* error, uint64_t capacity) noexcept {
  return guard(error, capacity, [&] {
    const eplb_engine_config known = read_struct(config);
    require(local_ranks, "local_ranks");
    require(weights, "weights");
    require(engine, "engine");
    check_config(known);
    const std::vector<Lease<Weights>> leases = borrow_all(weights, known.locals);
    std::vector<Engine::Local> locals;
    for (uint32_t i = 0; i < known.locals; ++i) {
      const int32_t node = local_nodes == nullptr ? 0 : local_nodes[i];
      locals.push_back({local_ranks[i], node, leases[i].object()});
    }
    *engine = engine_table().insert(std::make_shared<Engine>(known, std::move(locals)));
  });
}

int32_t eplb_engine_describe(eplb_handle engine, eplb_engine_info* info, char* error,
                             uint64_t capacity) noexcept {
  return guard(error, capacity, [&] {
    eplb_engine_info known = read_struct(info);
    engine_table().borrow(engine)->describe(&known);
    write_struct(info, known);
  });
}

int32_t eplb_engine_export(eplb_handle engine, uint32_t index, void* blob, uint64_t capacity_bytes,
                           uint64_t* bytes, char* error, uint64_t capacity) noexcept {
  return guard(error, capacity, [&] {
    require(bytes, "bytes");
    const Lease<Engine> lease = engine_table().borrow(engine);
    const std::vector<char>& exported = lease->export_blob(index);
    *bytes = exported.size();
    if (blob == nullptr || capacity_bytes < exported.size()) {
      throw Error(EPLB_INVALID_ARGUMENT, text("Cannot export blob: it has ", exported.size(),
                                              " bytes, the buffer ", capacity_bytes));
    }
    std::memcpy(blob, exported.data(), exported.size());
  });
}

int32_t eplb_engine_connect(eplb_handle engine, const void* blobs, const uint64_t* lengths,
                            uint64_t timeout_ms, char* error, uint64_t capacity) noexcept {
  return guard(error, capacity, [&] {
    require(blobs, "blobs");
    require(lengths, "lengths");
    engine_table().borrow(engine)->connect(static_cast<const char*>(blobs), lengths, timeout_ms);
  });
}

int32_t eplb_engine_seal(eplb_handle engine, char* error, uint64_t capacity) noexcept {
  return guard(error, capacity, [&] { engine_table().borrow(engine)->seal(); });
}

int32_t eplb_engine_run(eplb_handle engine, const int32_t* program, uint64_t words,
                        const eplb_run_config* config, eplb_run_result* result,
                        uint64_t* rank_bytes, char* error, uint64_t capacity) noexcept {
  return guard(error, capacity, [&] {
    require(program, "program");
    const eplb_run_config how = read_struct(config);
    eplb_run_result known = read_struct(result);
    known.committed_batches = 0;
    known.failed_rank = -1;
    known.seconds = 0;
    write_struct(result, known);
    const RunOutcome outcome = engine_table().borrow(engine)->run(program, words, how, rank_bytes);
    known.committed_batches = outcome.committed;
    known.seconds = outcome.seconds;
    if (outcome.error) known.failed_rank = outcome.error->rank;
    write_struct(result, known);
    if (outcome.error) throw *outcome.error;
  });
}

int32_t eplb_engine_commit(eplb_handle engine, uint32_t batches, uint64_t timeout_ms,
                           uint32_t* committed, char* error, uint64_t capacity) noexcept {
  return guard(error, capacity, [&] {
    require(committed, "committed");
    engine_table().find(engine)->commit(batches, timeout_ms, committed);
  });
}

int32_t eplb_engine_settle(eplb_handle engine, uint32_t batches, uint32_t* committed, char* error,
                           uint64_t capacity) noexcept {
  return guard(error, capacity, [&] {
    require(committed, "committed");
    *committed = engine_table().borrow(engine)->settle(batches);
  });
}

int32_t eplb_engine_progress(eplb_handle engine, uint32_t* committed, uint32_t* agreed,
                             uint32_t* runs, char* error, uint64_t capacity) noexcept {
  return guard(error, capacity, [&] {
    require(committed, "committed");
    require(agreed, "agreed");
    require(runs, "runs");
    const RunCounts counts = engine_table().find(engine)->progress();
    *committed = counts.committed;
    *agreed = counts.agreed;
    *runs = counts.runs;
  });
}

int32_t eplb_engine_abort(eplb_handle engine, int32_t failed_rank, const char* reason, char* error,
                          uint64_t capacity) noexcept {
  return guard(error, capacity, [&] {
    engine_table().find(engine)->abort(failed_rank, reason == nullptr ? "" : reason);
  });
}

int32_t eplb_engine_destroy(eplb_handle engine, char* error, uint64_t capacity) noexcept {
  return guard(error, capacity, [&] {
    const std::shared_ptr<Engine> object = engine_table().find(engine);
    object->abort(-1, "the engine was destroyed");
    const std::lock_guard<std::mutex> turn(object->turn);  // waits for a running call
    engine_table().remove(engine);                         // throws if another call was faster
    object->closed = true;
    object->close();
  });
}
