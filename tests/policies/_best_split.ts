// What a split of tokens can reach at best, worked out in another way than by flows.
import type { Placement } from "../../lib/placement.ts";

/** Ranks and their speeds. */
export interface SplitRanks {
  readonly active: readonly number[];
  readonly speed?: ArrayLike<number>;
}

/**
 * Lowest possible cost of the busiest rank in one layer.
 *
 * By duality it is the highest mean cost of any set of ranks under the experts that have no copy
 * outside of it; all sets are looked at.
 */
export function bestSplit(
  load: ArrayLike<number>,
  placement: Placement,
  layer: number,
  { active, speed }: SplitRanks,
): number {
  const { slots, slotsPerRank, experts, physicalToLogical } = placement;
  const holders = new Int32Array(experts);
  for (let slot = 0; slot < slots; slot++) {
    const bit = active.indexOf(Math.floor(slot / slotsPerRank));
    const expert = physicalToLogical[layer * slots + slot]!;
    if (bit >= 0 && expert >= 0) holders[expert]! |= 1 << bit;
  }
  let best = 0;
  for (let set = 1; set < 1 << active.length; set++) {
    let tokens = 0;
    for (let expert = 0; expert < experts; expert++) {
      if ((holders[expert]! & ~set) === 0) {
        tokens += load[layer * experts + expert]!;
      }
    }
    let speeds = 0;
    active.forEach((rank, bit) => {
      if (set & 1 << bit) speeds += speed?.[rank] ?? 1;
    });
    best = Math.max(best, tokens / speeds);
  }
  return best;
}

/** Tokens of each rank in one layer, [ranks], added up slot by slot. */
export function rankTokens(
  load: ArrayLike<number>,
  { placement, shares }: {
    readonly placement: Placement;
    readonly shares: Float64Array;
  },
  layer: number,
): number[] {
  const { slots, slotsPerRank, experts, ranks, physicalToLogical } = placement;
  const sums = Array<number>(ranks).fill(0);
  for (let slot = 0; slot < slots; slot++) {
    const expert = physicalToLogical[layer * slots + slot]!;
    if (expert < 0) continue;
    sums[Math.floor(slot / slotsPerRank)]! += load[layer * experts + expert]! *
      shares[layer * slots + slot]!;
  }
  return sums;
}

/** Slots that hold an expert which they did not hold before. */
export function movedSlots(before: Placement, after: Placement): number[] {
  const { layers, slots } = after;
  return Array.from({ length: layers }, (_, layer) => {
    let moved = 0;
    for (let cell = layer * slots; cell < (layer + 1) * slots; cell++) {
      const expert = after.physicalToLogical[cell]!;
      if (expert >= 0 && expert !== before.physicalToLogical[cell]) moved++;
    }
    return moved;
  });
}
