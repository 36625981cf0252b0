// SPDX-License-Identifier: Apache-2.0

/**
 * Ways to untie a knot: an expert arrives where it does not stay.
 *
 * @module
 */
import type { HopArrivals } from "./_hop_arrivals.ts";
import { countByRank, type Knot } from "./_hop_knots.ts";
import { Group, type HopLayer } from "./_hop_layer.ts";

/** What one arrival counts for, by where it comes from: a lot more if from farther. */
const COST = { sameRank: 1, sameNode: 1 << 10, crossNode: 1 << 20 } as const;

/**
 * Parks an expert of a knot in a slot whose content nobody misses, so that the slot which held it can
 * be settled, and then the others one after the other.
 *
 * The first is settled in the same hop. Only if the expert is parked on the same rank and takes its
 * one cell, that has to wait for the next hop.
 *
 * @returns The slot to settle first in the next hop; undefined if there is none.
 */
export function park(
  layer: HopLayer,
  arrivals: HopArrivals,
  knot: Knot,
): number | undefined {
  let least = Infinity;
  let [parking, leaving] = [-1, -1];
  for (const place of parkingPlaces(layer, knot)) {
    for (const [i, slot] of knot.entries()) {
      const goal = knot.at(i - 1)!;
      if (!canPark(layer, slot, place)) continue;
      const cost = distance(layer, slot, place) +
        distance(layer, place, goal) - distance(layer, slot, goal) +
        restoring(layer, place);
      if (cost < least) [least, parking, leaving] = [cost, place, slot];
    }
  }
  if (parking < 0) return undefined;
  layer.put(parking, layer.content[leaving]!);
  return arrivals.settle(leaving, Group.all) ? undefined : leaving;
}

// Slots that are empty or hold a redundant copy. A settled one must leave a copy that stays, or else
// it might tie another knot, and that one this knot again.
function parkingPlaces(layer: HopLayer, knot: Knot): number[] {
  const { slots, experts, content, target, changed, ready } = layer;
  const staying = new Int32Array(experts);
  const stays = (slot: number): boolean =>
    !changed[slot] && !(ready[slot] && layer.isWaiting(slot));
  for (let slot = 0; slot < slots; slot++) {
    if (content[slot]! >= 0 && stays(slot)) staying[content[slot]!]!++;
  }
  const inKnot = new Set(knot);
  const places: number[] = [];
  for (let slot = 0; slot < slots; slot++) {
    const expert = content[slot]!;
    if (changed[slot] || inKnot.has(slot)) continue;
    const isSettled = expert >= 0 && target[slot] === expert;
    const redundant = expert < 0 ||
      layer.holding(Group.all, slot, expert) > 1;
    if (redundant && (!isSettled || staying[expert]! > 1)) places.push(slot);
  }
  return places;
}

// Whether there are cells for what is parked, and for what then comes into the slot: at once, or in
// the next hop if both are on a rank of one cell.
function canPark(layer: HopLayer, slot: number, place: number): boolean {
  const { arrivals, cells } = layer;
  const rank = layer.rankOf(slot);
  if (layer.together(Group.rank, slot, place)) {
    return arrivals[rank]! + Math.min(2, cells) <= cells;
  }
  return layer.hasCell(place, layer.content[slot]!) &&
    layer.hasCell(slot, layer.target[slot]!);
}

function distance(layer: HopLayer, from: number, to: number): number {
  if (layer.together(Group.rank, from, to)) return COST.sameRank;
  return layer.together(Group.node, from, to) ? COST.sameNode : COST.crossNode;
}

// What it takes to bring a settled slot's expert back.
function restoring(layer: HopLayer, slot: number): number {
  const expert = layer.content[slot]!;
  if (expert < 0 || layer.target[slot] !== expert) return 0;
  if (layer.holding(Group.rank, slot, expert) > 1) return COST.sameRank;
  return layer.holding(Group.node, slot, expert) > 1
    ? COST.sameNode
    : COST.crossNode;
}

/**
 * Settles as many slots of a knot in a row as there are cells for; the last copy that they lose
 * arrives in the slot after them, so that the knot gets shorter.
 *
 * Where rows are equally long, the one begins that is on the rank with most of the knot: slots of
 * that rank are what makes it a knot, and a knot of one cell per rank must not end up on one rank.
 *
 * @param least The fewest slots to change, at least 2.
 * @returns How many it has changed: 0 or one more than it has settled.
 */
export function rotate(layer: HopLayer, knot: Knot, least: number): number {
  const row = longestRow(layer, knot);
  if (row.length < least) return 0;
  const lost = layer.content[row[0]!]!;
  const last = row.pop()!;
  for (const slot of row) layer.put(slot, layer.target[slot]!);
  layer.put(last, lost);
  return row.length + 1;
}

// Most slots of a knot that follow each other and for which there are cells.
function longestRow(layer: HopLayer, knot: Knot): number[] {
  const width = countByRank(layer, knot);
  const arrivals = layer.arrivals.slice();
  const at = (i: number): number => knot[i % knot.length]!;
  const widthAt = (i: number): number => width[layer.rankOf(at(i))]!;
  let [first, length] = [0, 0];
  // The row from `start` to `end` moves on along the knot. It never is the whole of it, as some rank
  // has fewer cells than slots in it.
  let end = 0;
  for (let start = 0; start < knot.length; start++) {
    for (end = Math.max(start, end); !layer.changed[at(end)]; end++) {
      if (arrivals[layer.rankOf(at(end))] === layer.cells) break;
      arrivals[layer.rankOf(at(end))]!++;
    }
    const longer = end - start - length;
    if (longer > 0 || (longer === 0 && widthAt(start) > widthAt(first))) {
      [first, length] = [start, end - start];
    }
    if (end > start) arrivals[layer.rankOf(at(start))]!--;
  }
  return Array.from({ length }, (_, i) => at(first + i));
}

/**
 * Swaps a slot of a knot that lies on one rank of one cell with a slot of another rank, preferably of
 * another knot.
 *
 * It settles neither, but afterwards they are in one circle, of which there are rows to rotate.
 *
 * @param knots All knots of the layer that are still as they were.
 */
export function swapOut(
  layer: HopLayer,
  knot: Knot,
  knots: readonly Knot[],
): void {
  const [slot] = knot as [number];
  const isFree = (other: number): boolean =>
    layer.arrivals[layer.rankOf(other)]! < layer.cells;
  const onOneRank = knot.every((other) =>
    layer.together(Group.rank, slot, other)
  );
  if (layer.cells > 1 || !onOneRank || !isFree(slot)) return;
  const canSwap = (other: number): boolean =>
    isFree(other) && !layer.together(Group.rank, slot, other);
  const other = knots.flat().find(canSwap) ??
    [...layer.content.keys()].find(canSwap);
  if (other === undefined) return;
  const [mine, theirs] = [layer.content[slot]!, layer.content[other]!];
  layer.put(slot, theirs);
  layer.put(other, mine);
}
