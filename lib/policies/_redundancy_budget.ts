// SPDX-License-Identifier: Apache-2.0

/**
 * Distributing a number of redundant slots over layers.
 *
 * @module
 */
import type { SparedCopies } from "./_spare_copies.ts";

/** One layer that has a part in the budget. */
export interface BudgetedLayer {
  /** Expert of each slot, [slots]; changed in place. */
  readonly row: Int32Array;
  /** Its redundant copies in the order in which they can be spared. */
  readonly spared: SparedCopies;
}

/**
 * Drops redundant copies until no more are left than a budget allows, each time where the layer
 * stays most even without it.
 *
 * @param layers The layers; dropped slots become -1.
 * @param budget Redundant slots of all layers together.
 * @returns Number of copies that each layer has lost, [layers].
 */
export function keepBudget(
  layers: readonly BudgetedLayer[],
  budget: number,
): Int32Array {
  const gone = new Int32Array(layers.length);
  let excess = -budget;
  for (const { spared } of layers) excess += spared.slots.length;
  for (; excess > 0; excess--) {
    let best = -1;
    let lowest = Infinity;
    layers.forEach(({ spared }, i) => {
      const without = spared.imbalance[gone[i]! + 1];
      if (without !== undefined && without < lowest) {
        best = i;
        lowest = without;
      }
    });
    const { row, spared } = layers[best]!;
    row[spared.slots[gone[best]!++]!] = -1;
  }
  return gone;
}
