// SPDX-License-Identifier: Apache-2.0

/**
 * Which redundant copies of a layer can be spared.
 *
 * @module
 */
import { dropCopy } from "./_slot_changes.ts";
import type { SplitLayer } from "./_split_layer.ts";
import type { TokenFlow } from "./_token_flow.ts";

/** Steps in which the copies that carry something are dropped, if they are many. */
const STEPS = 64;

/** Redundant copies of a layer in the order in which they can be spared. */
export interface SparedCopies {
  /** Slots of the job, [copies]. */
  readonly slots: Int32Array;
  /**
   * Cost of the busiest rank as a multiple of the ideal when so many copies are gone, [copies + 1];
   * ascending.
   */
  readonly imbalance: Float64Array;
}

/**
 * Drops all redundant copies of a layer, those that carry least first.
 *
 * @param layer A layer that was split; all its redundant copies are dropped.
 * @param flow What splits its work.
 * @returns The copies and what the layer costs without them.
 */
export function spareCopies(layer: SplitLayer, flow: TokenFlow): SparedCopies {
  const { slotsPerRank, rankOf, rankAt, carried, weight } = layer;
  const copies = redundantSlots(layer);
  const slots = new Int32Array(copies.length);
  const imbalance = new Float64Array(copies.length + 1);
  const step = Math.ceil(copies.length / STEPS);
  imbalance[0] = layer.highestCost() / layer.ideal;
  for (let gone = 0; gone < slots.length;) {
    const weigh = (slot: number): number => carried[slot]! * weight[slot]!;
    copies.sort((a, b) => weigh(a) - weigh(b) || b - a);
    const before = imbalance[gone]!;
    const idle = copies.findIndex((slot) => carried[slot]! > layer.epsilon);
    const dropped = copies.splice(0, idle < 0 ? copies.length : idle || step);
    for (const slot of dropped) {
      const rank = rankOf[slot]!;
      dropCopy(layer, slot);
      slots[gone] = slot + (rankAt[rank]! - rank) * slotsPerRank;
      imbalance[++gone] = before;
    }
    if (idle !== 0) continue;
    imbalance[gone] = Math.max(before, flow.settle() / layer.ideal);
  }
  return { slots, imbalance };
}

/** Slots that hold neither a primary nor nothing. */
function redundantSlots(layer: SplitLayer): number[] {
  const { expertAt, primary, slots } = layer;
  const redundant: number[] = [];
  for (let slot = 0; slot < slots; slot++) {
    const expert = expertAt[slot]!;
    if (expert >= 0 && primary[expert] !== slot) redundant.push(slot);
  }
  return redundant;
}
