// SPDX-License-Identifier: Apache-2.0
// GPU memory: ranks reach each other's, through the links between GPUs, and whoever has an expert
// writes it into the staging memory of the rank that wants it (pull_schedule.h says why). Defined
// in gpu_pull_mover.cc, or in no_cuda.cc.
//
// Streams of one rank; time goes from left to right:
//
//   lanes    [ batch 0    ][ batch 1    ][ batch 2    ][ batch 3 …     one for each peer
//   gather   [0]           [1]           [2]           [3]
//   commit                   [ 0 ]         [ 1 ]         [ 2 ]
//   host     stage 0, 1, 2 ^ agree on 0, commit 0, stage 3
//                                        ^ agree on 1, commit 1, stage 4 …
//
// The links are what takes the time, so the lanes must never run dry. How far a rank stages ahead
// follows from the staging rings (staging_ring.h): its own, which its commits empty, and those of
// the ranks that it writes to, which tell it through the board (staging_board.h) what has landed.
// Agreeing and committing take about a third of the time of a batch and some 100 µs, so a ring with
// room for two and a half batches hides them, also where ranks do not keep step, as one receives
// more of a layer than another.
//
// Nothing that overwrites slots is ever queued behind an open fence: the host sees that a batch is
// where it should be, agrees with the other ranks through the control block (control.h), and
// enqueues the commit. So a rank that is cancelled or killed leaves work behind that fills staging
// memory, and its own slots that are written directly, whose bytes are given up, and nothing else.
#pragma once

#include <memory>

#include "pull/control.h"
#include "pull/gpu_peers.h"
#include "pull/staging_board.h"
#include "transport/mover.h"

namespace eplb {

std::unique_ptr<Mover> make_gpu_pull_mover(const MoverConfig& config,
                                           std::shared_ptr<const GpuPeers> peers,
                                           std::shared_ptr<Control> control,
                                           std::shared_ptr<StagingBoard> board,
                                           const Cancellation& cancellation);

}  // namespace eplb
