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
