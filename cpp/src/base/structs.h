// SPDX-License-Identifier: Apache-2.0
// Versioned structs at the C boundary: any caller's size, our layout.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "base/error.h"
#include "base/text.h"

namespace eplb {

constexpr uint32_t kMostStructBytes = 4096;  // a larger size is no size

// Bytes of each struct in version 1, all of which every caller has. They stay when structs grow.
template <class Struct>
constexpr uint32_t kFirstBytes = 0;
template <>
constexpr uint32_t kFirstBytes<eplb_device_info> = 200;
template <>
constexpr uint32_t kFirstBytes<eplb_weights_config> = 24;
template <>
constexpr uint32_t kFirstBytes<eplb_engine_config> = 40;
template <>
constexpr uint32_t kFirstBytes<eplb_engine_info> = 24;
template <>
constexpr uint32_t kFirstBytes<eplb_run_result> = 24;
template <>
constexpr uint32_t kFirstBytes<eplb_copy_measure> = 40;
template <>
constexpr uint32_t kFirstBytes<eplb_product_measure> = 32;
template <>
constexpr uint32_t kFirstBytes<eplb_run_config> = 24;
template <>
constexpr uint32_t kFirstBytes<eplb_dispatch_config> = 24;
template <>
constexpr uint32_t kFirstBytes<eplb_dispatch_call> = 72;

// The caller's struct; fields that it lacks are 0.
template <class Struct>
Struct read_struct(const Struct* from) {
  static_assert(std::is_trivially_copyable_v<Struct> && kFirstBytes<Struct> != 0 &&
                kFirstBytes<Struct> <= sizeof(Struct));
  if (from == nullptr) throw Error(EPLB_INVALID_ARGUMENT, "Cannot read struct: it is null");
  uint32_t head[2];
  std::memcpy(head, from, sizeof(head));
  const auto [size, version] = head;
  if (size < kFirstBytes<Struct> || size > kMostStructBytes || version < 1) {
    throw Error(EPLB_BAD_STRUCT, text("Cannot read struct: its size is ", size, " and its version ",
                                      version, "; they begin at ", kFirstBytes<Struct>, " and 1"));
  }
  const char* bytes = reinterpret_cast<const char*>(from);
  for (uint32_t i = sizeof(Struct); i < size; ++i) {
    if (bytes[i] != 0) {
      throw Error(EPLB_BAD_STRUCT, text("Cannot read struct: byte ", i,
                                        " is set, but this library "
                                        "knows ",
                                        sizeof(Struct), " bytes"));
    }
  }
  Struct known = {};
  std::memcpy(&known, from, std::min<size_t>(size, sizeof(Struct)));
  return known;
}

// Writes what the caller's struct has room for. `value` comes from read_struct of the same.
template <class Struct>
void write_struct(Struct* to, const Struct& value) {
  std::memcpy(to, &value, std::min<size_t>(value.size, sizeof(Struct)));
}

}  // namespace eplb
