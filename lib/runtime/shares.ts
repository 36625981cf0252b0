// SPDX-License-Identifier: Apache-2.0

/**
 * How tokens are split while weights are on their way.
 *
 * @module
 */
import type { Placement } from "../placement.ts";

/**
 * The split that each slot of an expert takes alike.
 *
 * @param placement Where the experts are.
 * @returns Shares, [layers, slots].
 */
export function equalShares(placement: Placement): Float64Array {
  const { slots, experts, physicalToLogical, logicalReplicaCount } = placement;
  return Float64Array.from(physicalToLogical, (expert, cell) => {
    if (expert < 0) return 0;
    const layer = Math.floor(cell / slots);
    return 1 / logicalReplicaCount[layer * experts + expert]!;
  });
}

/** A moment of a move, as dispatch sees it. */
export interface Transition {
  /** What the weights hold now. */
  readonly placement: Placement;
  /** What they held when `before` was right. */
  readonly from: Placement;
  /** Shares of before, [layers, slots]. */
  readonly before: Float64Array;
  /** What the weights will hold in the end. */
  readonly to: Placement;
  /** Shares for that, [layers, slots]. */
  readonly after: Float64Array;
  /**
   * Shares of a moment ago, [layers, slots], and the layers that have changed since; default: all
   * have.
   */
  readonly last?: {
    readonly shares: Float64Array;
    readonly first: number;
    readonly end: number;
  };
}

/**
 * The split for a moment in which some layers are as before and some as after.
 *
 * A layer whose map is that of after has its new split, also if nothing moves in it. In the others,
 * slots that were emptied or got another expert take nothing, and the slots that an expert had before
 * take it over, in proportion to what they had; if they had nothing, all of its slots do, alike.
 *
 * @param transition The placements and shares of before, now and after.
 * @returns Shares, [layers, slots].
 */
export function sharesNow(transition: Transition): Float64Array {
  const { placement, from, to, before, after, last } = transition;
  const { layers, slots } = placement;
  const shares = last?.shares.slice() ?? new Float64Array(layers * slots);
  const end = last?.end ?? layers;
  for (let layer = last?.first ?? 0; layer < end; layer++) {
    const row = <T extends Int32Array | Float64Array>(all: T): T =>
      all.subarray(layer * slots, (layer + 1) * slots) as T;
    const now = row(placement.physicalToLogical);
    const target = row(to.physicalToLogical);
    if (now.every((expert, slot) => expert === target[slot])) {
      row(shares).set(row(after));
      continue;
    }
    restrict(now, {
      origin: row(from.physicalToLogical),
      before: row(before),
      experts: placement.experts,
      shares: row(shares),
    });
  }
  return shares;
}

/** Writes the split of a layer that is on its way. All arrays are [slots]. */
function restrict(
  row: Int32Array,
  { origin, before, experts, shares }: {
    readonly origin: Int32Array;
    readonly before: Float64Array;
    readonly experts: number;
    readonly shares: Float64Array;
  },
): void {
  const sum = new Float64Array(experts);
  const count = new Int32Array(experts);
  for (let slot = 0; slot < row.length; slot++) {
    const expert = row[slot]!;
    if (expert < 0) continue;
    if (expert === origin[slot]) sum[expert]! += before[slot]!;
    count[expert]!++;
  }
  for (let slot = 0; slot < row.length; slot++) {
    const expert = row[slot]!;
    shares[slot] = 0;
    if (expert < 0) continue;
    const total = sum[expert]!;
    if (total === 0) shares[slot] = 1 / count[expert]!;
    else if (expert === origin[slot]) shares[slot] = before[slot]! / total;
  }
}
