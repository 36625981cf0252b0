// SPDX-License-Identifier: Apache-2.0

/**
 * A small seeded random generator.
 *
 * @module
 */
import { checkInteger } from "./_check.ts";

/**
 * Random numbers that depend on the seed alone: the same on every machine and in every release.
 *
 * The generator is splitmix32. It is good enough to shuffle a placement and no good for secrets.
 */
export class SeededRandom {
  #state: number;

  /**
   * Starts a sequence.
   *
   * @param seed An integer from 0 to 2³² − 1.
   * @throws {RangeError} If the seed is anything else.
   */
  constructor(seed: number) {
    checkInteger(seed, {
      action: "seed random numbers",
      name: "the seed",
      min: 0,
      max: 2 ** 32 - 1,
    });
    this.#state = seed | 0;
  }

  /**
   * Draws 32 random bits.
   *
   * @returns An integer from 0 to 2³² − 1.
   */
  uint32(): number {
    this.#state = (this.#state + 0x9e3779b9) | 0;
    let z = this.#state;
    z = Math.imul(z ^ (z >>> 16), 0x21f0aaad);
    z = Math.imul(z ^ (z >>> 15), 0x735a2d97);
    return (z ^ (z >>> 15)) >>> 0;
  }

  /**
   * Draws an integer below a bound, each with the same probability (to one in 2³² ÷ bound).
   *
   * @param bound The number of possible values, at least 1.
   * @returns An integer from 0 to `bound` − 1.
   */
  below(bound: number): number {
    return Math.floor(this.uint32() / 2 ** 32 * bound);
  }

  /**
   * Shuffles an array in place, every order with the same probability.
   *
   * @param values The array to shuffle.
   */
  shuffle(values: Int32Array): void {
    for (let last = values.length - 1; last > 0; last--) {
      const other = this.below(last + 1);
      const value = values[last]!;
      values[last] = values[other]!;
      values[other] = value;
    }
  }
}
