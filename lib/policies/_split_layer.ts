// SPDX-License-Identifier: Apache-2.0

/**
 * One layer whose experts split their work unevenly over their copies.
 *
 * @module
 */
import type { PolicyJob } from "./_job.ts";
import { primarySlots, sortRanks } from "./_primary.ts";
import type { RankObjective } from "./_rank_cost.ts";

/** No slot: the end of a list. */
export const NONE = -1;

/** Smaller parts of a rank's mean work than this could be rounding. */
const ROUNDING = 1e-10;

/**
 * The active ranks of one layer, the work of each, and who carries how much of which expert.
 *
 * The work of an expert is what all its tokens cost on its primary's node, at speed 1; on
 * another node it weighs more. Each expert that gets tokens counts as activated once, however many
 * copies share its work. Ranks are renumbered in the order of `sortRanks`, and slots with them:
 * slot s is on rank floor(s ÷ slotsPerRank). Memory is used again for each layer.
 */
export class SplitLayer {
  /** Number of active ranks. */
  readonly ranks: number;
  /** Slots of each rank. */
  readonly slotsPerRank: number;
  /** Slots of all active ranks. */
  readonly slots: number;
  /** Number of logical experts. */
  readonly experts: number;
  /** Rank of each slot, [slots]. */
  readonly rankOf: Int32Array;
  /** The job's number of each rank, [ranks]. */
  readonly rankAt: Int32Array;
  /** Node of each rank, [ranks]. */
  readonly nodeAt: Int32Array;
  /** Speed of each rank, [ranks]. */
  readonly speed: Float64Array;
  /** Work of each rank, [ranks]. */
  readonly load: Float64Array;
  /** Work that each rank may have, [ranks]. */
  readonly capacity: Float64Array;
  /** Expert of each slot, [slots]; -1 is an empty slot. */
  readonly expertAt: Int32Array;
  /** Next slot of the same expert, [slots]. */
  readonly nextSlot: Int32Array;
  /** Part of its expert's work that each slot carries, [slots], unweighted. */
  readonly carried: Float64Array;
  /** What one unit of work weighs in each slot, [slots]: more away from the primary's node. */
  readonly weight: Float64Array;
  /** Work of each expert, [experts]. */
  readonly work: Float64Array;
  /** First slot of each expert, [experts]. */
  readonly firstSlot: Int32Array;
  /** Slots of each expert, [experts]. */
  readonly copies: Int32Array;
  /** Slot of each expert's primary, [experts]. */
  readonly primary: Int32Array;
  /** Cost of each rank if work could be spread at will: the least that is thinkable. */
  ideal = 0;
  /** Work too small to tell from rounding. */
  epsilon = 0;
  /** Tokens of all experts. */
  tokens = 0;
  readonly #job: PolicyJob;
  readonly #objective: RankObjective;
  /** What one unit of each expert's work weighs on another node, [experts]. */
  readonly #away: Float64Array;
  /** This layer's number of each rank of the job, [all ranks]. */
  readonly #localOf: Int32Array;

  /**
   * Reserves memory.
   *
   * @param job What is planned.
   * @param objective What is balanced.
   */
  constructor(job: PolicyJob, objective: RankObjective) {
    const { slotsPerRank, experts } = job;
    const ranks = job.active.length;
    const slots = ranks * slotsPerRank;
    this.#job = job;
    this.#objective = objective;
    this.ranks = ranks;
    this.slotsPerRank = slotsPerRank;
    this.slots = slots;
    this.experts = experts;
    this.rankOf = new Int32Array(slots).map((_, slot) =>
      Math.floor(slot / slotsPerRank)
    );
    this.rankAt = new Int32Array(ranks);
    this.nodeAt = new Int32Array(ranks);
    this.speed = new Float64Array(ranks);
    this.load = new Float64Array(ranks);
    this.capacity = new Float64Array(ranks);
    this.expertAt = new Int32Array(slots);
    this.nextSlot = new Int32Array(slots);
    this.carried = new Float64Array(slots);
    this.weight = new Float64Array(slots);
    this.work = new Float64Array(experts);
    this.firstSlot = new Int32Array(experts);
    this.copies = new Int32Array(experts);
    this.primary = new Int32Array(experts);
    this.#away = new Float64Array(experts);
    this.#localOf = new Int32Array(job.ranks);
  }

  /**
   * Takes up a layer, with all work on the primaries.
   *
   * @param row Expert of each slot of the job, [all slots]; -1 is an empty slot.
   * @param layer The layer.
   */
  start(row: Int32Array, layer: number): void {
    this.#weigh(layer);
    this.#order(row);
    this.#list(row);
    this.load.fill(0);
    for (let expert = 0; expert < this.experts; expert++) {
      const slot = this.primary[expert]!;
      if (slot < 0) continue;
      this.carried[slot] = this.work[expert]!;
      this.load[this.rankOf[slot]!]! += this.work[expert]!;
    }
  }

