// SPDX-License-Identifier: Apache-2.0

/**
 * Every replica, or the nearest ones, by their shares.
 *
 * @module
 */
import type { LayerReplicas } from "./_layer_replicas.ts";
import type { Selection, Selector } from "./_selection.ts";

/** What a {@linkcode WeightedSelector} goes by. */
export interface WeightedSelectorOptions {
  /** Share of each slot, [layers, slots]; undefined: all are alike. */
  readonly shares: Float64Array | undefined;
  /** How far each slot is, [slots], of which the nearest are selected; undefined: all are. */
  readonly distances: Uint8Array | undefined;
}

/** Selects the replicas of an expert that have a share, or all of them if none has. */
export class WeightedSelector implements Selector {
  readonly #replicas: LayerReplicas;
  readonly #shares: Float64Array | undefined;
  readonly #distances: Uint8Array;

  constructor(replicas: LayerReplicas, options: WeightedSelectorOptions) {
    this.#replicas = replicas;
    this.#shares = options.shares;
    this.#distances = options.distances ??
      new Uint8Array(replicas.slots.length);
  }

  select(selection: Selection, expert: number): void {
    const { slots, first, layer } = this.#replicas;
    const [begin, end] = [first[expert]!, first[expert + 1]!];
    const row = layer * slots.length;
    const shares = this.#haveShares(expert) ? this.#shares : undefined;
    let nearest = Infinity;
    for (let i = begin; i < end; i++) {
      const slot = slots[i]!;
      const weight = shares === undefined ? 1 : shares[row + slot]!;
      const distance = this.#distances[slot]!;
      if (weight === 0 || distance > nearest) continue;
      if (distance < nearest) selection.count = 0;
      nearest = distance;
      selection.add(slot, weight);
    }
  }

  #haveShares(expert: number): boolean {
    if (this.#shares === undefined) return false;
    const { slots, first, layer } = this.#replicas;
    const row = layer * slots.length;
    for (let i = first[expert]!; i < first[expert + 1]!; i++) {
      if (this.#shares[row + slots[i]!]! > 0) return true;
    }
    return false;
  }
}
