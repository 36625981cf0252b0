// SPDX-License-Identifier: Apache-2.0

/**
 * Keeping experts in their slots inside a rank.
 *
 * @module
 */

/** Where one rank's slots are in a map, and how many. */
export interface RankSlots {
  /** First slot of the rank in the map. */
  readonly first: number;
  /** Number of slots. */
  readonly count: number;
}

/**
 * Reorders what one rank holds, so that experts it held before stay in their slots.
 *
 * Each slot takes the expert it had if the rank still has a copy for it, lowest slot first; the
 * other copies fill the other slots in order. No order leaves more slots as they were.
 *
 * @param map Expert of each slot, reordered in place.
 * @param before Expert of each slot before, of the same length.
 * @param rank The rank's slots.
 */
export function keepSlots(
  map: Int32Array,
  before: Int32Array,
  { first, count }: RankSlots,
): void {
  const copies = map.slice(first, first + count);
  const kept = new Uint8Array(count);
  for (let slot = 0; slot < count; slot++) {
    const copy = copies.indexOf(before[first + slot]!);
    // An empty slot is filled if anything is left to fill it.
    if (copy < 0 || copies[copy]! < 0) continue;
    map[first + slot] = copies[copy]!;
    copies[copy] = TAKEN;
    kept[slot] = 1;
  }
  let next = 0;
  for (let slot = 0; slot < count; slot++) {
    if (kept[slot]) continue;
    while (copies[next] === TAKEN) next++;
    map[first + slot] = copies[next++]!;
  }
}

/** Marks a copy that has its slot. */
const TAKEN = -2;
