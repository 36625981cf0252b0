// SPDX-License-Identifier: Apache-2.0
// What the links of the machine at hand can do. Defined in measure_cuda.cc, or in no_cuda.cc.
#pragma once

#include "eplb.h"

namespace eplb {

// seconds [repeats] of the slower direction.
void measure_copies(const eplb_copy_measure& what, double* seconds);

}  // namespace eplb
