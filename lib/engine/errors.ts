// SPDX-License-Identifier: Apache-2.0

import type { Placement } from "../placement.ts";

/**
 * Processes were given different plans; nothing has moved.
 *
 * @example Who differs
 * ```ts
 * import { PlanMismatchError } from "@eplb/eplb";
 * import { assertEquals } from "@std/assert";
 *
 * const error = new PlanMismatchError(["a1", "a1", "b2", "a1"]);
 * assertEquals(error.ranks, [2]);
 * ```
 */
export class PlanMismatchError extends Error {
  /** The ranks whose plan differs from that of most ranks. */
  readonly ranks: readonly number[];
  /** Plan digest of each rank. */
  readonly digests: readonly string[];

  /**
   * Creates the error.
   *
   * @param digests Plan digest of each rank, by rank.
   */
  constructor(digests: readonly string[]) {
    const common = mostCommon(digests);
    const ranks = digests.flatMap((digest, rank) =>
      digest === common ? [] : [rank]
    );
    const list = ranks.map((rank) => `rank ${rank} has ${digests[rank]}`);
    super(
      `Cannot rearrange: plans differ, most ranks have ${common}, ${
        list.join(", ")
      }; nothing has moved`,
    );
    this.name = "PlanMismatchError";
    this.ranks = ranks;
    this.digests = digests;
  }
}

/** The value most entries have; among equals the one that comes first. */
function mostCommon(values: readonly string[]): string {
  const counts = new Map<string, number>();
  for (const value of values) counts.set(value, (counts.get(value) ?? 0) + 1);
  return [...counts].reduce((best, entry) => entry[1] > best[1] ? entry : best)[
    0
  ];
}

/** How far a failed rearrangement came. */
export interface RearrangeFailure {
  /** The rank to blame, undefined if none is known. */
  readonly failedRank: number | undefined;
  /**
   * Layers 0 … committedLayers-1 are as the new placement says; the others are as the old one, or on
   * the way if a layer takes several steps.
   */
  readonly committedLayers: number;
  /** What the weights hold now. */
  readonly placement: Placement;
}

/**
 * A rearrangement failed. Nothing is lost: weights and `placement` agree.
 *
 * @example What survivors learn
 * ```ts
 * import { Placement, RearrangeError } from "@eplb/eplb";
 * import { assertEquals } from "@std/assert";
 *
 * const placement = Placement.from([[0, 1]], { ranks: 2 });
 * const error = new RearrangeError("rank 3 died", {
 *   failedRank: 3,
 *   committedLayers: 0,
 *   placement,
 * });
 * assertEquals(error.failedRank, 3);
 * ```
 */
export class RearrangeError extends Error implements RearrangeFailure {
  readonly failedRank: number | undefined;
  readonly committedLayers: number;
  readonly placement: Placement;

  /**
   * Creates the error.
   *
   * @param message What happened.
   * @param failure How far the rearrangement came.
   * @param options The cause.
   */
  constructor(
    message: string,
    failure: RearrangeFailure,
    options?: ErrorOptions,
  ) {
    super(message, options);
    this.name = "RearrangeError";
    this.failedRank = failure.failedRank;
    this.committedLayers = failure.committedLayers;
    this.placement = failure.placement;
  }
}
