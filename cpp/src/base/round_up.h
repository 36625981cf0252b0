// SPDX-License-Identifier: Apache-2.0
// Sizes in whole units.
#pragma once

#include <cstdint>

namespace eplb {

// The least multiple of `unit` that is not below `value`.
constexpr uint64_t round_up(uint64_t value, uint64_t unit) {
  return (value + unit - 1) / unit * unit;
}

}  // namespace eplb
