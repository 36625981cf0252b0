// SPDX-License-Identifier: Apache-2.0
// What a model notices of weights that move beside it, and they of the model.

import { DEFAULT_TIMEOUT } from "../../cluster/wait.ts";
import { measureProducts } from "../../native/measure.ts";
import type { NativeLibrary } from "../../native/library.ts";
import { ExpertWeights } from "../../native/weights.ts";
import { Placement } from "../../placement.ts";
import { Engine } from "../../engine/engine.ts";
import type { EngineOptions } from "../../engine/options.ts";
import { Topology } from "../../topology.ts";
import { formatRate } from "../../report/table.ts";
import { modelShape } from "../../weights/shapes.ts";
import { mean, median } from "./median.ts";

/** Products as a model's decode and prefill steps have them: [m, k] x [k, n], bf16. */
const PRODUCTS = [
  { name: "decode, 64 tokens", m: 64, n: 16384, k: 7168 },
  { name: "prefill, 4096 tokens", m: 4096, n: 7168, k: 7168 },
] as const;
/** Seconds of products beside moving weights. */
const SECONDS = 0.6;
const MOST_PRODUCTS = 20_000;
const LAYERS = 58;
const SLOTS = 9;

/** One way to move weights beside products. */
interface Beside {
  readonly name: string;
  readonly engine: Partial<EngineOptions>;
  /** The most bytes per second that each rank gathers. */
  readonly maxRate?: number;
}

const COPY_ENGINE_ONLY: Beside = {
  name: "pull, copy engine only",
  engine: { transport: "pull", copyEngineOnly: true },
};

/** Ways to move weights as fast as they can. */
const OTHERS: readonly Beside[] = [
  { name: "pull", engine: { transport: "pull" } },
  { name: "nccl, 8 thread blocks", engine: { transport: "nccl", maxCtas: 8 } },
  {
    name: "nccl, 48 thread blocks",
    engine: { transport: "nccl", maxCtas: 48 },
  },
];

/** One line of the table. */
export interface Interference {
  readonly products: string;
  readonly transport: string;
  /** The bound on what each rank gathers, in bytes per second; null: as fast as it can. */
  readonly maxRate: number | null;
  /** Median seconds of one product, alone and beside. */
  readonly alone: number;
  readonly beside: number;
  /** Mean over all products beside ÷ mean alone. */
  readonly slowdown: number;
  /** Bytes per second into the busiest rank, alone and beside. */
  readonly movingAlone: number;
  readonly movingBeside: number;
}

/** Options of {@linkcode measureInterference}. */
export interface InterferenceOptions {
  readonly gpus: number;
  /** The bound of the rows that have one, in bytes per second. */
  readonly maxRate: number;
  readonly onCase: (name: string) => void;
}

/** Measures every pair of products and movers on all GPUs. */
export async function measureInterference(
  library: NativeLibrary,
  options: InterferenceOptions,
): Promise<Interference[]> {
  const { gpus, maxRate, onCase } = options;
  const { layout } = modelShape("deepseek-r1");
  const shape = {
    layers: LAYERS,
    ranks: gpus,
    slotsPerRank: SLOTS,
    experts: 8 * gpus,
  };
  let placement = Placement.contiguous(shape);
  await using owned = new AsyncDisposableStack();
  const weights: ExpertWeights[] = [];
  for (let device = 0; device < gpus; device++) {
    const size = { layout, layers: LAYERS, slots: SLOTS, device };
    weights.push(owned.use(await ExpertWeights.allocate(library, size)));
  }
  const rows: Interference[] = [];
  const all = [COPY_ENGINE_ONLY, { ...COPY_ENGINE_ONLY, maxRate }, ...OTHERS];
  for (const beside of all) {
    await using engine = await Engine.connect({
      library,
      weights,
      placement,
      topology: Topology.uniform({ ranks: gpus, nodes: 1 }),
      ...beside.engine,
    });
    for (const product of PRODUCTS) {
      onCase(caseName(product.name, beside));
      const move = mover(engine, { shape, maxRate: beside.maxRate });
      rows.push({
        products: product.name,
        transport: beside.name,
        maxRate: beside.maxRate ?? null,
        ...await measurePair(move, { library, gpus, product }),
      });
    }
    placement = engine.placement;
    await engine.close();
  }
  return rows;
}

function caseName(product: string, { name, maxRate }: Beside): string {
  const bound = maxRate === undefined ? "" : `, at ${formatRate(maxRate)}`;
  return `${product} beside ${name}${bound}`;
}

/** Random maps, one after the other; each call resolves to the rate into the busiest rank. */
function mover(engine: Engine, options: {
  readonly shape: Parameters<typeof Placement.contiguous>[0];
  readonly maxRate: number | undefined;
}): () => Promise<number> {
  const { shape, maxRate } = options;
  // Staging has two sets, each for all slots of a layer: twice what a rank may gather.
  const bytes = engine.stagingBytes * LAYERS;
  const patience = maxRate === undefined ? 0 : Math.ceil(1e3 * bytes / maxRate);
  const timeout = Math.min(DEFAULT_TIMEOUT + patience, 2 ** 31 - 1);
  let seed = 1;
  return async () => {
    const to = Placement.random({ ...shape, seed: seed++ });
    const result = await engine.rearrange(to, { maxRate, timeout });
    return result.gigabytesPerSecond * 1e9;
  };
}

async function measurePair(
  move: () => Promise<number>,
  options: {
    readonly library: NativeLibrary;
    readonly gpus: number;
    readonly product: {
      readonly m: number;
      readonly n: number;
      readonly k: number;
    };
  },
): Promise<Omit<Interference, "products" | "transport" | "maxRate">> {
  const { library, gpus, product } = options;
  const { m, n, k } = product;
  const products = async (count: number): Promise<Float64Array[]> =>
    await Promise.all(
      Array.from(
        { length: gpus },
        (_, ordinal) => measureProducts(library, { ordinal, m, n, k, count }),
      ),
    );
  const one = median((await products(50))[0]!);
  const count = Math.min(MOST_PRODUCTS, Math.ceil(SECONDS / one));
  const alone = await products(count);
  const movingAlone = [await move(), await move(), await move()];
  let running = true;
  const under = products(count).finally(() => running = false);
  const movingBeside: number[] = [];
  while (running) movingBeside.push(await move());
  const beside = await under;
  const worst = (
    of: (seconds: Float64Array) => number,
    sets: readonly Float64Array[],
  ): number => Math.max(...sets.map(of));
  // The last move may have ended alone.
  const counted = movingBeside.slice(0, -1);
  return {
    alone: worst(median, alone),
    beside: worst(median, beside),
    slowdown: worst(mean, beside) / worst(mean, alone),
    movingAlone: median(movingAlone.slice(1)),
    movingBeside: median(counted.length > 0 ? counted : movingBeside),
  };
}
