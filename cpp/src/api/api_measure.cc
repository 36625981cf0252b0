// SPDX-License-Identifier: Apache-2.0
// The C entries that measure the machine at hand.
#include <memory>
#include <mutex>

#include "base/entry.h"
#include "base/handles.h"
#include "base/structs.h"
#include "eplb.h"
#include "measure/measure.h"
#include "measure/products.h"

namespace eplb {
namespace {

// Never destroyed: a call may still be running in another thread while the process exits.
HandleTable<Products>& products_table() {
  static auto* table = new HandleTable<Products>;
  return *table;
}

}  // namespace
}  // namespace eplb

using namespace eplb;

int32_t eplb_measure_copies(const eplb_copy_measure* what, double* seconds, char* error,
                            uint64_t capacity) noexcept {
  return guard(error, capacity, [&] {
    require(seconds, "seconds");
    measure_copies(read_struct(what), seconds);
  });
}

int32_t eplb_products_create(const eplb_product_measure* what, eplb_handle* products, char* error,
                             uint64_t capacity) noexcept {
  return guard(error, capacity, [&] {
    const eplb_product_measure known = read_struct(what);
    require(products, "products");
    *products = products_table().insert(make_products(known));
  });
}

int32_t eplb_products_run(eplb_handle products, double* seconds, char* error,
                          uint64_t capacity) noexcept {
  return guard(error, capacity, [&] {
    require(seconds, "seconds");
    products_table().borrow(products)->run(seconds);
  });
}

int32_t eplb_products_destroy(eplb_handle products, char* error, uint64_t capacity) noexcept {
  return guard(error, capacity, [&] {
    const std::shared_ptr<Products> object = products_table().find(products);
    const std::lock_guard<std::mutex> turn(object->turn);  // waits for a running call
    products_table().remove(products);                     // throws if another call was faster
    object->closed = true;
  });
}
