// SPDX-License-Identifier: Apache-2.0
// Stands in for nccl_library.cc and nccl_mover.cc in a build without NCCL.
#include "nccl/nccl_factory.h"

namespace eplb {
namespace {

[[noreturn]] void refuse() {
  throw Error(EPLB_UNSUPPORTED, "Cannot open NCCL: libeplb was built without it");
}

}  // namespace

int32_t nccl_open(const char*, std::string*) { refuse(); }

NcclIdBlob nccl_make_id() { refuse(); }

std::unique_ptr<Mover> make_nccl_mover(const MoverConfig&, const NcclIdBlob&,
                                       std::shared_ptr<const GpuPeers>, const Cancellation&) {
  refuse();
}

}  // namespace eplb
