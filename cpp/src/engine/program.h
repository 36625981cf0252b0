// SPDX-License-Identifier: Apache-2.0
// Programs: from the flat words of eplb.h to what each local rank does, checked before anything
// moves.
#pragma once

#include <cstdint>
#include <vector>

#include "transport/mover.h"

namespace eplb {

// What a program must fit.
struct ProgramLimits {
  int32_t layers, slots, world, staging_cells;
  std::vector<int32_t> local_ranks;
};

// What each local rank does: [locals][batches].
using Program = std::vector<std::vector<RankBatch>>;

// Throws EPLB_INVALID_ARGUMENT, naming the batch or operation and its values.
Program parse_program(const int32_t* words, uint64_t count, const ProgramLimits& limits);

}  // namespace eplb
