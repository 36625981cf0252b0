// SPDX-License-Identifier: Apache-2.0

/**
 * Splitting work over copies so that the busiest rank costs least: a maximum flow.
 *
 * @module
 */
import { NONE, type SplitLayer } from "./_split_layer.ts";

/** No level: not reached. */
const UNSEEN = -1;

/** Relative change of a threshold that could be rounding. */
const SAME = 1e-12;

/**
 * Shifts work from ranks that have too much to ranks that have room, along the copies that are
 * there: from a rank to any copy of an expert that it carries, and on from there.
 *
 * It is Dinic's algorithm on the graph rank → expert → rank, where what a rank carries of an
 * expert bounds the first kind of edge and nothing the second. It goes on from any split, so a
 * change of a slot or a threshold costs little.
 */
export class TokenFlow {
  readonly #layer: SplitLayer;
  /** Steps from the nearest rank with too much work, [ranks] and [experts]. */
  readonly #rankLevel: Int32Array;
  readonly #expertLevel: Int32Array;
  /** Slots of experts with several copies, [slots], and where those of each rank start. */
  readonly #shared: Int32Array;
  readonly #start: Int32Array;
  /** Where the search for a path goes on, [ranks] and [experts]: in `#shared`, and a slot. */
  readonly #at: Int32Array;
  readonly #slot: Int32Array;
  readonly #queue: Int32Array;

  /**
   * Reserves memory.
   *
   * @param layer The layer.
   */
  constructor(layer: SplitLayer) {
    this.#layer = layer;
    this.#rankLevel = new Int32Array(layer.ranks);
    this.#expertLevel = new Int32Array(layer.experts);
    this.#shared = new Int32Array(layer.slots);
    this.#start = new Int32Array(layer.ranks + 1);
    this.#at = new Int32Array(layer.ranks + 1);
    this.#slot = new Int32Array(layer.experts);
    this.#queue = new Int32Array(layer.ranks);
  }

  /**
   * Shifts as much work as there is a way for to ranks below their capacity.
   *
   * @returns Work above the capacities that is left, 0 if none but rounding.
   */
  relieve(): number {
    const { load, capacity, ranks, epsilon } = this.#layer;
    this.#listShared();
    while (this.#measure()) {
      this.#at.set(this.#start);
      this.#slot.set(this.#layer.firstSlot);
      for (let rank = 0; rank < ranks; rank++) {
        const excess = load[rank]! - capacity[rank]!;
        if (excess <= epsilon || this.#rankLevel[rank] === UNSEEN) continue;
        load[rank] = capacity[rank]! + excess - this.#leave(rank, excess);
      }
    }
    let left = 0;
    for (let rank = 0; rank < ranks; rank++) {
      const excess = load[rank]! - capacity[rank]!;
      if (excess > epsilon) left += excess;
    }
    return left;
  }

  /**
   * Splits the work so that the busiest rank costs as little as the copies allow.
   *
   * Starting from the ideal, the threshold is raised to what the ranks behind the bottleneck cost
   * on average until all fits. Without weights that is exact: those ranks hold all copies of what
   * they carry, so no split costs the busiest of them less.
   *
   * @returns Cost of the busiest rank.
   */
  settle(): number {
    const layer = this.#layer;
    let threshold = layer.ideal;
    for (;;) {
      layer.allow(threshold);
      if (this.relieve() === 0) break;
      const raised = this.#bottleneck();
      if (!(raised > threshold * (1 + SAME))) break;
      threshold = raised;
    }
    return layer.highestCost();
  }

  /** Mean cost of the ranks that the last search for a way has reached. */
  #bottleneck(): number {
    const { load, speed, ranks } = this.#layer;
    let work = 0;
    let speeds = 0;
    for (let rank = 0; rank < ranks; rank++) {
      if (this.#rankLevel[rank] !== UNSEEN) continue;
      work += load[rank]!;
      speeds += speed[rank]!;
    }
    return work / speeds;
  }

  #listShared(): void {
    const { ranks, slotsPerRank, expertAt, copies } = this.#layer;
    let listed = 0;
    for (let rank = 0; rank < ranks; rank++) {
      this.#start[rank] = listed;
      const end = (rank + 1) * slotsPerRank;
      for (let slot = end - slotsPerRank; slot < end; slot++) {
        const expert = expertAt[slot]!;
        if (expert >= 0 && copies[expert]! > 1) this.#shared[listed++] = slot;
      }
    }
    this.#start[ranks] = listed;
  }

