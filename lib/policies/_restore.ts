// SPDX-License-Identifier: Apache-2.0

/**
 * Experts that no active rank holds any more.
 *
 * @module
 */
import { NONE, type SplitLayer } from "./_split_layer.ts";

/**
 * Restores lost experts, the hottest first, each on the rank that costs least so far: in an empty
 * slot, else over the redundant copy of the coldest expert.
 *
 * @param layer A layer as it starts, with all work on the primaries.
 * @returns True if an expert was lost.
 */
export function restoreLost(layer: SplitLayer): boolean {
  const { work, copies, load, speed, rankOf } = layer;
  const lost: number[] = [];
  copies.forEach((count, expert) => count === 0 && lost.push(expert));
  lost.sort((a, b) => work[b]! - work[a]! || a - b);
  for (const expert of lost) {
    let best = NONE;
    for (let rank = 0; rank < layer.ranks; rank++) {
      const cost = load[rank]! / speed[rank]!;
      if (best !== NONE) {
        const other = rankOf[best]!;
        if (cost >= load[other]! / speed[other]!) continue;
      }
      const slot = spareSlot(layer, rank);
      if (slot !== NONE) best = slot;
    }
    // As active slots are not fewer than experts, one is empty or holds a redundant copy.
    if (layer.expertAt[best]! >= 0) layer.unlink(best);
    layer.link(best, expert);
    layer.carried[best] = work[expert]!;
    load[rankOf[best]!]! += work[expert]!;
  }
  return lost.length > 0;
}

/** The slot of a rank that can best be spared, -1 if none can. */
function spareSlot(layer: SplitLayer, rank: number): number {
  const { expertAt, primary, work, slotsPerRank } = layer;
  let best = NONE;
  let least = Infinity;
  const end = (rank + 1) * slotsPerRank;
  for (let slot = end - slotsPerRank; slot < end; slot++) {
    const expert = expertAt[slot]!;
    if (expert >= 0 && primary[expert] === slot) continue;
    const loss = expert < 0 ? -1 : work[expert]!;
    if (loss < least) {
      best = slot;
      least = loss;
    }
  }
  return best;
}

/**
 * Finds an expert without a slot.
 *
 * @param row Expert of each slot, [slots]; -1 is an empty slot.
 * @param experts Number of experts.
 * @returns The first such expert, -1 if there is none.
 */
export function lostExpert(row: Int32Array, experts: number): number {
  const held = new Uint8Array(experts);
  for (const expert of row) if (expert >= 0) held[expert] = 1;
  return held.indexOf(0);
}
