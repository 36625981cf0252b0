// The load of a rearrangement: it tells how well a placement is balanced.

import { balancedness } from "../../metrics.ts";
import type { Placement, PlacementShape } from "../../placement.ts";
import { SeededRandom } from "../../random.ts";
import { readJSON } from "./files.ts";
import { seedOf } from "./seed.ts";

/** Tokens of the most popular expert of a synthetic load. */
const MOST_TOKENS = 1_000_000;

/** The load of `--load`: `zipf:SEED`, or a file's `logical_count`; [layers, experts]. */
export async function readLoad(
  text: string | undefined,
  shape: PlacementShape,
): Promise<Float64Array | undefined> {
  if (text === undefined) return undefined;
  const seed = seedOf(text, "zipf");
  if (seed !== undefined) return zipfLoad(shape, seed);
  return flatten(await readJSON(text), { path: text, shape });
}

function flatten(
  value: unknown,
  options: { readonly path: string; readonly shape: PlacementShape },
): Float64Array {
  const { path, shape: { layers, experts } } = options;
  const refuse = (state: string): never => {
    throw new RangeError(`Cannot use load "${path}": ${state}`);
  };
  const rows = (value as { logical_count?: unknown } | null)?.logical_count;
  if (!Array.isArray(rows) || rows.length !== layers) {
    return refuse(`"logical_count" must have ${layers} layers`);
  }
  const load = new Float64Array(layers * experts);
  for (const [layer, row] of rows.entries()) {
    if (!Array.isArray(row) || row.length !== experts) {
      return refuse(`layer ${layer} must have ${experts} counts`);
    }
    for (const [expert, count] of row.entries()) {
      if (typeof count !== "number" || !(count >= 0 && count < Infinity)) {
        refuse(`layer ${layer}, expert ${expert} has count ${count}`);
      }
      load[layer * experts + expert] = count;
    }
  }
  return load;
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
