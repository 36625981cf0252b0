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

/** Options of {@linkcode measureProducts}. */
export interface MeasureProductsOptions {
  /** CUDA device. */
  readonly ordinal: number;
  /** Rows of the left matrix: tokens. */
  readonly m: number;
  /** Columns of the right matrix. */
  readonly n: number;
  /** Columns of the left matrix. */
  readonly k: number;
  /** Products, one after the other. */
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
 * Runs a model-like stream of bf16 matrix products, alone or beside something else.
 *
 * @param library The native library.
 * @param options Device and sizes: `[m, k] x [k, n]`.
 * @returns Seconds of each product.
 * @throws {EplbError} If there is no such device, or no cuBLAS.
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
  options: MeasureProductsOptions,
): Promise<Float64Array> {
  const seconds = new Float64Array(options.count);
  const error = new ErrorText();
  const status = await symbolsOf(library).eplb_measure_products(
    productMeasure(options),
    seconds,
    error.buffer,
    error.capacity,
  );
  check(status, "eplb_measure_products", error);
  return seconds;
}
