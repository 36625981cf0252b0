// SPDX-License-Identifier: Apache-2.0
// Rings of staging cells, for random programs.
#include "pull/staging_ring.h"

#include <algorithm>
#include <set>

#include "engine/program.h"
#include "ranks.h"

using namespace eplb;

namespace {

WeightsView sizes_of(const ranks::Shape& shape) {
  WeightsView view;
  view.layers = static_cast<int32_t>(shape.layers);
  view.slots = static_cast<int32_t>(shape.slots);
  return view;
}

std::vector<RankBatch> batches_of(const ranks::Script& script, int32_t rank, uint32_t cells) {
  const std::vector<int32_t> words = script.words({rank});
  const ProgramLimits limits = {static_cast<int32_t>(script.shape.layers),
                                static_cast<int32_t>(script.shape.slots),
                                static_cast<int32_t>(script.world),
                                static_cast<int32_t>(cells),
                                {rank}};
  return parse_program(words.data(), words.size(), limits)[0];
}

// The cells that a batch takes.
std::vector<int32_t> taken(const StagingRing& ring, size_t batch) {
  std::vector<int32_t> cells = ring.cells[batch];
  cells.erase(std::remove(cells.begin(), cells.end(), StagingRing::kNone), cells.end());
  return cells;
}

TEST("StagingRing gives no cell to two batches that are under way at once") {
  std::mt19937_64 random(1);
  for (int i = 0; i < 300; ++i) {
    const ranks::Shape shape = {
        1 + static_cast<uint32_t>(random() % 30), 1 + static_cast<uint32_t>(random() % 6), {8}};
    const uint32_t cells = 1 + static_cast<uint32_t>(random() % (2 * shape.slots));
    ranks::Script script = ranks::random_script(shape, 3, std::min(cells, shape.slots), random);
    if (i % 2 == 1) make_direct(&script, random);
    const std::vector<RankBatch> batches = batches_of(script, 1, cells);
    const StagingRing ring(batches, sizes_of(shape), cells);
    for (size_t batch = 0; batch < batches.size(); ++batch) {
      CHECK(ring.after[batch] <= batch);
      CHECK(batch - ring.after[batch] < kMostAhead);
      if (batch > 0) CHECK(ring.after[batch] >= ring.after[batch - 1]);
      std::set<int32_t> seen;
      size_t count = 0;
      for (size_t other = ring.after[batch]; other <= batch; ++other) {
        const std::vector<int32_t> own = taken(ring, other);
        for (const int32_t cell : own) CHECK(cell >= 0 && cell < static_cast<int32_t>(cells));
        seen.insert(own.begin(), own.end());
        count += own.size();
      }
      CHECK_EQ(seen.size(), count);
      // It waits for no more batches than it must.
      if (ring.after[batch] == 0 || batch - ring.after[batch] == kMostAhead - 1) continue;
      CHECK(count + taken(ring, ring.after[batch] - 1).size() > cells);
    }
  }
}

TEST("StagingRing has a cell for each slot that another rank fills, and for circles only inside") {
  const ranks::Shape shape = {1, 6, {8}};
  ranks::Script script{shape, 2, {{0, 1}}, {}};
  script.ops = {{0, 0, 1, EPLB_OP_SEND, 0, 5, 0, 0},
                {0, 0, 0, EPLB_OP_RECEIVE, 0, 0, 1, 5},
                {0, 0, 0, EPLB_OP_COPY, 0, 1, 0, 2},  // waits for nobody
                {0, 0, 0, EPLB_OP_COPY, 0, 3, 0, 4},  // a circle
                {0, 0, 0, EPLB_OP_COPY, 0, 4, 0, 3}};
  const std::vector<RankBatch> batches = batches_of(script, 0, 6);
  const StagingRing ring(batches, sizes_of(shape), 6);
  CHECK_EQ(taken(ring, 0).size(), 2u);
  CHECK_EQ(ring.arrivals[0], ring.cells[0][0]);
  CHECK(ring.cells[0][0] != StagingRing::kNone);
  for (int32_t slot = 1; slot < 6; ++slot) CHECK_EQ(ring.arrivals[slot], StagingRing::kNone);
}

}  // namespace
