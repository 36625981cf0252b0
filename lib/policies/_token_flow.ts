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

/** Rounds of levelling before a flow; more cost more than they save. */
const ROUNDS = 8;

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
  /** Place and slot at which the search for a path goes on, [ranks] and [experts]. */
  readonly #place: Int32Array;
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
    this.#place = new Int32Array(layer.ranks);
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
    while (this.#measure()) {
      this.#place.fill(0);
      this.#slot.set(this.#layer.firstSlot);
      for (let rank = 0; rank < ranks; rank++) {
        if (this.#rankLevel[rank] !== 0) continue;
        const excess = load[rank]! - capacity[rank]!;
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
    for (let i = 0; i < ROUNDS; i++) this.#level();
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

  /** Levels each redundant copy with its primary: cheap, and most of the way to a good split. */
  #level(): void {
    const { slots, expertAt, primary, rankOf, load, speed, carried, weight } =
      this.#layer;
    for (let slot = 0; slot < slots; slot++) {
      const expert = expertAt[slot]!;
      if (expert < 0 || primary[expert] === slot || weight[slot] !== 1) continue;
      const home = primary[expert]!;
      const [a, b] = [rankOf[home]!, rankOf[slot]!];
      const [paceA, paceB] = [1 / speed[a]!, 1 / speed[b]!];
      const even = (load[a]! * paceA - load[b]! * paceB) / (paceA + paceB);
      const shift = Math.max(-carried[slot]!, Math.min(carried[home]!, even));
      carried[home]! -= shift;
      load[a]! -= shift;
      carried[slot]! += shift;
      load[b]! += shift;
    }
  }

  /** Mean cost of the ranks that the last search for a way has reached. */
  #bottleneck(): number {
    const { load, speed, ranks } = this.#layer;
    let work = 0;
    let speeds = 0;
    for (let rank = 0; rank < ranks; rank++) {
      if (this.#rankLevel[rank] === UNSEEN) continue;
      work += load[rank]!;
      speeds += speed[rank]!;
    }
    return work / speeds;
  }

  /** Measures how far each rank is from those with too much; false if none with room is reached. */
  #measure(): boolean {
    const { load, capacity, ranks, epsilon } = this.#layer;
    const { expertAt, carried, copies, slotsPerRank } = this.#layer;
    const levels = this.#rankLevel.fill(UNSEEN);
    this.#expertLevel.fill(UNSEEN);
    const queue = this.#queue;
    let queued = 0;
    for (let rank = 0; rank < ranks; rank++) {
      if (load[rank]! - capacity[rank]! <= epsilon) continue;
      levels[rank] = 0;
      queue[queued++] = rank;
    }
    let last = Infinity;
    for (let i = 0; i < queued; i++) {
      const rank = queue[i]!;
      const level = levels[rank]!;
      if (level >= last) break;
      const end = (rank + 1) * slotsPerRank;
      for (let slot = rank * slotsPerRank; slot < end; slot++) {
        const expert = expertAt[slot]!;
        if (expert < 0 || copies[expert]! < 2) continue;
        if (this.#expertLevel[expert] !== UNSEEN) continue;
        if (carried[slot]! <= epsilon) continue;
        this.#expertLevel[expert] = level;
        const before = queued;
        queued = this.#reach(expert, level + 1, queued);
        for (let j = before; j < queued; j++) {
          const next = queue[j]!;
          if (capacity[next]! - load[next]! > epsilon) last = level + 1;
        }
      }
    }
    return last !== Infinity;
  }

  /** Queues the ranks that hold an expert and were not reached. */
  #reach(expert: number, level: number, queued: number): number {
    const { nextSlot, rankOf } = this.#layer;
    let slot = this.#layer.firstSlot[expert]!;
    for (; slot !== NONE; slot = nextSlot[slot]!) {
      const rank = rankOf[slot]!;
      if (this.#rankLevel[rank] !== UNSEEN) continue;
      this.#rankLevel[rank] = level;
      this.#queue[queued++] = rank;
    }
    return queued;
  }

  /** Shifts up to that much of a rank's work elsewhere; returns how much. */
  #leave(rank: number, amount: number): number {
    const { expertAt, carried, weight, slotsPerRank, epsilon } = this.#layer;
    const level = this.#rankLevel[rank]!;
    let left = 0;
    for (; this.#place[rank]! < slotsPerRank; this.#place[rank]!++) {
      const slot = rank * slotsPerRank + this.#place[rank]!;
      const expert = expertAt[slot]!;
      if (expert < 0 || this.#expertLevel[expert] !== level) continue;
      if (carried[slot]! <= epsilon) continue;
      const most = Math.min((amount - left) / weight[slot]!, carried[slot]!);
      const shifted = this.#spread(expert, most, level + 1);
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
