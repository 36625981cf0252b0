// How full each rank is, layer by layer, as characters.

import { sparkline } from "../../report/table.ts";
import type { Placement } from "../../placement.ts";

/** Most ranks that are drawn one by one; more are joined to groups, the fullest of each shown. */
const MOST_COLUMNS = 64;

/** Tokens of each rank in one layer. */
export function rankLoads(
  load: Float64Array,
  options: {
    readonly placement: Placement;
    readonly shares: Float64Array;
    readonly layer: number;
  },
): Float64Array {
  const { placement, shares, layer } = options;
  const { ranks, slots, slotsPerRank, experts, physicalToLogical } = placement;
  const loads = new Float64Array(ranks);
  for (let slot = 0; slot < slots; slot++) {
    const expert = physicalToLogical[layer * slots + slot]!;
    if (expert < 0) continue;
    loads[Math.floor(slot / slotsPerRank)]! += load[layer * experts + expert]! *
      shares[layer * slots + slot]!;
  }
  return loads;
}

/** One character per rank, from empty to the fullest rank of the layer. */
export function heatRow(loads: Float64Array): string {
  const width = Math.ceil(loads.length / MOST_COLUMNS);
  const columns: number[] = [];
  for (let begin = 0; begin < loads.length; begin += width) {
    columns.push(Math.max(...loads.subarray(begin, begin + width)));
  }
  return sparkline([0, ...columns]).slice(1);
}
