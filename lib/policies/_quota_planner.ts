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
import { SlotMoves } from "./_slot_moves.ts";
import { SplitLayer } from "./_split_layer.ts";
import { TokenFlow } from "./_token_flow.ts";

/** How often a threshold that cannot be reached is halved toward one that can. */
const HALVINGS = 5;

/** Part of the room between ideal and target that moves must gain if they miss the target. */
const WORTHWHILE = 1 / 4;

/** Smaller shares than this are rounding. */
const SMALLEST_SHARE = 1e-9;

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
}

/** Plans layers one after the other; memory is used again for each. */
export class QuotaPlanner {
  readonly #job: PolicyJob;
  readonly #limits: QuotaLimits;
  readonly #layer: SplitLayer;
  readonly #flow: TokenFlow;
  readonly #moves: SlotMoves;
  readonly #first: FirstPlacement | undefined;
  /** The best row of those tried, [slots]. */
  readonly #best: Int32Array;

  /**
   * Prepares for a job.
   *
   * @param job What is planned.
   * @param objective What is balanced.
   * @param limits What is to be reached.
   */
  constructor(job: PolicyJob, objective: RankObjective, limits: QuotaLimits) {
    this.#job = job;
    this.#limits = limits;
    this.#layer = new SplitLayer(job, objective);
    this.#flow = new TokenFlow(this.#layer);
    const maxMoves = job.current === undefined ? Infinity : limits.maxMoves;
    this.#moves = new SlotMoves(this.#layer, this.#flow, {
      ...limits,
      maxMoves,
    });
    this.#first = job.current === undefined
      ? new FirstPlacement(job, objective)
      : undefined;
    this.#best = new Int32Array(job.slots);
  }

  /**
   * Plans a layer with tokens.
   *
   * @param row Expert of each slot, [slots]; -1 everywhere, and the plan after the call.
   * @param layer The layer.
   * @param shares Share of its expert's tokens that each slot takes, [slots]; written.
   */
  plan(row: Int32Array, layer: number, shares: Float64Array): void {
    if (this.#first === undefined) carryActive(row, this.#job, layer);
    else this.#first.place(row, layer);
    this.#layer.start(row, layer);
    if (restoreLost(this.#layer)) {
      this.#layer.write(row);
      this.#layer.start(row, layer);
    }
    let cost = this.#flow.settle();
    const target = this.#target();
    // Each round depends on the row alone, so planning again from its end finds no other one.
    while (cost > target && this.#improve(row, layer, { cost, target })) {
      // The split depends on the row alone too, not on the way that led to it.
      this.#layer.start(row, layer);
      cost = this.#flow.settle();
    }
    writeShares(this.#layer, shares);
  }

  /**
   * Splits the tokens of a layer over its copies.
   *
   * @param row Expert of each slot, [slots].
   * @param layer The layer.
   * @param shares Share of its expert's tokens that each slot takes, [slots]; written.
   */
  split(row: Int32Array, layer: number, shares: Float64Array): void {
    this.#layer.start(row, layer);
    this.#flow.settle();
    writeShares(this.#layer, shares);
  }

  #target(): number {
    const { ideal, ranks, tokens } = this.#layer;
    const { tolerance, noise } = this.#limits;
    return ideal *
      Math.max(1 + tolerance, noiseFloor(tokens, { ranks, noise }));
  }

  /**
   * Looks for moves that reach the target, else the lowest threshold between it and today's cost.
   *
   * @returns True if there are moves that gain enough; the row then has them, else is untouched
   * and the layer as it started.
   */
  #improve(
    row: Int32Array,
    layer: number,
    goal: { readonly cost: number; readonly target: number },
  ): boolean {
    const { cost, target } = goal;
    const before = this.#before(layer);
    if (this.#moves.reach(target, before)) {
      this.#layer.write(row);
      return true;
    }
    const gain = Math.max(
      WORTHWHILE * (target - this.#layer.ideal),
      SMALLEST_SHARE * cost,
    );
    let best = this.#flow.settle();
    this.#layer.write(this.#best);
    let low = target;
    for (let i = 0; i < HALVINGS; i++) {
      const middle = (low + Math.min(best, cost)) / 2;
      this.#layer.start(row, layer);
      const reached = this.#moves.reach(middle, before);
      const highest = this.#flow.settle();
      if (highest < best) {
        best = highest;
        this.#layer.write(this.#best);
      }
      if (!reached) low = middle;
    }
    if (best <= cost - gain) {
      row.set(this.#best);
      return true;
    }
    this.#layer.start(row, layer);
    this.#flow.settle();
    return false;
  }

  #before(layer: number): Int32Array | undefined {
    const { slots, current } = this.#job;
    return current?.physicalToLogical.subarray(
      layer * slots,
      (layer + 1) * slots,
    );
  }
}

/** Turns what the slots carry into shares; experts without work share alike. */
function writeShares(layer: SplitLayer, shares: Float64Array): void {
  const { ranks, slotsPerRank, rankAt, expertAt, copies, work } = layer;
  for (let rank = 0; rank < ranks; rank++) {
    for (let i = 0; i < slotsPerRank; i++) {
      const slot = rank * slotsPerRank + i;
      const expert = expertAt[slot]!;
      if (expert < 0) continue;
      const to = rankAt[rank]! * slotsPerRank + i;
      if (copies[expert] === 1) shares[to] = 1;
      else if (work[expert] === 0) shares[to] = 1 / copies[expert]!;
      else shares[to] = shareOf(layer, slot);
    }
  }
}

function shareOf(layer: SplitLayer, slot: number): number {
  const { carried, firstSlot, nextSlot, expertAt, work } = layer;
  const expert = expertAt[slot]!;
  const least = work[expert]! * SMALLEST_SHARE;
  if (carried[slot]! < least) return 0;
  let sum = 0;
  for (let at = firstSlot[expert]!; at >= 0; at = nextSlot[at]!) {
    if (carried[at]! >= least) sum += carried[at]!;
  }
  return carried[slot]! / sum;
}
