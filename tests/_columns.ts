import type { Placement } from "../lib/placement.ts";

/** What the slots of one rank hold, [layers, slots]. */
export function columnsOf(
  placement: Placement,
  rank: number,
): Int32Array<ArrayBuffer> {
  const { layers, slots, slotsPerRank, physicalToLogical } = placement;
  const own = new Int32Array(layers * slotsPerRank);
  for (let layer = 0; layer < layers; layer++) {
    const begin = layer * slots + rank * slotsPerRank;
    const row = physicalToLogical.subarray(begin, begin + slotsPerRank);
    own.set(row, layer * slotsPerRank);
  }
  return own;
}
