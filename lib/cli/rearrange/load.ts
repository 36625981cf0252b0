// SPDX-License-Identifier: Apache-2.0
// The load of a rearrangement: it tells how well a placement is balanced.

import { readLoad as readTrace, totalLoad } from "../../load/files.ts";
import { balancedness } from "../../metrics.ts";
import type { Placement, PlacementShape } from "../../placement.ts";
import { SeededRandom } from "../../random.ts";
import { seedOf } from "./seed.ts";

/** Tokens of the most popular expert of a synthetic load. */
const MOST_TOKENS = 1_000_000;

/** The load of `--load`: `zipf:SEED`, or the total of a file; [layers, experts]. */
export async function readLoad(
  text: string | undefined,
  shape: PlacementShape,
): Promise<Float64Array | undefined> {
  if (text === undefined) return undefined;
  const seed = seedOf(text, "zipf");
  if (seed !== undefined) return zipfLoad(shape, seed);
  const { layers, experts } = shape;
  return totalLoad(await readTrace(text, { layers, experts }));
}

/** The k-th most popular expert of a layer gets tokens in proportion to 1/k. */
function zipfLoad(shape: PlacementShape, seed: number): Float64Array {
  const { layers, experts } = shape;
  const random = new SeededRandom(seed);
  const load = new Float64Array(layers * experts);
  for (let layer = 0; layer < layers; layer++) {
    const order = Int32Array.from({ length: experts }, (_, expert) => expert);
    random.shuffle(order);
    order.forEach((expert, k) => {
      load[layer * experts + expert] = Math.round(MOST_TOKENS / (k + 1));
    });
  }
  return load;
}

/** Mean balancedness over the layers; undefined without a load. */
export function meanBalancedness(
  load: Float64Array | undefined,
  placement: Placement,
): number | undefined {
  return load && balancedness(load, placement).mean;
}
