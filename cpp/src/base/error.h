// SPDX-License-Identifier: Apache-2.0
// The one exception type of libeplb. api.cc turns it into a status and a text; nothing crosses the
// ABI.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

#include "eplb.h"

namespace eplb {

class Error : public std::runtime_error {
 public:
  Error(int32_t status, const std::string& message, int32_t rank = -1)
      : std::runtime_error(message), status(status), rank(rank) {}
  int32_t status;
  int32_t rank;  // the rank to blame, -1 if none is known
};

// The exception that is being handled, whatever its type.
Error current_error();

}  // namespace eplb
