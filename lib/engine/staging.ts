// SPDX-License-Identifier: Apache-2.0

import type { ExpertWeights } from "../native/weights.ts";

/** Bound on the memory in which experts wait between arrival and commit. */
export interface StagingOptions {
  /**
   * Bytes of staging memory per rank; at least one expert's. If a layer brings more experts into a
   * rank than there is room for, the layer is rearranged in several steps; if there is room for
   * several layers, they move together, which is faster where experts are small.
   *
   * What waits to be sent comes on top: with `nccl` tensors that are packed, with `nccl-put` an
   * outbox of at most 512 MiB, or two experts if these are larger. {@linkcode Engine.stagingBytes}
   * is all of it.
   *
   * @default {sets × slots × one expert's bytes}
   */
  readonly bytes?: number;
  /**
   * With 2 sets the next layers move while one commits; with more, ranks that have less to
   * receive in one layer go further ahead. 1 set needs the least memory. GPUs that pull use the
   * memory of all sets as one ring, from which each layer takes what it receives; with `nccl-put` 3
   * are a tenth faster than 2, as ranks have to hear from each other that a set is free.
   *
   * @default {2; 1 if `bytes` has no room for two experts}
   */
  readonly sets?: 1 | 2 | 3 | 4;
}

/** Staging memory as the native engine counts it: sets of cells of one expert. */
export interface Staging {
  readonly sets: number;
  readonly cells: number;
}

/** Alignment of each tensor in a staging cell. */
const ALIGNMENT = 256;

/** Turns a bound in bytes into sets of cells. */
export function stagingFor(
  weights: Pick<ExpertWeights, "layers" | "slots" | "tensorBytes">,
  options: StagingOptions = {},
): Staging {
  const { bytes } = options;
  if (bytes === undefined) {
    return { sets: options.sets ?? 2, cells: weights.slots };
  }
  const cellBytes = weights.tensorBytes.reduce(
    (sum, bytes) => sum + Math.ceil(bytes / ALIGNMENT) * ALIGNMENT,
    0,
  );
  const sets = options.sets ?? (bytes < 2 * cellBytes ? 1 : 2);
  const cells = Math.floor(bytes / sets / cellBytes);
  if (!(cells >= 1)) {
    throw new RangeError(
      `Cannot stage experts: staging has ${bytes} bytes, ` +
        `${sets} set(s) of one expert need ${sets * cellBytes}`,
    );
  }
  return { sets, cells: Math.min(cells, weights.layers * weights.slots) };
}
