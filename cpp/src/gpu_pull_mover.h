// SPDX-License-Identifier: Apache-2.0
// GPU memory: every rank copies what it needs from its peers' slots, through the links between
// GPUs. Defined in gpu_pull_mover.cc, or in no_cuda.cc.
//
// Three streams of one rank, with two staging sets; time goes from left to right:
//
//   pull     [ batch 0    ][ batch 1    ][ batch 2    ][ batch 3 …
//   gather   [ 0 ]         [ 1 ]         [ 2 ]         [ 3 ]
//   commit                   [ 0 ]         [ 1 ]         [ 2 ]
//   host     stage 0, 1    ^ agree on 0, commit 0, stage 2   ^ agree on 2, …
//
// The link is what takes the time, so the pull stream must never be without work. Its next batch
// waits in it before the one at hand ends: stage(b + 1) comes before commit(b - 1), and stage(b + 2)
// waits, on the device, for commit(b) alone, as both use one staging set. Commit b begins as soon
// as the ranks have agreed on batch b, some ten microseconds after the last of them has its bytes,
// and takes about a third of the pull of batch b + 1, which goes on meanwhile.
//
// Nothing that overwrites slots is ever queued behind an open fence: the host sees that a batch is
// staged, agrees with the other ranks through the control block (control.h), and enqueues the
// commit. So a rank that is cancelled or killed leaves work behind that fills staging memory, and
// nothing else.
#pragma once

#include <memory>

#include "control.h"
#include "gpu_peers.h"
#include "mover.h"

namespace eplb {

std::unique_ptr<Mover> make_gpu_pull_mover(const MoverConfig& config,
                                           std::shared_ptr<const GpuPeers> peers,
                                           std::shared_ptr<Control> control,
                                           const Cancellation& cancellation);

}  // namespace eplb
