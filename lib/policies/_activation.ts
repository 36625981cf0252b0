// SPDX-License-Identifier: Apache-2.0

/**
 * Gathering the work of experts where each activated copy costs something.
 *
 * @module
 */
import type { RankObjective } from "./_rank_cost.ts";
import { NONE, type SplitLayer } from "./_split_layer.ts";

/** Smaller gains than this part of a cost could be rounding. */
const ROUNDING = 1e-9;

/**
 * Lets single copies give all they carry to another copy of their expert, as long as that lowers
 * the cost of the busiest rank.
 *
 * A split counts an expert as activated once, however many copies share its work. In truth each
 * copy that gets tokens costs its rank an activation: so what was split for little is gathered.
 *
 * @param layer A layer that was split; what its slots carry is changed.
 * @param objective What is balanced.
 */
export function gatherWork(layer: SplitLayer, objective: RankObjective): void {
  new Gathering(layer, objective).run();
}

class Gathering {
  readonly #layer: SplitLayer;
  readonly #expertCost: number;
  /** What each rank's work costs at speed 1, [ranks]. */
  readonly #cost: Float64Array;

  constructor(layer: SplitLayer, { expertCost }: RankObjective) {
    this.#layer = layer;
    this.#expertCost = expertCost;
    this.#cost = new Float64Array(layer.ranks);
    for (let slot = 0; slot < layer.slots; slot++) {
      if (this.#isIdle(slot)) {
        layer.carried[slot] = 0;
        continue;
      }
      this.#cost[layer.rankOf[slot]!]! += this.#tokenPart(slot, slot) +
        expertCost;
    }
  }

  /** Each step lowers the busiest rank and leaves others below it, so there is an end. */
  run(): void {
    while (this.#step(this.#busiest()));
  }

  #busiest(): number {
    const { speed, ranks } = this.#layer;
    let busiest = 0;
    for (let rank = 1; rank < ranks; rank++) {
      const lead = this.#cost[rank]! / speed[rank]! -
        this.#cost[busiest]! / speed[busiest]!;
      if (lead > 0) busiest = rank;
    }
    return busiest;
  }

  /** Makes the best step that relieves a rank; false if there is none. */
  #step(rank: number): boolean {
    const { slotsPerRank, expertAt, copies, speed } = this.#layer;
    const { rankOf, firstSlot, nextSlot } = this.#layer;
    const highest = this.#cost[rank]! / speed[rank]!;
    let lowest = highest * (1 - ROUNDING);
    let from = NONE;
    let to = NONE;
    const end = (rank + 1) * slotsPerRank;
    for (let slot = end - slotsPerRank; slot < end; slot++) {
      const expert = expertAt[slot]!;
      if (expert < 0 || copies[expert]! < 2 || this.#isIdle(slot)) continue;
      const left = this.#cost[rank]! - this.#tokenPart(slot, slot) -
        this.#expertCost;
      let other = firstSlot[expert]!;
      for (; other !== NONE; other = nextSlot[other]!) {
        const at = rankOf[other]!;
        if (at === rank) continue;
        const after = Math.max(
          left / speed[rank]!,
          (this.#cost[at]! + this.#added(slot, other)) / speed[at]!,
        );
        if (after < lowest) {
          lowest = after;
          from = slot;
          to = other;
        }
      }
    }
    if (from === NONE) return false;
    this.#cost[rank]! -= this.#tokenPart(from, from) + this.#expertCost;
    this.#cost[rankOf[to]!]! += this.#added(from, to);
    this.#layer.carried[to]! += this.#layer.carried[from]!;
    this.#layer.carried[from] = 0;
    return true;
  }

  /** What a slot would cost more if it took what another carries. */
  #added(from: number, to: number): number {
    return this.#tokenPart(from, to) +
      (this.#isIdle(to) ? this.#expertCost : 0);
  }

  /** Cost of the tokens that a slot carries, if they were in a slot of the same expert. */
  #tokenPart(slot: number, to: number): number {
    const { carried, work, expertAt, weight } = this.#layer;
    const whole = work[expertAt[slot]!]!;
    return carried[slot]! / whole * (whole * weight[to]! - this.#expertCost);
  }

  /** Tells whether a slot gets no tokens, but for rounding. */
  #isIdle(slot: number): boolean {
    const { carried, work, expertAt } = this.#layer;
    const expert = expertAt[slot]!;
    return expert < 0 || carried[slot]! <= ROUNDING * work[expert]!;
  }
}
