// SPDX-License-Identifier: Apache-2.0

/**
 * Searching for exchanges between the busiest rank of a layer and another.
 *
 * @module
 */
import type { LayerState } from "./_layer_state.ts";
import { sortRanks } from "./_primary.ts";
import { RankChanges, ROUNDING } from "./_rank_changes.ts";
import { Tournament } from "./_tournament.ts";

/** When an exchange is worth it. */
export interface ExchangeLimits {
  /** The most slots of a layer that may change. */
  readonly maxMoves: number;
  /** Part of the mean rank cost by which the busiest rank must be relieved. */
  readonly minGain: number;
}

/** What is written into one slot or two. */
interface Step {
  readonly slot: number;
  readonly expert: number;
  /** The second slot, -1 if there is none. */
  readonly otherSlot: number;
  readonly otherExpert: number;
}

/**
 * Makes exchanges in a layer until none is worth it.
 *
 * Each step relieves the busiest rank, and no rank that gets more work comes near the cost that
 * the busiest had; where other ranks are about as busy, the sum of squared costs must fall as well.
 * So the pair (highest cost, sum of squares) falls with every step.
 */
export class ExchangeSearch {
  readonly #state: LayerState;
  readonly #active: Int32Array;
  readonly #limits: ExchangeLimits;
  readonly #changes: RankChanges;
  /** Ranks to try as partners, by their place in `#active`. */
  readonly #partners: Tournament;
  /** The rank to relieve, -1 if there is none. */
  #busiest = -1;
  /** Cost that the relieved rank and those that get more work must not exceed. */
  #ceiling = 0;
  /** Decrease of the sum of squares that a step must exceed. */
  #leastGain = 0;
  /** Slots that a step may move. */
  #room = 0;
  /** The step that gains most for each slot it moves. */
  #best: Step | undefined;
  #bestScore = 0;

  /**
   * Reserves memory.
   *
   * @param state The layer.
   * @param active Ranks that may hold experts, ascending.
   * @param limits When an exchange is worth it.
   */
  constructor(state: LayerState, active: Int32Array, limits: ExchangeLimits) {
    this.#state = state;
    this.#active = active.slice();
    this.#limits = limits;
    this.#changes = new RankChanges(state);
    this.#partners = new Tournament(active.length);
  }

  /** Takes up the layer of the state; experts without a slot get one. */
  start(): void {
    const { row, slotsPerRank, pace } = this.#state;
    // Ties go to the first rank, so the order must not depend on numbers of ranks.
    sortRanks(row, this.#active, { slotsPerRank, nodeOf: undefined, pace });
    this.#restore();
  }

  /**
   * Gives a slot to each expert that has none, whatever that moves: hottest expert first, where
   * the sum of squared costs stays lowest.
   */
  #restore(): void {
    const { row, copies, slotsPerRank } = this.#state;
    this.#busiest = -1;
    this.#ceiling = Infinity;
    this.#leastGain = -Infinity;
    this.#room = Infinity;
    for (const expert of this.#state.lostExperts()) {
      this.#startChoice();
      for (const rank of this.#active) {
        const end = (rank + 1) * slotsPerRank;
        for (let slot = rank * slotsPerRank; slot < end; slot++) {
          if (row[slot]! < 0 || copies[row[slot]!]! > 1) {
            this.#tryCopy(expert, slot);
          }
        }
      }
      // As active slots are not fewer than experts, one is empty or holds a second copy.
      this.#state.replace(this.#best!.slot, expert);
    }
  }

