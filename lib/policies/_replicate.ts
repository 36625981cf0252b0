// SPDX-License-Identifier: Apache-2.0

/**
 * Choosing how many copies each expert gets.
 *
 * @module
 */
import { Tournament } from "./_tournament.ts";

/** Replicates lists of experts of one length; memory is used again for each. */
export class Replicator {
  /** Expert of each copy, [slots], as an index into the list of the last call. */
  readonly expert: Int32Array;
  /** Load of each copy, [slots], in the last call. */
  readonly load: Float32Array;
  readonly #copies: Int32Array;
  readonly #tournament: Tournament;

  /**
   * Creates a replicator.
   *
   * @param experts Number of experts.
   * @param slots Number of copies, not fewer.
   */
  constructor(experts: number, slots: number) {
    this.expert = new Int32Array(slots).map((_, slot) => slot);
    this.load = new Float32Array(slots);
    this.#copies = new Int32Array(experts);
    this.#tournament = new Tournament(experts);
  }

  /**
   * Gives one copy to each expert and the other slots, one by one, to the expert whose copies
   * carry most; ties go to the lowest index. The result is in {@linkcode expert} and
   * {@linkcode load}.
   *
   * @param load Load of each expert, [experts].
   */
  replicate(load: Float32Array): void {
    const { expert } = this;
    const copies = this.#copies.fill(1);
    const tournament = this.#tournament;
    // Negated, because the smallest wins.
    const share = tournament.values;
    for (let i = 0; i < load.length; i++) share[i] = -load[i]!;
    tournament.restart();
    for (let slot = load.length; slot < expert.length; slot++) {
      const hottest = tournament.first;
      expert[slot] = hottest;
      share[hottest] = -Math.fround(load[hottest]! / ++copies[hottest]!);
      tournament.update(hottest);
    }
    for (let slot = 0; slot < expert.length; slot++) {
      this.load[slot] = -share[expert[slot]!]!;
    }
  }
}
