// SPDX-License-Identifier: Apache-2.0
// Stands in for device_cuda.cu, and what needs a GPU, in a build without CUDA.
#include "base/error.h"
#include "base/text.h"
#include "dispatch/dispatch.h"
#include "measure/measure.h"
#include "measure/products.h"
#include "memory/cuda_query.h"
#include "memory/device.h"
#include "pull/gpu_peers.h"
#include "pull/gpu_pull_mover.h"

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

std::shared_ptr<Products> make_products(const eplb_product_measure& what) {
  refuse("measure products of", what.ordinal);
}

bool cuda_peer_access(int32_t ordinal, int32_t) { refuse("reach peers of", ordinal); }

std::unique_ptr<DispatchDevice> make_cuda_dispatch(int32_t ordinal, const DispatchShape&,
                                                   const DispatchArrays&) {
  refuse("dispatch on", ordinal);
}

std::string pci_bus_id(int32_t ordinal) { refuse("name", ordinal); }

GpuAllocation export_gpu_allocation(uint64_t, int32_t) {
  throw Error(EPLB_UNSUPPORTED, "Cannot share GPU memory: libeplb was built without CUDA");
}

std::vector<GpuAllocation> export_gpu_memory(const WeightsView&, int32_t rank, int32_t) {
  throw Error(EPLB_UNSUPPORTED,
              text("Cannot share GPU memory of rank ", rank, ": libeplb was built without CUDA"));
}

std::shared_ptr<const GpuPeers> map_gpu_peers(const std::vector<RankBlob>& blobs,
                                              const std::vector<WeightsView>&, int32_t own) {
  refuse("pull to", blobs[own].fixed.ordinal);
}

std::unique_ptr<Mover> make_gpu_pull_mover(const MoverConfig& config,
                                           std::shared_ptr<const GpuPeers>,
                                           std::shared_ptr<Control>, std::shared_ptr<StagingBoard>,
                                           const Cancellation&) {
  refuse("pull to", config.device->ordinal());
}

}  // namespace eplb
