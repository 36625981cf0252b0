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
  const { placement, from, to, before, after } = transition;
  const { layers, slots } = placement;
  const shares = new Float64Array(layers * slots);
  for (let layer = 0; layer < layers; layer++) {
    const [first, end] = [layer * slots, (layer + 1) * slots];
    const row = placement.physicalToLogical.subarray(first, end);
    const target = to.physicalToLogical.subarray(first, end);
    const origin = from.physicalToLogical.subarray(first, end);
    const arrived = row.every((expert, slot) => expert === target[slot]);
    shares.set(
      arrived ? after.subarray(first, end) : restrict(row, {
        origin,
        before: before.subarray(first, end),
        experts: placement.experts,
      }),
      first,
    );
  }
  return shares;
}

/** The split of a layer that is on its way, [slots]. */
function restrict(
  row: Int32Array,
  { origin, before, experts }: {
    readonly origin: Int32Array;
    readonly before: Float64Array;
    readonly experts: number;
  },
): Float64Array {
  const sum = new Float64Array(experts);
  const count = new Int32Array(experts);
  const had = (slot: number): number =>
    row[slot] === origin[slot] ? before[slot]! : 0;
  row.forEach((expert, slot) => {
    if (expert < 0) return;
    sum[expert]! += had(slot);
    count[expert]!++;
  });
  return Float64Array.from(row, (expert, slot) => {
    if (expert < 0) return 0;
    const total = sum[expert]!;
    return total > 0 ? had(slot) / total : 1 / count[expert]!;
  });
}
