// SPDX-License-Identifier: Apache-2.0
// Stands in for the folder nccl in a build without NCCL.
#include "nccl/nccl_factory.h"

namespace eplb {
namespace {

[[noreturn]] void refuse() {
  throw Error(EPLB_UNSUPPORTED, "Cannot open NCCL: libeplb was built without it");
}

}  // namespace

int32_t nccl_open(const char*, std::string*) { refuse(); }

NcclIdBlob nccl_make_id() { refuse(); }

void nccl_check_puts() { refuse(); }

std::unique_ptr<Mover> make_send_mover(const MoverConfig&, const NcclIdBlob&,
                                       std::shared_ptr<const GpuPeers>, const Cancellation&) {
  refuse();
}

std::unique_ptr<Mover> make_put_mover(const MoverConfig&, const NcclIdBlob&, const Cancellation&) {
  refuse();
}

}  // namespace eplb
