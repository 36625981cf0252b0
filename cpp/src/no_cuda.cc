// SPDX-License-Identifier: Apache-2.0
// Stands in for device_cuda.cu in a build without CUDA.
#include "cuda_query.h"
#include "device.h"
#include "error.h"
#include "measure.h"
#include "text.h"

namespace eplb {
namespace {

[[noreturn]] void refuse(const char* verb, int32_t ordinal) {
  throw Error(EPLB_UNSUPPORTED,
              text("Cannot ", verb, " CUDA device ", ordinal, ": libeplb was built without CUDA"));
}

}  // namespace

std::shared_ptr<Device> open_cuda_device(int32_t ordinal) { refuse("open", ordinal); }

int32_t cuda_device_count(std::string* why_none) {
  if (why_none != nullptr) *why_none = "Cannot find CUDA devices: libeplb was built without CUDA";
  return 0;
}

void cuda_device_describe(int32_t ordinal, eplb_device_info*) { refuse("describe", ordinal); }

void measure_copies(const eplb_copy_measure& what, double*) {
  refuse("measure copies of", what.ordinal);
}

void measure_products(const eplb_product_measure& what, double*) {
  refuse("measure products of", what.ordinal);
}

bool cuda_peer_access(int32_t ordinal, int32_t) { refuse("reach peers of", ordinal); }

}  // namespace eplb
