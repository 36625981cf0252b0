// The maps of a rearrangement: where experts are, where they should go, and the
// load that tells how well either is balanced.

import { balancedness } from "../../metrics.ts";
import { Placement, type PlacementShape } from "../../placement.ts";
import { deepseekPolicy } from "../../policies/deepseek.ts";
import { SeededRandom } from "../../random.ts";
import { UsageError } from "../command.ts";

/** Tokens in a synthetic load, per layer. */
const SYNTHETIC_TOKENS = 1_000_000;

/** Reads a file of JSON; the error names the file. */
export async function readJSON(path: string): Promise<unknown> {
  const text = await Deno.readTextFile(path);
  try {
    return JSON.parse(text);
  } catch (cause) {
    throw new SyntaxError(
      `Cannot read "${path}": ${(cause as Error).message}`,
      {
        cause,
      },
    );
  }
}

/** The placement to begin with: `contiguous`, or a file's. */
export function startPlacement(
  file: unknown | undefined,
  shape: PlacementShape,
): Placement {
  if (file === undefined) return Placement.contiguous(shape);
  return fitting(
    Placement.fromJSON(file, { ranks: shape.ranks, experts: shape.experts }),
    shape,
  );
}

/** The placement to reach: `random:SEED`, a policy's, or a file's. */
export async function targetPlacement(
  to: string,
  options: {
    readonly shape: PlacementShape;
    readonly nodes: number;
    readonly load: Float64Array | undefined;
    /** Added to the seed, so that repeated rearrangements differ. */
    readonly repetition: number;
  },
): Promise<Placement> {
  const { shape, nodes, load } = options;
  if (to.startsWith("random:")) {
    return Placement.random({
      ...shape,
      seed: seedOf(to) + options.repetition,
    });
  }
  if (to === "deepseek") {
    if (load === undefined) {
      throw new UsageError("--to deepseek needs a load: give --load");
    }
    const { ranks, slotsPerRank } = shape;
    return deepseekPolicy(load, { ...shape, ranks, slotsPerRank, nodes });
  }
  const file = await readJSON(to);
  const { ranks, experts } = shape;
  return fitting(Placement.fromJSON(file, { ranks, experts }), shape);
}

function fitting(placement: Placement, shape: PlacementShape): Placement {
  for (const key of ["layers", "slotsPerRank"] as const) {
    if (placement[key] !== shape[key]) {
      throw new RangeError(
        `Cannot use this map: ${key} is ${placement[key]}, it must be ${
          shape[key]
        }`,
      );
    }
  }
  return placement;
}

/** The load of `--load`: `zipf:SEED`, or a file's `logical_count`; [layers, experts]. */
export async function readLoad(
  load: string | undefined,
  shape: PlacementShape,
): Promise<Float64Array | undefined> {
  if (load === undefined) return undefined;
  if (load.startsWith("zipf:")) return zipfLoad(shape, seedOf(load));
  const rows = (await readJSON(load) as { logical_count?: unknown })
    ?.logical_count;
  if (!Array.isArray(rows) || rows.length !== shape.layers) {
    throw new RangeError(
      `Cannot read load "${load}": "logical_count" must have ${shape.layers} rows`,
    );
  }
  const flat = new Float64Array(shape.layers * shape.experts);
  for (const [layer, row] of rows.entries()) {
    if (!Array.isArray(row) || row.length !== shape.experts) {
      throw new RangeError(
        `Cannot read load "${load}": layer ${layer} must have ${shape.experts} counts`,
      );
    }
    for (const [expert, count] of row.entries()) {
      if (typeof count !== "number" || !(count >= 0 && count < Infinity)) {
        throw new RangeError(
          `Cannot read load "${load}": layer ${layer}, expert ${expert} has count ${count}`,
        );
      }
      flat[layer * shape.experts + expert] = count;
    }
  }
  return flat;
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
      load[layer * experts + expert] = Math.round(SYNTHETIC_TOKENS / (k + 1));
    });
  }
  return load;
}

function seedOf(text: string): number {
  const digits = text.slice(text.indexOf(":") + 1);
  const seed = Number(digits);
  if (digits === "" || !Number.isInteger(seed) || seed < 0 || seed > 2 ** 31) {
    throw new UsageError(
      `The seed in "${text}" must be a whole number from 0 to ${2 ** 31}`,
    );
  }
  return seed;
}

/** Mean balancedness over the layers; undefined without a load. */
export function meanBalancedness(
  load: Float64Array | undefined,
  placement: Placement,
): number | undefined {
  return load && balancedness(load, placement).mean;
}
