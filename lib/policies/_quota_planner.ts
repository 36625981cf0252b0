/**
 * Planning layers with redundant experts as sinks.
 *
 * @module
 */
import { gatherWork } from "./_activation.ts";
import { carryActive } from "./_carry.ts";
import { FirstPlacement } from "./_first_placement.ts";
import type { PolicyJob } from "./_job.ts";
import { noiseFloor } from "./_noise.ts";
import type { RankObjective } from "./_rank_cost.ts";
import { restoreLost } from "./_restore.ts";
import { SlotMoves } from "./_slot_moves.ts";
import { type SparedCopies, spareCopies } from "./_spare_copies.ts";
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

/** Layers become no cheaper than this part of their cost: less could be rounding. */
const ROUNDING = 1e-8;

/** Plans layers one after the other; memory is used again for each. */
export class QuotaPlanner {
  readonly #job: PolicyJob;
  readonly #objective: RankObjective;
  readonly #limits: QuotaLimits;
  readonly #layer: SplitLayer;
  readonly #flow: TokenFlow;
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
   * @param limits What is to be reached.
   */
  constructor(job: PolicyJob, objective: RankObjective, limits: QuotaLimits) {
    this.#job = job;
    this.#objective = objective;
    this.#limits = limits;
    this.#layer = new SplitLayer(job, objective);
    this.#flow = new TokenFlow(this.#layer);
    this.#moves = new SlotMoves(this.#layer, this.#flow, limits);
    this.#first = new FirstPlacement(job, objective);
    this.#previous = new Int32Array(job.slots);
    this.#best = new Int32Array(job.slots);
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
    this.#layer.start(row, layer);
    if (restoreLost(this.#layer)) this.#layer.write(row);
  }

  /**
   * Splits the tokens of a layer as evenly as its copies allow.
   *
   * @param row Expert of each slot, [slots].
   * @param layer The layer.
   * @returns Cost of the busiest rank.
   */
  resplit(row: Int32Array, layer: number): number {
    this.#layer.start(row, layer);
    return this.#flow.settle();
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
    let cost = this.resplit(row, layer);
    const target = this.#target();
    // Each round, and the split, depend on the row alone and not on the way that led to it. So
    // planning again on the same load finds what the last round found: nothing.
    while (cost > target * (1 + ROUNDING)) {
      this.#previous.set(row);
      if (!this.#improve(row, layer, { cost, target })) break;
      const next = this.resplit(row, layer);
      if (!(next < cost * (1 - ROUNDING))) {
        row.set(this.#previous);
        return this.resplit(row, layer);
      }
      cost = next;
    }
    return cost;
  }

  /**
   * Writes the shares of the layer that was split last.
   *
   * @param shares Share of its expert's tokens that each slot takes, [slots]; written.
   */
  share(shares: Float64Array): void {
    if (this.#objective.expertCost > 0) {
      gatherWork(this.#layer, this.#objective);
    }
    writeShares(this.#layer, shares);
  }

  /**
   * Tries what a layer costs with ever fewer redundant copies: those go first that carry least.
   *
   * @param row Expert of each slot, [slots].
   * @param layer The layer.
   * @returns The copies in the order in which they can be spared.
   */
  spare(row: Int32Array, layer: number): SparedCopies {
    this.resplit(row, layer);
    return spareCopies(this.#layer, this.#flow);
  }

  /** What a rank of the layer may cost before slots move. */
  #target(): number {
    const { ideal, ranks, tokens } = this.#layer;
    const { tolerance, noise } = this.#limits;
    return ideal *
      Math.max(1 + tolerance, noiseFloor(tokens, { ranks, noise }));
  }

  /**
   * Looks for moves that reach the target, else the lowest threshold between it and today's cost.
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
    const before = this.#before(layer);
    if (this.#moves.reach(target, before)) {
      this.#layer.write(row);
      return true;
    }
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
    const gain = WORTHWHILE * (target - this.#layer.ideal);
    if (best < cost * (1 - ROUNDING) && best <= cost - gain) {
      row.set(this.#best);
      return true;
    }
    this.resplit(row, layer);
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
