// SPDX-License-Identifier: Apache-2.0
// Structs of any version and size, status names, texts that do not fit.
#include <cstring>

#include "ranks.h"

using namespace ranks;

namespace {

// A struct and room behind it, as a caller with a later header has.
struct Longer {
  eplb_weights_config config;
  uint64_t more[2];
};

Outcome create(const void* config, eplb_handle* handle) {
  const uint64_t bytes[1] = {8};
  return call(eplb_weights_create, static_cast<const eplb_weights_config*>(config), bytes, handle);
}

TEST("eplb_weights_create() takes a longer struct that is zero in what is not known") {
  Longer longer = {{sizeof(Longer), 2, -1, 1, 1, 1}, {0, 0}};
  eplb_handle handle = 0;
  CHECK_EQ(create(&longer, &handle).error, "");
  MUST(eplb_weights_destroy, handle);
  longer.more[1] = uint64_t{1} << 56;  // the very last byte
  const Outcome refused = create(&longer, &handle);
  CHECK_EQ(refused.status, EPLB_BAD_STRUCT);
  CHECK_CONTAINS(refused.error, "byte 39 is set");
}

TEST("eplb_weights_create() refuses sizes and versions out of range") {
  eplb_handle handle = 0;
  for (const uint32_t size : {0u, 8u, 23u, 4097u, 0xFFFFFFFFu}) {
    const eplb_weights_config config = {size, 1, -1, 1, 1, 1};
    CHECK_EQ(create(&config, &handle).status, EPLB_BAD_STRUCT);
  }
  const eplb_weights_config config = {sizeof(config), 0, -1, 1, 1, 1};
  CHECK_EQ(create(&config, &handle).status, EPLB_BAD_STRUCT);
  CHECK_EQ(create(nullptr, &handle).status, EPLB_INVALID_ARGUMENT);
}

TEST("eplb_engine_describe() writes no further than the caller's struct") {
  World all({1, 3, {4, 100}}, 1, 2, 2);
  struct {
    eplb_engine_info info;
    uint64_t after;
  } room = {{sizeof(eplb_engine_info), 1, 0, 0}, 0x5555};
  MUST(eplb_engine_describe, all.engine[0].handle(), &room.info);
  CHECK_EQ(room.info.size, sizeof(eplb_engine_info));
  CHECK(room.info.cell_bytes >= 104);
  CHECK_EQ(room.info.staging_bytes, 4 * room.info.cell_bytes);
  CHECK_EQ(room.after, 0x5555u);
}

TEST("eplb_engine_run() of a shorter config knows no bound, whatever lies behind it") {
  World all({2, 2, {8}}, 1, 1, 1);
  const Script script{all.shape, 1, {{0, 1}, {1, 2}}, {{0, 0, 0, EPLB_OP_COPY, 0, 0, 0, 1}}};
  eplb_run_config config = run_config(10000, false, 1);
  config.size = 24;
  CHECK_EQ(run(all.engine[0], script, config).outcome.error, "");
}

TEST("eplb_struct_size() is sizeof, and 0 for an unknown kind") {
  CHECK_EQ(eplb_struct_size(EPLB_STRUCT_DEVICE_INFO), sizeof(eplb_device_info));
  CHECK_EQ(eplb_struct_size(EPLB_STRUCT_WEIGHTS_CONFIG), sizeof(eplb_weights_config));
  CHECK_EQ(eplb_struct_size(EPLB_STRUCT_ENGINE_CONFIG), sizeof(eplb_engine_config));
  CHECK_EQ(eplb_struct_size(EPLB_STRUCT_ENGINE_INFO), sizeof(eplb_engine_info));
  CHECK_EQ(eplb_struct_size(EPLB_STRUCT_RUN_RESULT), sizeof(eplb_run_result));
  CHECK_EQ(eplb_struct_size(EPLB_STRUCT_RUN_CONFIG), sizeof(eplb_run_config));
  CHECK_EQ(eplb_struct_size(0), 0u);
  CHECK_EQ(eplb_struct_size(EPLB_STRUCT_COPY_MEASURE), sizeof(eplb_copy_measure));
  CHECK_EQ(eplb_struct_size(EPLB_STRUCT_PRODUCT_MEASURE), sizeof(eplb_product_measure));
  CHECK_EQ(eplb_struct_size(EPLB_STRUCT_DISPATCH_CONFIG), sizeof(eplb_dispatch_config));
  CHECK_EQ(eplb_struct_size(EPLB_STRUCT_DISPATCH_CALL), sizeof(eplb_dispatch_call));
  CHECK_EQ(eplb_struct_size(1000), 0u);
}

TEST("eplb_status_name() and eplb_version() write whole texts only") {
  char text[64] = "x";
  CHECK_EQ(eplb_status_name(EPLB_PEER_FAILED, text, sizeof(text)), EPLB_OK);
  CHECK_EQ(std::string(text), "EPLB_PEER_FAILED");
  CHECK_EQ(eplb_status_name(EPLB_OK, text, 7), EPLB_INVALID_ARGUMENT);
  CHECK_EQ(eplb_status_name(EPLB_OK, text, 8), EPLB_OK);
  CHECK_EQ(eplb_status_name(-59, text, sizeof(text)), EPLB_INVALID_ARGUMENT);
  CHECK_EQ(eplb_version(text, sizeof(text)), EPLB_OK);
  CHECK_EQ(std::string(text), EPLB_VERSION);
  CHECK_EQ(eplb_version(nullptr, 0), EPLB_INVALID_ARGUMENT);
  CHECK_EQ(eplb_abi_version(), EPLB_ABI_VERSION);
}

TEST("error texts are cut to the caller's capacity, and may be left out") {
  char error[8];
  std::memset(error, '?', sizeof(error));
  CHECK_EQ(eplb_engine_seal(1, error, 5), EPLB_INVALID_HANDLE);
  CHECK_EQ(std::string(error), "Cann");
  CHECK_EQ(error[5], '?');
  CHECK_EQ(eplb_engine_seal(1, nullptr, 5), EPLB_INVALID_HANDLE);
  CHECK_EQ(eplb_engine_seal(1, error, 0), EPLB_INVALID_HANDLE);
}

TEST("GPU entries of a build without CUDA say so") {
  if ((eplb_capabilities() & EPLB_CAPABILITY_CUDA) != 0) return;
  int32_t number = -1;
  char error[256] = "", found[64];
  CHECK_EQ(eplb_device_count(&number, error, sizeof(error)), EPLB_OK);
  CHECK_EQ(number, 0);
  CHECK_CONTAINS(error, "built without CUDA");
  eplb_device_info info = {};
  info.size = sizeof(info);
  info.version = 1;
  MUST_FAIL(EPLB_UNSUPPORTED, "built without CUDA", eplb_device_describe, 0, &info);
  MUST_FAIL(EPLB_UNSUPPORTED, "built without CUDA", eplb_device_peer_access, 0, 1, &number);
  MUST_FAIL(EPLB_UNSUPPORTED, "built without", eplb_nccl_open, "", &number, found, uint64_t{64});
  eplb_handle handle = 0;
  const eplb_weights_config config = {sizeof(config), 1, 0, 1, 1, 1};
  CHECK_EQ(create(&config, &handle).status, EPLB_UNSUPPORTED);
}

}  // namespace
