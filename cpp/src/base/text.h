// SPDX-License-Identifier: Apache-2.0
// Error texts from values.
#pragma once

#include <sstream>
#include <string>

namespace eplb {

template <class... Parts>
std::string text(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

}  // namespace eplb
