// SPDX-License-Identifier: Apache-2.0

/**
 * Packing weighted items into packs of equal size.
 *
 * @module
 */
import { Tournament } from "./_tournament.ts";

/** Bits of the float32 above all finite ones. */
const INFINITY_BITS = 0x7f800000;

/** Packs lists of items of one length; memory is used again for each. */
export class Packer {
  readonly #perPack: number;
  readonly #tournament: Tournament;
  readonly #filled: Int32Array;
  readonly #order: Float64Array;
  readonly #places: Int32Array;

  /**
   * Creates a packer.
   *
   * @param items Number of items.
   * @param packs Number of packs; divides the items.
   */
  constructor(items: number, packs: number) {
    this.#perPack = items / packs;
    this.#tournament = new Tournament(packs);
    this.#filled = new Int32Array(packs);
    this.#order = new Float64Array(items);
    this.#places = new Int32Array(items).map((_, item) => item);
  }

  /**
   * Packs heaviest item first, each into the lightest pack that has room; ties go to the lowest
   * index.
   *
   * @param weight Weight of each item, [items], not negative; their sum is a finite float32.
   * @returns Place of each item, [items]: pack × items per pack + rank in the pack; valid until
   * the next call.
   */
  pack(weight: Float32Array): Int32Array {
    const perPack = this.#perPack;
    const places = this.#places;
    // As deepseek-ai/EPLB does: packs of one item are not sorted.
    if (perPack === 1) return places;
    const filled = this.#filled.fill(0);
    const tournament = this.#tournament;
    const packWeight = tournament.values.fill(0);
    tournament.restart();
    const order = this.#heaviestFirst(weight);
    for (let i = 0; i < order.length; i++) {
      const item = order[i]!;
      const pack = tournament.first;
      places[item] = pack * perPack + filled[pack]!++;
      packWeight[pack] = filled[pack] === perPack
        ? Infinity
        : Math.fround(packWeight[pack]! + weight[item]!);
      tournament.update(pack);
    }
    return places;
  }

  /**
   * Indices of the weights in descending order, ties by index.
   *
   * Weight and index become one number, because sorting without a comparator is many times
   * faster. The bits of non-negative float32 values are in the order of the values; with up to
   * 2^20 weights the numbers are exact.
   */
  #heaviestFirst(weight: Float32Array): Float64Array {
    const { buffer, byteOffset, length } = weight;
    const bits = new Uint32Array(buffer, byteOffset, length);
    const keys = this.#order;
    for (let i = 0; i < length; i++) {
      keys[i] = (INFINITY_BITS - bits[i]!) * length + i;
    }
    keys.sort();
    for (let i = 0; i < length; i++) {
      const key = keys[i]!;
      keys[i] = key - Math.floor(key / length) * length;
    }
    return keys;
  }
}
