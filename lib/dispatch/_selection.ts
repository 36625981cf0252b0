// SPDX-License-Identifier: Apache-2.0

/**
 * What is chosen for one expert: slots that may get its tokens, and in which proportion.
 *
 * @module
 */
/** Hashes and thresholds are integers of 32 bits. */
const HASHES = 2 ** 32;

/** Slots and weights, at most as many as there are slots; used again for each expert. */
export class Selection {
  /** The slots, ascending; only the first `count` count. */
  readonly slots: Int32Array;
  /** The weight of each, at least 0. */
  readonly weights: Float64Array;
  /** How many are selected. */
  count = 0;

  constructor(most: number) {
    this.slots = new Int32Array(most);
    this.weights = new Float64Array(most);
  }

  /** Adds a slot. */
  add(slot: number, weight: number): void {
    this.slots[this.count] = slot;
    this.weights[this.count++] = weight;
  }

  /** Writes the running sum of the weights × 2³², from `at` on; the last threshold stays as it is. */
  writeThresholds(thresholds: Uint32Array, at: number): void {
    let total = 0;
    for (let i = 0; i < this.count; i++) total += this.weights[i]!;
    let sum = 0;
    // The sums ascend, hence so do quotients and roundings; all are exact to the last bit in every
    // engine.
    for (let i = 0; i < this.count - 1; i++) {
      sum += this.weights[i]!;
      thresholds[at + i] = Math.min(
        Math.round(sum / total * HASHES),
        HASHES - 1,
      );
    }
  }
}

/** A way to choose. */
export interface Selector {
  /** Adds the slots of one expert, of the layer that is listed, to an empty selection. */
  readonly select: (selection: Selection, expert: number) => void;
}
