// SPDX-License-Identifier: Apache-2.0
// The seam to NCCL, free of its header. Defined in nccl_mover.cc, or in no_nccl.cc.
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

// Joins the communicator and warms every pair that is to use it. Runs on the rank's own thread: it
// waits for all ranks, until `cancellation` ends it. From `peers` that have addresses the rank
// pulls.
std::unique_ptr<Mover> make_nccl_mover(const MoverConfig& config, const NcclIdBlob& id,
                                       std::shared_ptr<const GpuPeers> peers,
                                       const Cancellation& cancellation);

}  // namespace eplb
