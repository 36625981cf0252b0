// SPDX-License-Identifier: Apache-2.0

/**
 * Where a rank stands among the slots.
 *
 * @module
 */
import type { Topology } from "../topology.ts";

/** A rank, and the slots around it. */
export interface Standpoint {
  /** The rank. */
  readonly rank: number;
  /** The ranks and their nodes. */
  readonly topology: Topology;
  /** Slots of each rank, per layer. */
  readonly slotsPerRank: number;
}

/** How far a slot is. */
export const Distance = { ON_RANK: 0, ON_NODE: 1, ELSEWHERE: 2 } as const;

/** How far each slot is from the rank, [slots], as {@linkcode Distance}. */
export function slotDistances(
  { rank, topology, slotsPerRank }: Standpoint,
): Uint8Array {
  const { nodeOf, ranks } = topology;
  return new Uint8Array(ranks * slotsPerRank).map((_, slot) => {
    const owner = Math.floor(slot / slotsPerRank);
    if (owner === rank) return Distance.ON_RANK;
    return nodeOf[owner] === nodeOf[rank]
      ? Distance.ON_NODE
      : Distance.ELSEWHERE;
  });
}
