// SPDX-License-Identifier: Apache-2.0
// What the links and engines of this machine give at best, by size of a piece.

import { measureCopies } from "../../native/measure.ts";
import type { NativeLibrary } from "../../native/library.ts";
import { median } from "./median.ts";

/** The size that the ceiling of all transports is taken at: one large expert. */
export const CEILING_PIECE = 44e6;

const SIZES: readonly number[] = [
  64 * 1024,
  2 ** 20,
  14e6,
  CEILING_PIECE,
  2 ** 31,
];
/** Bytes that one repeat moves, so that small pieces are not over at once. */
const REPEAT_BYTES = 512e6;
const MOST_PIECES = 2048;
const REPEATS = 8;

/** Rates into one GPU, in bytes per second. */
export interface Ceiling {
  /** Bytes of one piece. */
  readonly pieceBytes: number;
  /** Copy engine, from a peer that reads at the same time. */
  readonly copyEngine: number;
  /** A copy kernel, likewise. */
  readonly kernel: number;
  /** Copy engine, inside one GPU. */
  readonly local: number;
}

/** Measures the first two GPUs; with one GPU only copies inside it. */
export async function measureCeilings(
  library: NativeLibrary,
  options: { readonly gpus: number; readonly onSize: (bytes: number) => void },
): Promise<Ceiling[]> {
  const ceilings: Ceiling[] = [];
  for (const pieceBytes of SIZES) {
    options.onSize(pieceBytes);
    const pieces = Math.max(
      1,
      Math.min(MOST_PIECES, Math.floor(REPEAT_BYTES / pieceBytes)),
    );
    const rate = async (
      peer: number,
      engine: "copy" | "kernel",
    ): Promise<number> => {
      if (peer >= options.gpus) return NaN;
      const seconds = await measureCopies(library, {
        ...{ ordinal: 0, peer, engine, bothWays: peer !== 0 },
        ...{ pieceBytes, pieces, repeats: REPEATS },
      });
      return pieceBytes * pieces / median(seconds);
    };
    ceilings.push({
      pieceBytes,
      copyEngine: await rate(1, "copy"),
      kernel: await rate(1, "kernel"),
      local: await rate(0, "copy"),
    });
  }
  return ceilings;
}
