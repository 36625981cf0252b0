// SPDX-License-Identifier: Apache-2.0

/**
 * Planning layers with redundant experts as sinks.
 *
 * @module
 */
import { carryActive } from "./_carry.ts";
import { FirstPlacement } from "./_first_placement.ts";
import type { PolicyJob } from "./_job.ts";
import { noiseFloor } from "./_noise.ts";
import type { RankObjective } from "./_rank_cost.ts";
import { restoreLost } from "./_restore.ts";
import { LEAST_GAIN, SlotMoves } from "./_slot_moves.ts";
import { spareCopies, type SparedCopies } from "./_spare_copies.ts";
import type { Splitter } from "./_splitter.ts";

/** Part of the room between ideal and target that moves must gain if they miss the target. */
const WORTHWHILE = 1 / 4;

/** What a planner is to reach, and by what means. */
export interface QuotaLimits {
  /** Part of the ideal cost by which a rank may exceed it. */
  readonly tolerance: number;
  /** Standard deviations of sampling that a rank may exceed the ideal by. */
  readonly noise: number;
  /** The most slots of a layer that may change. */
  readonly maxMoves: number;
  /** Whether primaries may change places. */
  readonly movePrimaries: boolean;
  /** Whether a first placement fills all redundant slots, needed or not. */
  readonly fill: boolean;
}

/** Layers become no cheaper than this part of their cost: less could be rounding. */
const ROUNDING = 1e-8;

/** Plans layers one after the other; memory is used again for each. */
export class QuotaPlanner {
  readonly #job: PolicyJob;
  readonly #limits: QuotaLimits;
  readonly #splitter: Splitter;
  readonly #moves: SlotMoves;
  readonly #first: FirstPlacement;
  /** The row before a round, and the best of those tried in it, [slots]. */
  readonly #previous: Int32Array;
  readonly #best: Int32Array;

  /**
   * Prepares for a job.
   *
   * @param job What is planned.
   * @param objective What is balanced.
   * @param options What splits its layers, and what is to be reached.
   */
  constructor(
    job: PolicyJob,
    objective: RankObjective,
    { splitter, limits }: {
      readonly splitter: Splitter;
      readonly limits: QuotaLimits;
    },
  ) {
    this.#job = job;
    this.#limits = limits;
    this.#splitter = splitter;
    const { layer, flow } = this.#splitter;
    this.#moves = new SlotMoves(layer, flow, limits);
    this.#first = new FirstPlacement(job, objective, limits);
    this.#previous = new Int32Array(job.slots);
    // Slots of inactive ranks are never written.
    this.#best = new Int32Array(job.slots).fill(-1);
  }

  /**
   * Fills a row with what a layer's plan starts from: today's slots of active ranks and what was
   * lost with others, or a first placement.
   *
   * @param row Expert of each slot, [slots]; -1 everywhere.
   * @param layer The layer.
   */
  begin(row: Int32Array, layer: number): void {
    const { current, active, ranks } = this.#job;
    if (current === undefined) {
      this.#first.place(row, layer);
      return;
    }
    carryActive(row, this.#job, layer);
    if (active.length === ranks) return;
    this.#splitter.layer.start(row, layer);
    if (restoreLost(this.#splitter.layer)) this.#splitter.layer.write(row);
  }

  /**
   * Moves slots of a layer until it costs no more than its target or no move is worth it, and
   * splits its tokens.
   *
   * @param row Expert of each slot, [slots]; changed in place.
   * @param layer The layer.
   * @returns Cost of the busiest rank.
   */
  balance(row: Int32Array, layer: number): number {
    let cost = this.#splitter.split(row, layer);
    const target = this.#target();
    // Each round, and the split, depend on the row alone and not on the way that led to it. So
    // planning again on the same load finds what the last round found: nothing.
    while (cost > target * (1 + ROUNDING)) {
      this.#previous.set(row);
      if (!this.#improve(row, layer, { cost, target })) break;
      const next = this.#splitter.split(row, layer);
      if (!(next < cost * (1 - ROUNDING))) {
        row.set(this.#previous);
        return this.#splitter.split(row, layer);
      }
      cost = next;
    }
    return cost;
  }

  /**
   * Tries what a layer costs with ever fewer redundant copies: those go first that carry least.
   *
   * @param row Expert of each slot, [slots].
   * @param layer The layer.
   * @returns The copies in the order in which they can be spared.
   */
  spare(row: Int32Array, layer: number): SparedCopies {
    this.#splitter.split(row, layer);
    return spareCopies(this.#splitter.layer, this.#splitter.flow);
  }

  /** What a rank of the layer may cost before slots move. */
  #target(): number {
    const { ideal, ranks, tokens } = this.#splitter.layer;
    const { tolerance, noise } = this.#limits;
    return ideal *
      Math.max(1 + tolerance, noiseFloor(tokens, { ranks, noise }));
  }

  /**
   * Looks for moves that reach the target. If they miss it, many of them may have been in vain: so
   * what they have come to becomes the threshold, and moves are looked for anew.
   *
   * @returns True if there are moves that gain enough; the row then has them, else it is as it was
   * and the layer split again.
   */
  #improve(
    row: Int32Array,
    layer: number,
    goal: { readonly cost: number; readonly target: number },
  ): boolean {
    const { cost, target } = goal;
    const { ideal } = this.#splitter.layer;
    // A little below the target, as what is left may be too little for a move.
    const missed = this.#reach(target - LEAST_GAIN * (target - ideal), layer);
    this.#splitter.layer.write(this.#best);
    if (missed > target) {
      const gain = Math.max(WORTHWHILE * (target - ideal), ROUNDING * cost);
      if (missed > cost - gain) {
        this.#splitter.split(row, layer);
        return false;
      }
      this.#splitter.layer.start(row, layer);
      const again = this.#reach(missed + gain / 2, layer);
      if (again <= missed + gain && again <= cost - gain) {
        this.#splitter.layer.write(this.#best);
      }
    }
    row.set(this.#best);
    return true;
  }

  /** Moves slots toward a threshold; returns the cost of the busiest rank, or a bound of it. */
  #reach(threshold: number, layer: number): number {
    const { current, slots } = this.#job;
    const before = current?.physicalToLogical
      .subarray(layer * slots, (layer + 1) * slots);
    return this.#moves.reach(threshold, before)
      ? threshold
      : this.#splitter.flow.settle();
  }
}
