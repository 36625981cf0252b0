// SPDX-License-Identifier: Apache-2.0
// Fences: all ranks read one decision, whoever gives up and whenever.
#include "control.h"

#include <barrier.h>

#include <thread>

#include "ranks.h"

using eplb::Cancellation;
using eplb::Control;
using eplb::Error;

namespace {

}  // namespace
