// SPDX-License-Identifier: Apache-2.0

/**
 * Circles of slots that no hop can settle.
 *
 * @module
 */
import { Group, type HopLayer } from "./_hop_layer.ts";

/**
 * Slots each of which waits for what the next one holds, the last one for what the first one holds,
 * where all hold last copies that nobody else waits for.
 *
 * They can only be settled together, and that would take more cells than one of their ranks has. So
 * an expert of a knot has to arrive in a slot where it does not stay.
 */
export type Knot = readonly number[];

/** Finds the knots of a layer that the hop has not touched yet, the longest first. */
export function findKnots(layer: HopLayer): Knot[] {
  const next = nextInCircle(layer);
  const seen = new Uint8Array(layer.slots);
  const knots: Knot[] = [];
  for (let first = 0; first < layer.slots; first++) {
    const path: number[] = [];
    let slot = first;
    while (slot >= 0 && !seen[slot]) {
      seen[slot] = 1;
      path.push(slot);
      slot = next[slot]!;
    }
    // Where the path has met itself; it may as well have come to its end, or met an older path.
    const start = path.indexOf(slot);
    const circle = start < 0 ? [] : path.slice(start);
    if (isTooWide(layer, circle)) knots.push(circle);
  }
  return knots.sort((a, b) => b.length - a.length || a[0]! - b[0]!);
}

// The slot that holds the only copy of what each slot alone waits for, [slots]; -1 if there is none.
function nextInCircle(layer: HopLayer): Int32Array {
  const { slots, experts, content, target } = layer;
  const wanted = new Int32Array(experts);
  const holder = new Int32Array(experts);
  const open = (slot: number): boolean =>
    layer.isWaiting(slot) && layer.ready[slot] === 1;
  for (let slot = 0; slot < slots; slot++) {
    if (open(slot)) wanted[target[slot]!]!++;
    if (content[slot]! >= 0) holder[content[slot]!] = slot;
  }
  const next = new Int32Array(slots).fill(-1);
  for (let slot = 0; slot < slots; slot++) {
    if (!open(slot) || layer.changed[slot]) continue;
    const expert = target[slot]!;
    const from = holder[expert]!;
    const alone = wanted[expert] === 1 &&
      layer.holding(Group.all, slot, expert) === 1;
    if (alone && open(from) && !layer.changed[from]) next[slot] = from;
  }
  return next;
}

// Whether a rank has more slots in a circle than cells.
function isTooWide(layer: HopLayer, circle: readonly number[]): boolean {
  return circle.length > layer.cells &&
    countByRank(layer, circle).some((count) => count > layer.cells);
}

/** Number of the given slots on each rank, [ranks]. */
export function countByRank(
  layer: HopLayer,
  slots: readonly number[],
): Int32Array {
  const counts = new Int32Array(layer.ranks);
  for (const slot of slots) counts[layer.rankOf(slot)]!++;
  return counts;
}
