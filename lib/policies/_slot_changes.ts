// SPDX-License-Identifier: Apache-2.0

/**
 * Changing what slots hold while work is split.
 *
 * @module
 */
import { NONE, type SplitLayer } from "./_split_layer.ts";

/**
 * Empties the slot of a redundant copy. Other copies take what they have room for of its work, and
 * the primary the rest.
 *
 * @param layer The layer.
 * @param slot The slot, not that of a primary.
 */
export function dropCopy(layer: SplitLayer, slot: number): void {
  const { expertAt, carried, rankOf, load, capacity, weight } = layer;
  const { firstSlot, nextSlot, primary } = layer;
  const expert = expertAt[slot]!;
  const rank = rankOf[slot]!;
  let left = carried[slot]!;
  load[rank]! -= left * weight[slot]!;
  layer.unlink(slot);
  let other = firstSlot[expert]!;
  for (; other !== NONE && left > 0; other = nextSlot[other]!) {
    const room = capacity[rankOf[other]!]! - load[rankOf[other]!]!;
    if (rankOf[other] === rank || room <= 0) continue;
    const taken = Math.min(left, room / weight[other]!);
    carried[other]! += taken;
    load[rankOf[other]!]! += taken * weight[other]!;
    left -= taken;
  }
  carried[primary[expert]!]! += left;
  load[rankOf[primary[expert]!]!]! += left;
}

/**
 * Lets two primaries change places.
 *
 * @param layer The layer.
 * @param a Slot of a primary.
 * @param b Slot of another, on the same node unless neither has redundant copies.
 */
export function exchangePrimaries(
  layer: SplitLayer,
  a: number,
  b: number,
): void {
  const { expertAt, carried, rankOf, load, primary } = layer;
  const [expertA, expertB] = [expertAt[a]!, expertAt[b]!];
  const [workA, workB] = [carried[a]!, carried[b]!];
  layer.unlink(a);
  layer.unlink(b);
  primary[expertA] = b;
  primary[expertB] = a;
  layer.link(a, expertB);
  layer.link(b, expertA);
  carried[a] = workB;
  carried[b] = workA;
  load[rankOf[a]!]! += workB - workA;
  load[rankOf[b]!]! += workA - workB;
}
