// SPDX-License-Identifier: Apache-2.0
// The seam to NCCL, free of its header. Defined beside what it names, or in no_nccl.cc.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "transport/blob.h"
#include "transport/mover.h"

namespace eplb {

struct GpuPeers;

// Opens the library, once per process (`path` null or "": the usual names), and returns its version
// (22803 for 2.28.3). `found` (may be null) gets the file's name.
int32_t nccl_open(const char* path, std::string* found);
NcclIdBlob nccl_make_id();
// Throws EPLB_UNSUPPORTED, saying why, where the library cannot put.
void nccl_check_puts();

// Movers that send and receive. Joins the communicator and warms every pair that is to use it. Runs
// on the rank's own thread: it waits for all ranks, until `cancellation` ends it. From `peers` that
// have addresses the rank pulls.
std::unique_ptr<Mover> make_send_mover(const MoverConfig& config, const NcclIdBlob& id,
                                       std::shared_ptr<const GpuPeers> peers,
                                       const Cancellation& cancellation);
// The same for movers that put, see put_mover.h.
std::unique_ptr<Mover> make_put_mover(const MoverConfig& config, const NcclIdBlob& id,
                                      const Cancellation& cancellation);

}  // namespace eplb
