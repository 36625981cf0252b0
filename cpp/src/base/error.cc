// SPDX-License-Identifier: Apache-2.0
// Any exception as an Error.
#include "base/error.h"

#include <new>

#include "base/text.h"

namespace eplb {

Error current_error() {
  try {
    throw;
  } catch (const Error& error) {
    return error;
  } catch (const std::bad_alloc&) {
    return Error(EPLB_OUT_OF_MEMORY, "Cannot complete the call: out of host memory");
  } catch (const std::exception& error) {
    return Error(EPLB_INTERNAL_ERROR, text("Cannot complete the call: ", error.what()));
  } catch (...) {
    return Error(EPLB_INTERNAL_ERROR, "Cannot complete the call: unknown exception");
  }
}

}  // namespace eplb