  /**
   * Makes steps until there is none.
   *
   * @returns True if there was any.
   */
  run(): boolean {
    let any = false;
    while (this.#step()) any = true;
    return any;
  }

  #step(): boolean {
    const max = this.#aim();
    if (max < 0) return false;
    // Equally busy ranks are tried in turn: which is first must not decide whether it ends.
    return this.#active.some((rank) =>
      this.#state.cost[rank]! >= max * (1 - ROUNDING) && this.#relieve(rank)
    );
  }

  /** Works out what a step must reach; returns the highest cost, -1 if there is nothing to gain. */
  #aim(): number {
    const { cost } = this.#state;
    let max = 0;
    let sum = 0;
    for (const rank of this.#active) {
      sum += cost[rank]!;
      max = Math.max(max, cost[rank]!);
    }
    const mean = sum / this.#active.length;
    const least = Math.max(this.#limits.minGain * mean, ROUNDING * max);
    if (max - mean < least || max === 0) return -1;
    this.#ceiling = max - least;
    let busy = 0;
    for (const rank of this.#active) if (cost[rank]! > this.#ceiling) busy++;
    this.#leastGain = busy <= 1 ? -Infinity : ROUNDING * max * max;
    this.#room = this.#limits.maxMoves - this.#state.moved;
    return max;
  }

  /** Makes the best step between a rank and the lightest one that can help. */
  #relieve(busiest: number): boolean {
    this.#busiest = busiest;
    const partners = this.#partners;
    this.#active.forEach((rank, place) =>
      partners.values[place] = this.#state.cost[rank]!
    );
    partners.restart();
    for (;;) {
      const place = partners.first;
      if (partners.values[place]! >= this.#ceiling) return false;
      const step = this.#bestStep(busiest, this.#active[place]!);
      if (step !== undefined) {
        this.#make(step);
        return true;
      }
      partners.values[place] = Infinity;
      partners.update(place);
    }
  }

  #make(step: Step): void {
    this.#state.replace(step.slot, step.expert);
    if (step.otherSlot < 0) return;
    this.#state.replace(step.otherSlot, step.otherExpert);
  }

  #bestStep(busiest: number, partner: number): Step | undefined {
    const { row, copies, slotsPerRank: count } = this.#state;
    this.#startChoice();
    for (let i = 0; i < count; i++) {
      const here = busiest * count + i;
      const expert = row[here]!;
      if (expert < 0) continue;
      const held = this.#state.held(partner, expert) > 0;
      for (let j = 0; j < count; j++) {
        const there = partner * count + j;
        const other = row[there]!;
        if (other === expert) continue;
        const otherHeld = other >= 0 && this.#state.held(busiest, other) > 0;
        // Two copies on one rank take no more tokens off other ranks than one elsewhere.
        if (!held && !otherHeld) this.#tryExchange(here, there);
        if (!held && (other < 0 || copies[other]! > 1)) {
          this.#tryCopy(expert, there);
        }
        if (other >= 0 && !otherHeld && copies[expert]! > 1) {
          this.#tryCopy(other, here);
        }
      }
    }
    return this.#best;
  }

  /** Two slots swap what they hold; the second may be empty. */
  #tryExchange(slot: number, otherSlot: number): void {
    const { row, rankOf, slotCost } = this.#state;
    const expert = row[slot]!;
    const other = row[otherSlot]!;
    const [rank, otherRank] = [rankOf[slot]!, rankOf[otherSlot]!];
    const work = slotCost[expert]! - (other < 0 ? 0 : slotCost[other]!);
    if (work <= 0) return;
    this.#changes.shift(rank, otherRank, work);
    const gain = this.#changes.settle(this.#busiest, this.#ceiling);
    if (!(gain > this.#leastGain)) return;
    const moves = this.#state.movesOf(otherRank, other, expert) +
      (other < 0 ? 0 : this.#state.movesOf(rank, expert, other));
    this.#keep(gain, moves, {
      slot,
      expert: other,
      otherSlot,
      otherExpert: expert,
    });
  }

  /** A slot that is empty or one of several of its expert takes a copy of another. */
  #tryCopy(expert: number, slot: number): void {
    if (!this.#couldServe(expert, slot)) return;
    this.#changes.copy(expert, slot);
    const gain = this.#changes.settle(this.#busiest, this.#ceiling);
    if (!(gain > this.#leastGain)) return;
    const { row, rankOf } = this.#state;
    const moves = this.#state.movesOf(rankOf[slot]!, row[slot]!, expert);
    this.#keep(gain, moves, { slot, expert, otherSlot: -1, otherExpert: -1 });
  }

  /** Tells cheaply whether a copy could serve: most relieve the busiest rank by too little. */
  #couldServe(expert: number, slot: number): boolean {
    const { row, rankOf, slotCost, copies, work, pace } = this.#state;
    const busiest = this.#busiest;
    if (busiest < 0) return true;
    const cost = this.#state.costOf(expert, copies[expert]! + 1);
    const out = row[slot]!;
    const rank = rankOf[slot]!;
    const added = cost - (out < 0 ? 0 : slotCost[out]!);
    const fits = (rank: number, change: number): boolean =>
      (work[rank]! + change) * pace[rank]! <= this.#ceiling;
    if (rank === busiest) return fits(busiest, added);
    const held = this.#state.held(busiest, expert);
    return fits(busiest, held * (cost - slotCost[expert]!)) &&
      (added <= 0 || fits(rank, added));
  }

  #startChoice(): void {
    this.#best = undefined;
    this.#bestScore = -Infinity;
  }

  #keep(gain: number, moves: number, step: Step): void {
    if (moves > 0 && moves > this.#room) return;
    // What moves nothing is better than what moves one slot, but not at any gain.
    const weight = Math.max(moves, 1 / 2);
    const score = gain > 0 ? gain / weight : gain * weight;
    if (score <= this.#bestScore) return;
    this.#best = step;
    this.#bestScore = score;
  }
}
