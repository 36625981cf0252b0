// SPDX-License-Identifier: Apache-2.0
// What the machine at hand can do: copies alone, and a model-like stream of matrix products.
// Defined in measure_cuda.cc, or in no_cuda.cc.
#pragma once

#include <cstdint>

#include "eplb.h"

namespace eplb {

// seconds [repeats] of the slower direction.
void measure_copies(const eplb_copy_measure& what, double* seconds);
// seconds [count] of one product each.
void measure_products(const eplb_product_measure& what, double* seconds);

}  // namespace eplb
