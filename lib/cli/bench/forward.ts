// SPDX-License-Identifier: Apache-2.0
// What stands for the forward pass of a model in a step loop.

import { Products } from "../../native/measure.ts";
import type { NativeLibrary } from "../../native/library.ts";
import { median } from "./median.ts";

/** A decode-like product, [m, k] x [k, n] in bf16; some 60 µs on an H200. */
export const DECODE_PRODUCT = { m: 64, n: 16384, k: 7168 } as const;
/** Products whose median says how many make a step. */
const CALIBRATION = 50;
const MOST_PRODUCTS = 65_536;

/** Something that takes as long as a forward pass. */
export interface Forward extends Disposable {
  /** Products of one pass on each GPU; null if a timer stands for them. */
  readonly products: number | null;
  /** One pass on all devices at once. */
  run(): Promise<void>;
}

/** Products on every GPU of the ranks; in host memory a timer, which computes nothing. */
export async function makeForward(
  library: NativeLibrary,
  options: {
    /** Device of each rank. */
    readonly devices: readonly (number | "host")[];
    /** Seconds that a pass shall take. */
    readonly seconds: number;
  },
): Promise<Forward> {
  const { seconds } = options;
  const gpus = [...new Set(options.devices)].filter((one) => one !== "host");
  if (gpus.length === 0) return timer(seconds);
  const count = await productsWithin(library, gpus, seconds);
  const owned = new DisposableStack();
  const all: Products[] = [];
  try {
    for (const ordinal of gpus) {
      const sizes = { ...DECODE_PRODUCT, ordinal, count };
      all.push(owned.use(await Products.create(library, sizes)));
    }
  } catch (error) {
    owned.dispose();
    throw error;
  }
  return {
    products: count,
    run: async () => {
      await Promise.all(all.map((one) => one.run()));
    },
    [Symbol.dispose]: () => owned.dispose(),
  };
}

function timer(seconds: number): Forward {
  return {
    products: null,
    run: () => new Promise((resolve) => setTimeout(resolve, 1e3 * seconds)),
    [Symbol.dispose]: () => {},
  };
}

/** How many products the slowest GPU does in a time. */
async function productsWithin(
  library: NativeLibrary,
  gpus: readonly number[],
  seconds: number,
): Promise<number> {
  let slowest = 0;
  for (const ordinal of gpus) {
    const sizes = { ...DECODE_PRODUCT, ordinal, count: CALIBRATION };
    using products = await Products.create(library, sizes);
    await products.run(); // clocks go up
    slowest = Math.max(slowest, median(await products.run()));
  }
  return Math.max(1, Math.min(MOST_PRODUCTS, Math.round(seconds / slowest)));
}
