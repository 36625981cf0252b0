// SPDX-License-Identifier: Apache-2.0

/**
 * The smallest of values that change one by one.
 *
 * @module
 */

/**
 * Finds the smallest of many values, the one of the lowest index if several are.
 *
 * A tree of winners: a changed value costs log2(count) comparisons, the smallest none.
 */
export class Tournament {
  /** The values, [count]; whoever writes them calls {@linkcode update} or {@linkcode restart}. */
  readonly values: Float64Array;
  /** The values, and Infinity for each place beyond them, [width]. */
  readonly #padded: Float64Array;
  /** Winner below each node, [2 × width]; node i has the children 2i and 2i + 1. */
  readonly #winners: Int32Array;

  /**
   * Creates a tournament of zeros.
   *
   * @param count Number of values.
   */
  constructor(count: number) {
    const width = 2 ** Math.ceil(Math.log2(count));
    this.#padded = new Float64Array(width).fill(Infinity);
    this.values = this.#padded.subarray(0, count).fill(0);
    this.#winners = new Int32Array(2 * width).map((_, node) => node - width);
    this.restart();
  }

  /** Index of the smallest value. */
  get first(): number {
    return this.#winners[1]!;
  }

  /** Looks at all values anew. */
  restart(): void {
    for (let node = this.#padded.length - 1; node > 0; node--) this.#play(node);
  }

  /**
   * Looks at one value anew.
   *
   * @param index Index of the value that was written.
   */
  update(index: number): void {
    let node = (this.#padded.length + index) >> 1;
    for (; node > 0; node >>= 1) this.#play(node);
  }

  // The left child has the lower indices, so it wins ties.
  #play(node: number): void {
    const left = this.#winners[2 * node]!;
    const right = this.#winners[2 * node + 1]!;
    this.#winners[node] = this.#padded[left]! <= this.#padded[right]!
      ? left
      : right;
  }
}
