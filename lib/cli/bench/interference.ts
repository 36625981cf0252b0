// SPDX-License-Identifier: Apache-2.0
// What a model notices of weights that move beside it, and they of the model.

import { measureProducts } from "../../native/measure.ts";
import type { NativeLibrary } from "../../native/library.ts";
import { ExpertWeights } from "../../native/weights.ts";
import { Placement } from "../../placement.ts";
import { Engine } from "../../engine/engine.ts";
import type { EngineOptions } from "../../engine/options.ts";
import { Topology } from "../../topology.ts";
import { modelShape } from "../../weights/shapes.ts";
import { median } from "./median.ts";

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
const BESIDE: readonly {
  readonly name: string;
  readonly engine: Partial<EngineOptions>;
}[] = [
  {
    name: "pull, copy engine only",
    engine: { transport: "pull", copyEngineOnly: true },
  },
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
  /** Median seconds of one product, alone and beside. */
  readonly alone: number;
  readonly beside: number;
  /** Mean over all products beside ÷ mean alone. */
  readonly slowdown: number;
  /** Bytes per second into the busiest rank, alone and beside. */
  readonly movingAlone: number;
  readonly movingBeside: number;
}

/** Measures every pair of products and movers on all GPUs. */
export async function measureInterference(
  library: NativeLibrary,
  options: { readonly gpus: number; readonly onCase: (name: string) => void },
): Promise<Interference[]> {
  const { gpus } = options;
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
  for (const { name, engine: engineOptions } of BESIDE) {
    await using engine = await Engine.connect({
      library,
      weights,
      placement,
      topology: Topology.uniform({ ranks: gpus, nodes: 1 }),
      ...engineOptions,
    });
    for (const product of PRODUCTS) {
      options.onCase(`${product.name} beside ${name}`);
      const row = await measurePair(engine, { library, gpus, product, shape });
      rows.push({ products: product.name, transport: name, ...row });
    }
    placement = engine.placement;
    await engine.close();
  }
  return rows;
}

async function measurePair(
  engine: Engine,
  options: {
    readonly library: NativeLibrary;
    readonly gpus: number;
    readonly product: {
      readonly m: number;
      readonly n: number;
      readonly k: number;
    };
    readonly shape: Parameters<typeof Placement.contiguous>[0];
  },
): Promise<Omit<Interference, "products" | "transport">> {
  const { library, gpus, product, shape } = options;
  const { m, n, k } = product;
  const products = async (count: number): Promise<Float64Array[]> =>
    await Promise.all(
      Array.from(
        { length: gpus },
        (_, ordinal) => measureProducts(library, { ordinal, m, n, k, count }),
      ),
    );
  let seed = 1;
  const move = async (): Promise<number> => {
    const result = await engine.rearrange(
      Placement.random({ ...shape, seed: seed++ }),
    );
    return result.gigabytesPerSecond * 1e9;
  };
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

function mean(values: Float64Array): number {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}