  /** Measures how far each rank is from one with room; false if none with too much is reached. */
  #measure(): boolean {
    const { load, capacity, ranks, epsilon, expertAt } = this.#layer;
    const levels = this.#rankLevel.fill(UNSEEN);
    const expertLevel = this.#expertLevel.fill(UNSEEN);
    const start = this.#start;
    const queue = this.#queue;
    let queued = 0;
    for (let rank = 0; rank < ranks; rank++) {
      if (capacity[rank]! - load[rank]! <= epsilon) continue;
      levels[rank] = 0;
      queue[queued++] = rank;
    }
    let found = false;
    for (let i = 0; i < queued; i++) {
      const rank = queue[i]!;
      const level = levels[rank]!;
      if (load[rank]! - capacity[rank]! > epsilon) found = true;
      const end = start[rank + 1]!;
      for (let j = start[rank]!; j < end; j++) {
        const expert = expertAt[this.#shared[j]!]!;
        if (expertLevel[expert] !== UNSEEN) continue;
        expertLevel[expert] = level;
        queued = this.#reach(expert, level + 1, queued);
      }
    }
    return found;
  }

  /** Queues the ranks that carry an expert and were not reached. */
  #reach(expert: number, level: number, queued: number): number {
    const { nextSlot, rankOf, carried, epsilon } = this.#layer;
    let slot = this.#layer.firstSlot[expert]!;
    for (; slot !== NONE; slot = nextSlot[slot]!) {
      const rank = rankOf[slot]!;
      if (this.#rankLevel[rank] !== UNSEEN || carried[slot]! <= epsilon) {
        continue;
      }
      this.#rankLevel[rank] = level;
      this.#queue[queued++] = rank;
    }
    return queued;
  }

  /** Shifts up to that much of a rank's work elsewhere; returns how much. */
  #leave(rank: number, amount: number): number {
    const { expertAt, carried, weight, epsilon } = this.#layer;
    const level = this.#rankLevel[rank]! - 1;
    const end = this.#start[rank + 1]!;
    let left = 0;
    for (; this.#at[rank]! < end; this.#at[rank]!++) {
      const slot = this.#shared[this.#at[rank]!]!;
      const expert = expertAt[slot]!;
      if (this.#expertLevel[expert] !== level) continue;
      if (carried[slot]! <= epsilon) continue;
      const most = Math.min((amount - left) / weight[slot]!, carried[slot]!);
      const shifted = this.#spread(expert, most, level);
      carried[slot]! -= shifted;
      left += shifted * weight[slot]!;
      if (amount - left <= epsilon) break;
    }
    return left;
  }

  /** Gives work of an expert to its copies on the next level; returns how much they took. */
  #spread(expert: number, amount: number, level: number): number {
    const { nextSlot, rankOf, carried, weight, epsilon } = this.#layer;
    let taken = 0;
    for (;;) {
      const slot = this.#slot[expert]!;
      if (slot === NONE) break;
      const rank = rankOf[slot]!;
      if (this.#rankLevel[rank] === level) {
        const most = (amount - taken) * weight[slot]!;
        const shifted = this.#arrive(rank, most) / weight[slot]!;
        carried[slot]! += shifted;
        taken += shifted;
        if (amount - taken <= epsilon) break;
      }
      this.#slot[expert] = nextSlot[slot]!;
    }
    return taken;
  }

  /** A rank takes work if it has room, else passes on as much of its own. */
  #arrive(rank: number, amount: number): number {
    const { load, capacity, epsilon } = this.#layer;
    const room = capacity[rank]! - load[rank]!;
    if (room <= epsilon) return this.#leave(rank, amount);
    const taken = Math.min(amount, room);
    load[rank]! += taken;
    return taken;
  }
}
