// SPDX-License-Identifier: Apache-2.0
// GPU memory: every rank copies what it needs from its peers' slots, through the links between
// GPUs. Defined in gpu_pull_mover.cc, or in no_cuda.cc.
//
// Three streams of one rank, here with two staging sets; time goes from left to right:
//
//   pull     [ batch 0    ][ batch 1    ][ batch 2    ][ batch 3 …
//   gather   [0]           [1]           [2]           [3]
//   commit                   [ 0 ]         [ 1 ]         [ 2 ]
//   host     stage 0, 1    ^ agree on 0, commit 0, stage 2
//                                        ^ agree on 1, commit 1, stage 3 …
//
// The link is what takes the time, so the pull stream must never run dry. When batch b ends, the
// next sets - 1 batches are in the stream. Batch b + sets waits, on the device, for commit b alone,
// as both use one staging set, and is enqueued with it, as soon as the ranks have agreed on b. So
// with two sets the agreement and the commit have the time of one pull, of which they take about a
// third and some 100 µs; with three, that of two, so that ranks need not keep step where one
// receives more of a layer than another.
//
// Nothing that overwrites slots is ever queued behind an open fence: the host sees that a batch is
// staged, agrees with the other ranks through the control block (control.h), and enqueues the
// commit. So a rank that is cancelled or killed leaves work behind that fills staging memory and
// slots that are written directly, whose bytes are given up, and nothing else.
#pragma once

#include <memory>

#include "control.h"
#include "gpu_peers.h"
#include "mover.h"
#include "staging_board.h"

namespace eplb {

std::unique_ptr<Mover> make_gpu_pull_mover(const MoverConfig& config,
                                           std::shared_ptr<const GpuPeers> peers,
                                           std::shared_ptr<Control> control,
                                           std::shared_ptr<StagingBoard> board,
                                           const Cancellation& cancellation);

}  // namespace eplb
