// SPDX-License-Identifier: Apache-2.0

/**
 * Shares of slots whose experts split their tokens evenly.
 *
 * @module
 */
import type { Placement } from "../placement.ts";

/**
 * Gives each slot the same part of its expert's tokens as the expert's other slots.
 *
 * @param placement Where the experts are.
 * @returns Share of each slot, [layers, slots]; 0 for empty slots.
 */
export function equalShares(placement: Placement): Float64Array {
  const { layers, slots, experts, physicalToLogical, logicalReplicaCount } =
    placement;
  const shares = new Float64Array(layers * slots);
  for (let layer = 0; layer < layers; layer++) {
    for (let cell = layer * slots; cell < (layer + 1) * slots; cell++) {
      const expert = physicalToLogical[cell]!;
      if (expert < 0) continue;
      shares[cell] = 1 / logicalReplicaCount[layer * experts + expert]!;
    }
  }
  return shares;
}
