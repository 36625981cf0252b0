// SPDX-License-Identifier: Apache-2.0

import { check, ErrorText } from "./errors.ts";
import { type NativeLibrary, symbolsOf } from "./library.ts";
import { copyMeasure, productMeasure } from "./structs.ts";

/** Options of {@linkcode measureCopies}. */
export interface MeasureCopiesOptions {
  /** CUDA device that the copies go to. */
  readonly ordinal: number;
  /** CUDA device whose memory is read; the same one measures copies inside it. */
  readonly peer: number;
  /**
   * Whether the peer reads at the same time.
   *
   * @default {false}
   */
  readonly bothWays?: boolean;
  /**
   * What copies: the copy engine, in batches, or a kernel.
   *
   * @default {"copy"}
   */
  readonly engine?: "copy" | "kernel";
  /** Bytes of one piece. */
  readonly pieceBytes: number;
  /** Pieces of one repeat. */
  readonly pieces: number;
  /** Repeats that are timed. */
  readonly repeats: number;
}

/** Options of {@linkcode Products.create}: `[m, k] x [k, n]`, bf16. */
export interface ProductsOptions {
  /** CUDA device. */
  readonly ordinal: number;
  /** Rows of the left matrix: tokens. */
  readonly m: number;
  /** Columns of the right matrix. */
  readonly n: number;
  /** Columns of the left matrix. */
  readonly k: number;
  /** Products of one run, one after the other, 1 to 65,536. */
  readonly count: number;
}

/**
 * Measures copies between two GPUs, or inside one: the ceiling of a transport.
 *
 * @param library The native library.
 * @param options Devices, sizes, and what copies.
 * @returns Seconds of each repeat, of the slower direction.
 * @throws {EplbError} If there are no such devices, or one cannot map the other's memory.
 *
 * @example Rate into GPU 0
 * ```ts ignore
 * import { measureCopies, NativeLibrary } from "@eplb/eplb";
 *
 * const sizes = { pieceBytes: 44e6, pieces: 8, repeats: 10 };
 * const library = NativeLibrary.open();
 * const seconds = await measureCopies(library, { ordinal: 0, peer: 1, ...sizes });
 * ```
 */
export async function measureCopies(
  library: NativeLibrary,
  options: MeasureCopiesOptions,
): Promise<Float64Array> {
  const seconds = new Float64Array(options.repeats);
  const error = new ErrorText();
  const what = copyMeasure({
    ...options,
    bothWays: options.bothWays ?? false,
    engine: options.engine === "kernel" ? 1 : 0,
  });
  const status = await symbolsOf(library).eplb_measure_copies(
    what,
    seconds,
    error.buffer,
    error.capacity,
  );
  check(status, "eplb_measure_copies", error);
  return seconds;
}

/**
 * A model-like stream of bf16 matrix products on one GPU.
 *
 * Everything is allocated once, so that a run can stand for a forward pass.
 *
 * @example Decode-like products, again and again
 * ```ts ignore
 * import { NativeLibrary, Products } from "@eplb/eplb";
 *
 * const sizes = { m: 64, n: 16384, k: 7168, count: 300 };
 * using products = await Products.create(NativeLibrary.open(), { ordinal: 0, ...sizes });
 * for (let step = 0; step < 100; step++) await products.run();
 * ```
 */
export class Products implements Disposable {
  readonly #library: NativeLibrary;
  #handle: bigint;
  /** Products of one run. */
  readonly count: number;

  private constructor(library: NativeLibrary, handle: bigint, count: number) {
    this.#library = library;
    this.#handle = handle;
    this.count = count;
  }

  /**
   * Allocates the matrices, and computes a few products so that the first run is like all others.
   *
   * @param library The native library.
   * @param options Device and sizes.
   * @returns The products, none of which is timed yet.
   * @throws {EplbError} If there is no such device, or no cuBLAS, or a size is out of range.
   */
  static async create(
    library: NativeLibrary,
    options: ProductsOptions,
  ): Promise<Products> {
    const error = new ErrorText();
    const handle = new BigUint64Array(1);
    const status = await symbolsOf(library).eplb_products_create(
      productMeasure(options),
      handle,
      error.buffer,
      error.capacity,
    );
    check(status, "eplb_products_create", error);
    return new Products(library, handle[0]!, options.count);
  }

  /**
   * Computes all products, and waits for the last.
   *
   * @returns Seconds of each product, [count].
   * @throws {TypeError} If they are closed.
   * @throws {EplbError} "busy" while another run goes on, or if the device fails.
   */
  async run(): Promise<Float64Array> {
    if (this.#handle === 0n) {
      throw new TypeError("Cannot run products: they are closed");
    }
    const seconds = new Float64Array(this.count);
    const error = new ErrorText();
    const status = await symbolsOf(this.#library).eplb_products_run(
      this.#handle,
      seconds,
      error.buffer,
      error.capacity,
    );
    check(status, "eplb_products_run", error);
    return seconds;
  }

  /** Frees the matrices, once a run in progress has ended; may be called twice. */
  close(): void {
    if (this.#handle === 0n) return;
    const error = new ErrorText();
    const status = symbolsOf(this.#library).eplb_products_destroy(
      this.#handle,
      error.buffer,
      error.capacity,
    );
    check(status, "eplb_products_destroy", error);
    this.#handle = 0n;
  }

  /** Same as {@linkcode Products.close}. */
  [Symbol.dispose](): void {
    this.close();
  }
}

/**
 * Times matrix products once; see {@linkcode Products} for doing so over and over.
 *
 * @param library The native library.
 * @param options Device and sizes.
 * @returns Seconds of each product, [count].
 * @throws {EplbError} If there is no such device, or no cuBLAS, or a size is out of range.
 *
 * @example Decode-like products
 * ```ts ignore
 * import { measureProducts, NativeLibrary } from "@eplb/eplb";
 *
 * const sizes = { m: 64, n: 16384, k: 7168, count: 1000 };
 * const seconds = await measureProducts(NativeLibrary.open(), { ordinal: 0, ...sizes });
 * ```
 */
export async function measureProducts(
  library: NativeLibrary,
  options: ProductsOptions,
): Promise<Float64Array> {
  using products = await Products.create(library, options);
  return await products.run();
}