  /**
   * Writes the slots of the active ranks.
   *
   * @param row Expert of each slot of the job, [all slots].
   */
  write(row: Int32Array): void {
    const { ranks, slotsPerRank, expertAt, rankAt } = this;
    for (let rank = 0; rank < ranks; rank++) {
      const from = rank * slotsPerRank;
      const to = rankAt[rank]! * slotsPerRank;
      for (let i = 0; i < slotsPerRank; i++) row[to + i] = expertAt[from + i]!;
    }
  }

  /** Cost of the busiest rank. */
  highestCost(): number {
    let highest = 0;
    for (let rank = 0; rank < this.ranks; rank++) {
      highest = Math.max(highest, this.load[rank]! / this.speed[rank]!);
    }
    return highest;
  }

  /** Lets each rank's work cost up to a threshold. */
  allow(threshold: number): void {
    for (let rank = 0; rank < this.ranks; rank++) {
      this.capacity[rank] = threshold * this.speed[rank]!;
    }
  }

  /** Tells whether a rank holds an expert. */
  holds(rank: number, expert: number): boolean {
    const { rankOf, nextSlot } = this;
    let slot = this.firstSlot[expert]!;
    while (slot !== NONE && rankOf[slot] !== rank) slot = nextSlot[slot]!;
    return slot !== NONE;
  }

  /** What one unit of an expert's work would weigh on a rank. */
  weightOn(rank: number, expert: number): number {
    const home = this.nodeAt[this.rankOf[this.primary[expert]!]!];
    return home === this.nodeAt[rank] ? 1 : this.#away[expert]!;
  }

  /** Puts an expert into an empty slot, where it carries nothing yet. */
  link(slot: number, expert: number): void {
    this.expertAt[slot] = expert;
    this.nextSlot[slot] = this.firstSlot[expert]!;
    this.firstSlot[expert] = slot;
    this.copies[expert]!++;
    this.carried[slot] = 0;
    if (this.primary[expert]! < 0) this.primary[expert] = slot;
    this.weight[slot] = this.weightOn(this.rankOf[slot]!, expert);
  }

  /** Empties a slot; what it carried must be given to others. */
  unlink(slot: number): void {
    const { expertAt, nextSlot, firstSlot } = this;
    const expert = expertAt[slot]!;
    if (firstSlot[expert] === slot) firstSlot[expert] = nextSlot[slot]!;
    else {
      let before = firstSlot[expert]!;
      while (nextSlot[before] !== slot) before = nextSlot[before]!;
      nextSlot[before] = nextSlot[slot]!;
    }
    expertAt[slot] = NONE;
    this.copies[expert]!--;
    this.carried[slot] = 0;
  }

  /** Works out what the experts' tokens cost. */
  #weigh(layer: number): void {
    const { tokenCost, expertCost, crossNodeCost, pace } = this.#objective;
    const { load, active } = this.#job;
    let sum = 0;
    this.tokens = 0;
    for (let expert = 0; expert < this.experts; expert++) {
      const tokens = load[layer * this.experts + expert]!;
      const cost = tokens * tokenCost;
      const work = tokens > 0 ? cost + expertCost : 0;
      this.work[expert] = work;
      this.#away[expert] = work > 0 ? 1 + crossNodeCost * cost / work : 1;
      sum += work;
      this.tokens += tokens;
    }
    let speed = 0;
    for (const rank of active) speed += 1 / pace[rank]!;
    this.ideal = sum / speed;
    this.epsilon = ROUNDING * sum / this.ranks;
  }

  #order(row: Int32Array): void {
    const { topology: { nodeOf }, slotsPerRank } = this.#job;
    const { pace } = this.#objective;
    this.rankAt.set(this.#job.active);
    sortRanks(row, this.rankAt, { slotsPerRank, nodeOf, pace });
    for (let i = 0; i < this.ranks; i++) {
      const rank = this.rankAt[i]!;
      this.nodeAt[i] = nodeOf[rank]!;
      this.speed[i] = 1 / pace[rank]!;
      this.#localOf[rank] = i;
    }
  }

  /** Lists the slots of each expert, and finds its primary. */
  #list(row: Int32Array): void {
    const { slotsPerRank, rankAt } = this;
    const primary = primarySlots(row, rankAt, this);
    for (let expert = 0; expert < this.experts; expert++) {
      const slot = primary[expert]!;
      const rank = Math.floor(slot / slotsPerRank);
      this.primary[expert] = slot < 0
        ? NONE
        : slot + (this.#localOf[rank]! - rank) * slotsPerRank;
    }
    this.copies.fill(0);
    this.firstSlot.fill(NONE);
    for (let slot = this.slots - 1; slot >= 0; slot--) {
      const rank = this.rankOf[slot]!;
      const expert = row[slot + (rankAt[rank]! - rank) * slotsPerRank]!;
      if (expert >= 0) this.link(slot, expert);
      else {
        this.expertAt[slot] = NONE;
        this.carried[slot] = 0;
      }
    }
  }
}
