// SPDX-License-Identifier: Apache-2.0
// What every C entry does: nothing is thrown out of it, and its failure becomes a status and a
// text.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <exception>
#include <new>

#include "base/error.h"
#include "base/text.h"

namespace eplb {

inline void write_text(char* target, uint64_t capacity, const char* source) noexcept {
  if (target == nullptr || capacity == 0) return;
  const size_t length = std::min<uint64_t>(std::strlen(source), capacity - 1);
  std::memcpy(target, source, length);
  target[length] = '\0';
}

// Runs the body of an entry.
template <class Body>
int32_t guard(char* error, uint64_t capacity, Body body) noexcept {
  try {
    body();
    return EPLB_OK;
  } catch (const Error& caught) {
    write_text(error, capacity, caught.what());
    return caught.status;
  } catch (const std::bad_alloc&) {
    write_text(error, capacity, "Cannot complete the call: out of host memory");
    return EPLB_OUT_OF_MEMORY;
  } catch (const std::exception& caught) {
    write_text(error, capacity, caught.what());
    return EPLB_INTERNAL_ERROR;
  } catch (...) {
    write_text(error, capacity, "Cannot complete the call: unknown exception");
    return EPLB_INTERNAL_ERROR;
  }
}

inline void require(const void* pointer, const char* name) {
  if (pointer == nullptr) {
    throw Error(EPLB_INVALID_ARGUMENT, text("Cannot read arguments: \"", name, "\" is null"));
  }
}

}  // namespace eplb
