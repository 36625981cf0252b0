// SPDX-License-Identifier: Apache-2.0

/**
 * One layer while slots change hands: who holds what, and what each rank's work costs.
 *
 * @module
 */
import type { PolicyJob } from "./_job.ts";
import type { SlotCost } from "./_slot_cost.ts";

/** No slot: the end of a list. */
const NONE = -1;

/** A layer whose slots can be written one by one; memory is used again for each layer. */
export class LayerState {
  /** Expert of each slot, [slots]; written by {@linkcode replace}. */
  row: Int32Array;
  /** Slots of each rank. */
  readonly slotsPerRank: number;
  /** Rank of each slot, [slots]. */
  readonly rankOf: Int32Array;
  /** Slots that hold each expert, [experts]. */
  readonly copies: Int32Array;
  /** Cost of each slot of an expert, [experts], for a rank of speed 1. */
  readonly slotCost: Float64Array;
  /** Sum of the slots' costs, [ranks]. */
  readonly work: Float64Array;
  /** What the work costs the rank, [ranks]: `work * pace`. */
  readonly cost: Float64Array;
  /** One over the speed, [ranks]. */
  readonly pace: Float64Array;
  /** Slots that are neither empty nor hold what their rank held at the start. */
  moved = 0;
  readonly #job: PolicyJob;
  readonly #tokenCost: number;
  readonly #expertCost: number;
  /** Slots of each rank that hold each expert, now and at the start, [ranks, experts]. */
  readonly #now: Int32Array;
  readonly #before: Int32Array;
  /** First slot of each expert, [experts], and the next one of each slot, [slots]. */
  readonly #first: Int32Array;
  readonly #next: Int32Array;
  #load: Float64Array = new Float64Array();

  /**
   * Reserves memory.
   *
   * @param job What is planned.
   * @param cost What slots cost.
   */
  constructor(job: PolicyJob, cost: SlotCost) {
    const { ranks, slots, slotsPerRank, experts } = job;
    this.#job = job;
    this.row = new Int32Array(slots);
    this.slotsPerRank = slotsPerRank;
    this.#tokenCost = cost.tokenCost;
    this.#expertCost = cost.expertCost;
    this.pace = cost.pace;
    this.rankOf = new Int32Array(slots).map((_, slot) =>
      Math.floor(slot / slotsPerRank)
    );
    this.copies = new Int32Array(experts);
    this.slotCost = new Float64Array(experts);
    this.work = new Float64Array(ranks);
    this.cost = new Float64Array(ranks);
    this.#now = new Int32Array(ranks * experts);
    this.#before = new Int32Array(ranks * experts);
    this.#first = new Int32Array(experts);
    this.#next = new Int32Array(slots);
  }

  /**
   * Takes up a layer.
   *
   * @param row The layer's slots, [slots]; changed in place from now on.
   * @param layer The layer.
   */
  start(row: Int32Array, layer: number): void {
    const { experts, slots, ranks, load, current } = this.#job;
    this.row = row;
    this.#load = load.subarray(layer * experts, (layer + 1) * experts);
    const before = current?.physicalToLogical.subarray(
      layer * slots,
      (layer + 1) * slots,
    );
    this.#countByRank(this.#before, before);
    this.#countByRank(this.#now, row);
    this.#listSlots();
    for (let expert = 0; expert < experts; expert++) {
      this.slotCost[expert] = this.costOf(expert, this.copies[expert]!);
    }
    for (let rank = 0; rank < ranks; rank++) this.#weigh(rank);
    this.moved = this.#countMoved();
  }

  /** Cost of one slot of an expert if it had that many. */
  costOf(expert: number, copies: number): number {
    const tokens = this.#load[expert]!;
    if (tokens === 0 || copies === 0) return 0;
    return this.#tokenCost * tokens / copies + this.#expertCost;
  }

