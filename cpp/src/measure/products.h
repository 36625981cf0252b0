// SPDX-License-Identifier: Apache-2.0
// A model-like stream of matrix products on one GPU.
// Made in products_cuda.cc, or refused in no_cuda.cc.
#pragma once

#include <cstdint>
#include <memory>

#include "base/handles.h"
#include "eplb.h"

namespace eplb {

class Products : public HandleObject {
 public:
  static constexpr char kName[] = "products";
  static constexpr uint64_t kHandleKind = 4;

  virtual ~Products() = default;
  // seconds [count] of one product each, when all are done.
  virtual void run(double* seconds) = 0;
};

std::shared_ptr<Products> make_products(const eplb_product_measure& what);

}  // namespace eplb
