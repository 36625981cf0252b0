// SPDX-License-Identifier: Apache-2.0

/**
 * What a step would change in the costs of ranks, without making it.
 *
 * @module
 */
import type { LayerState } from "./_layer_state.ts";

/** Smaller differences than this part of a cost could be rounding. */
export const ROUNDING = 1e-9;

/** Adds up the changes of one step after the other; memory is used again for each. */
export class RankChanges {
  readonly #state: LayerState;
  /** Change of work of each rank, [ranks]. */
  readonly #change: Float64Array;
  /** Ranks whose work changes, the first `#count` of them. */
  readonly #ranks: Int32Array;
  readonly #isChanged: Uint8Array;
  #count = 0;

  /**
   * Reserves memory.
   *
   * @param state The layer.
   */
  constructor(state: LayerState) {
    this.#state = state;
    const ranks = state.cost.length;
    this.#change = new Float64Array(ranks);
    this.#ranks = new Int32Array(ranks);
    this.#isChanged = new Uint8Array(ranks);
  }

  /**
   * Adds what changes if one rank hands work to another.
   *
   * @param from The rank that gets less.
   * @param to The rank that gets more.
   * @param work The work.
   */
  shift(from: number, to: number, work: number): void {
    this.#add(from, -work);
    this.#add(to, work);
  }

  /**
   * Adds what changes if a slot takes a copy of an expert: all ranks that hold it get less, all
   * that hold what the slot held get more.
   *
   * @param expert The expert.
   * @param slot The slot, which is empty or holds one of several copies.
   */
  copy(expert: number, slot: number): void {
    const { row, rankOf, slotCost, copies } = this.#state;
    const rank = rankOf[slot]!;
    const out = row[slot]!;
    const cost = this.#state.costOf(expert, copies[expert]! + 1);
    this.#addHolders(expert, cost - slotCost[expert]!, -1);
    this.#add(rank, cost);
    if (out < 0) return;
    const rest = this.#state.costOf(out, copies[out]! - 1);
    this.#addHolders(out, rest - slotCost[out]!, slot);
    this.#add(rank, -slotCost[out]!);
  }

  /**
   * Judges the changes added so far, and forgets them.
   *
   * @param relieved The rank that must get less work, -1 if none must.
   * @param ceiling Cost that it and ranks that get more work must not exceed.
   * @returns By how much the sum of squared costs falls; -Infinity if the step does not serve.
   */
  settle(relieved: number, ceiling: number): number {
    const { work, cost, pace } = this.#state;
    let gain = relieved < 0 || this.#isChanged[relieved] ? 0 : -Infinity;
    for (let i = 0; i < this.#count; i++) {
      const rank = this.#ranks[i]!;
      const after = (work[rank]! + this.#change[rank]!) * pace[rank]!;
      this.#change[rank] = 0;
      this.#isChanged[rank] = 0;
      gain += cost[rank]! ** 2 - after ** 2;
      if (after <= ceiling) continue;
      const rises = after > cost[rank]! * (1 + ROUNDING);
      if (rises || rank === relieved) gain = -Infinity;
    }
    this.#count = 0;
    return gain;
  }

  #addHolders(expert: number, change: number, except: number): void {
    if (change === 0) return;
    let slot = this.#state.firstSlot(expert);
    for (; slot >= 0; slot = this.#state.nextSlot(slot)) {
      if (slot !== except) this.#add(this.#state.rankOf[slot]!, change);
    }
  }

  #add(rank: number, change: number): void {
    if (change === 0) return;
    if (!this.#isChanged[rank]) this.#ranks[this.#count++] = rank;
    this.#isChanged[rank] = 1;
    this.#change[rank]! += change;
  }
}
