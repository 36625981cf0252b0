// SPDX-License-Identifier: Apache-2.0

/**
 * Which of an expert's copies is its primary, and in what order ranks are looked at.
 *
 * @module
 */
import type { PlacementShape } from "../placement.ts";

/** What tells ranks of one layer apart, besides their numbers. */
export interface RankTraits {
  /** Slots of each rank. */
  readonly slotsPerRank: number;
  /** Node of each rank, [ranks]; all alike if undefined. */
  readonly nodeOf: Int32Array | undefined;
  /** One over the speed of each rank, [ranks]. */
  readonly pace: Float64Array;
}

/**
 * Sorts ranks by node, then by what their slots hold, then by speed.
 *
 * Taken in this order, ties are decided alike whatever numbers the ranks of a node have: two
 * ranks that are still equal are interchangeable.
 *
 * @param row Expert of each slot, [slots]; -1 is an empty slot.
 * @param ranks The ranks to sort; sorted in place.
 * @param traits What tells them apart.
 * @returns The sorted ranks.
 */
export function sortRanks(
  row: Int32Array,
  ranks: Int32Array,
  traits: RankTraits,
): Int32Array {
  const { slotsPerRank, nodeOf, pace } = traits;
  return ranks.sort((a, b) => {
    if (nodeOf !== undefined && nodeOf[a] !== nodeOf[b]) {
      return nodeOf[a]! - nodeOf[b]!;
    }
    for (let i = 0; i < slotsPerRank; i++) {
      const difference = row[a * slotsPerRank + i]! -
        row[b * slotsPerRank + i]!;
      if (difference !== 0) return difference;
    }
    return pace[a]! - pace[b]!;
  });
}

/**
 * Finds the primary slot of each expert in one layer.
 *
 * The primary is the copy that comes first on its rank: the one whose place among the slots of
 * its rank is lowest, and of several such the one on the first rank. Where each rank keeps its
 * redundant experts behind the others, primaries do not depend on where the redundant ones are.
 *
 * @param row Expert of each slot, [slots]; -1 is an empty slot.
 * @param ranks Ranks to look at, in the order of {@linkcode sortRanks}.
 * @param shape Sizes of the placement.
 * @returns Slot of each expert's primary, [experts]; -1 if it has no slot.
 */
export function primarySlots(
  row: Int32Array,
  ranks: Int32Array,
  shape: Pick<PlacementShape, "slotsPerRank" | "experts">,
): Int32Array {
  const { slotsPerRank, experts } = shape;
  const primary = new Int32Array(experts).fill(-1);
  for (let place = 0; place < slotsPerRank; place++) {
    for (let i = 0; i < ranks.length; i++) {
      const slot = ranks[i]! * slotsPerRank + place;
      const expert = row[slot]!;
      if (expert >= 0 && primary[expert]! < 0) primary[expert] = slot;
    }
  }
  return primary;
}
