// SPDX-License-Identifier: Apache-2.0

/**
 * The slots of each expert in one layer at a time, without an array for each.
 *
 * @module
 */
import type { Placement } from "../placement.ts";

/** Lists the slots of one layer by expert: those of `e` are `slots[first[e] … first[e + 1] - 1]`. */
export class LayerReplicas {
  readonly #placement: Placement;
  /** Where the next slot of each expert goes, [experts]. */
  readonly #next: Int32Array;
  /** Slots sorted by expert, then ascending, [slots]; what is behind the last expert's is old. */
  readonly slots: Int32Array;
  /** Where the slots of each expert begin, [experts + 1]. */
  readonly first: Int32Array;
  /** The layer listed. */
  layer = 0;

  constructor(placement: Placement) {
    this.#placement = placement;
    this.#next = new Int32Array(placement.experts);
    this.slots = new Int32Array(placement.slots);
    this.first = new Int32Array(placement.experts + 1);
  }

  /** Lists another layer. */
  list(layer: number): void {
    const { experts, slots, physicalToLogical, logicalReplicaCount } =
      this.#placement;
    this.layer = layer;
    for (let expert = 0; expert < experts; expert++) {
      this.#next[expert] = this.first[expert]!;
      this.first[expert + 1] = this.first[expert]! +
        logicalReplicaCount[layer * experts + expert]!;
    }
    for (let slot = 0; slot < slots; slot++) {
      const expert = physicalToLogical[layer * slots + slot]!;
      if (expert >= 0) this.slots[this.#next[expert]!++] = slot;
    }
  }
}