  /** Experts without a slot, those with most tokens first, ties by index. */
  lostExperts(): number[] {
    const lost: number[] = [];
    this.copies.forEach((copies, expert) => copies === 0 && lost.push(expert));
    return lost.sort((a, b) => this.#load[b]! - this.#load[a]!);
  }

  /** Slots of a rank that hold an expert. */
  held(rank: number, expert: number): number {
    return this.#now[rank * this.copies.length + expert]!;
  }

  /** First slot of an expert in no particular order, -1 if it has none. */
  firstSlot(expert: number): number {
    return this.#first[expert]!;
  }

  /** Next slot of the same expert, -1 after the last. */
  nextSlot(slot: number): number {
    return this.#next[slot]!;
  }

  /** How {@linkcode moved} would change if a slot held another expert, -1 if none. */
  movesOf(rank: number, out: number, into: number): number {
    const row = rank * this.copies.length;
    const leaves = out >= 0 && this.#now[row + out]! > this.#before[row + out]!;
    const enters = into >= 0 &&
      this.#now[row + into]! >= this.#before[row + into]!;
    return (enters ? 1 : 0) - (leaves ? 1 : 0);
  }

  /**
   * Writes a slot. Sums are taken anew from the slots, so that they do not depend on the way
   * that led to them.
   *
   * @param slot The slot.
   * @param into What it holds from now on; -1 empties it.
   */
  replace(slot: number, into: number): void {
    const { row, copies, rankOf } = this;
    const out = row[slot]!;
    const cell = rankOf[slot]! * copies.length;
    this.moved += this.movesOf(rankOf[slot]!, out, into);
    if (out >= 0) {
      this.#unlink(slot, out);
      this.#now[cell + out]!--;
      this.slotCost[out] = this.costOf(out, --copies[out]!);
    }
    row[slot] = into;
    if (into >= 0) {
      this.#next[slot] = this.#first[into]!;
      this.#first[into] = slot;
      this.#now[cell + into]!++;
      this.slotCost[into] = this.costOf(into, ++copies[into]!);
    }
    this.#weigh(rankOf[slot]!);
    if (out >= 0) this.#weighHolders(out);
    if (into >= 0) this.#weighHolders(into);
  }

  #weighHolders(expert: number): void {
    let slot = this.#first[expert]!;
    for (; slot !== NONE; slot = this.#next[slot]!) {
      this.#weigh(this.rankOf[slot]!);
    }
  }

  #weigh(rank: number): void {
    let sum = 0;
    const end = (rank + 1) * this.slotsPerRank;
    for (let slot = rank * this.slotsPerRank; slot < end; slot++) {
      const expert = this.row[slot]!;
      if (expert >= 0) sum += this.slotCost[expert]!;
    }
    this.work[rank] = sum;
    this.cost[rank] = sum * this.pace[rank]!;
  }

  #unlink(slot: number, expert: number): void {
    const next = this.#next;
    if (this.#first[expert] === slot) {
      this.#first[expert] = next[slot]!;
      return;
    }
    let before = this.#first[expert]!;
    while (next[before] !== slot) before = next[before]!;
    next[before] = next[slot]!;
  }

  #countByRank(counts: Int32Array, row: Int32Array | undefined): void {
    counts.fill(0);
    row?.forEach((expert, slot) => {
      if (expert < 0) return;
      counts[this.rankOf[slot]! * this.copies.length + expert]!++;
    });
  }

  #listSlots(): void {
    this.copies.fill(0);
    this.#first.fill(NONE);
    for (let slot = this.row.length - 1; slot >= 0; slot--) {
      const expert = this.row[slot]!;
      if (expert < 0) continue;
      this.copies[expert]!++;
      this.#next[slot] = this.#first[expert]!;
      this.#first[expert] = slot;
    }
  }

  #countMoved(): number {
    let moved = 0;
    for (let cell = 0; cell < this.#now.length; cell++) {
      moved += Math.max(0, this.#now[cell]! - this.#before[cell]!);
    }
    return moved;
  }
}
