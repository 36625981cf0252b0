// Expert memory that the test itself owns, as SGLang's test of its updater has it:
// two tensors per expert, [id] and [10·id, 100·id].

import { ExpertWeights } from "../../lib/native/weights.ts";
import type { Placement } from "../../lib/placement.ts";
import { ExpertLayout } from "../../lib/weights/layout.ts";
import { library } from "../_native.ts";

export const LAYOUT = new ExpertLayout([
  { name: "a", dtype: "I32", shape: [1] },
  { name: "b", dtype: "I32", shape: [2] },
]);

/** Layers get different ids, so that a mix-up of layers shows too. */
function idOf(layer: number, expert: number): number {
  return layer * 1000 + expert;
}

/** One rank's slots: `a` [layers, slots, 1] and `b` [layers, slots, 2]. */
export class Ledger implements Disposable {
  readonly #a: Int32Array<ArrayBuffer>;
  readonly #b: Int32Array<ArrayBuffer>;
  readonly #rank: number;
  readonly weights: ExpertWeights;

  constructor(rank: number, placement: Placement) {
    const { layers, slotsPerRank: slots } = placement;
    this.#rank = rank;
    this.#a = new Int32Array(layers * slots);
    this.#b = new Int32Array(layers * slots * 2);
    this.#eachSlot(placement, (entry, id) => {
      this.#a[entry] = id;
      this.#b.set([10 * id, 100 * id], 2 * entry);
    });
    const a = addressOf(this.#a);
    const b = addressOf(this.#b);
    this.weights = ExpertWeights.register(library, {
      layout: LAYOUT,
      layers,
      slots,
      memory: Array.from({ length: layers }, (_, layer) => [
        { address: a + BigInt(4 * layer * slots) },
        { address: b + BigInt(8 * layer * slots) },
      ]),
    });
  }

  #eachSlot(
    placement: Placement,
    visit: (entry: number, id: number) => void,
  ): void {
    const { layers, slots, slotsPerRank, physicalToLogical } = placement;
    for (let layer = 0; layer < layers; layer++) {
      for (let slot = 0; slot < slotsPerRank; slot++) {
        const expert =
          physicalToLogical[layer * slots + this.#rank * slotsPerRank + slot]!;
        if (expert < 0) continue;
        visit(layer * slotsPerRank + slot, idOf(layer, expert));
      }
    }
  }

  /** Number of values that are not what the placement says. */
  wrongValues(placement: Placement): number {
    let wrong = 0;
    this.#eachSlot(placement, (entry, id) => {
      if (this.#a[entry] !== id) wrong++;
      if (this.#b[2 * entry] !== 10 * id) wrong++;
      if (this.#b[2 * entry + 1] !== 100 * id) wrong++;
    });
    return wrong;
  }

  [Symbol.dispose](): void {
    this.weights.close();
  }
}

function addressOf(array: Int32Array<ArrayBuffer>): bigint {
  return Deno.UnsafePointer.value(Deno.UnsafePointer.of(array));
}
