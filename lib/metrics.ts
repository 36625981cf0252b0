// SPDX-License-Identifier: Apache-2.0

/**
 * How well a placement spreads a load.
 *
 * @module
 */
import { checkInteger } from "./_check.ts";
import type { Placement } from "./placement.ts";
import {
  imbalanceOf,
  rankCosts,
  rankObjective,
} from "./policies/_rank_cost.ts";
import type { Objective } from "./policies/objective.ts";
import type { Topology } from "./topology.ts";

/** Options of {@linkcode balancedness}. */
export interface BalancednessOptions {
  /**
   * Share of its expert's tokens that each slot takes, [layers, slots], row
   * major; the shares of one expert's replicas add up to 1. Empty slots are not
   * looked at.
   *
   * @default {equal shares}
   */
  readonly shares?: Float32Array | Float64Array;
}

/** Result of {@linkcode balancedness}. */
export interface Balancedness {
  /** Balancedness of each layer, [layers], in (0, 1]. */
  readonly layers: Float64Array;
  /** Mean over the layers, in (0, 1]. */
  readonly mean: number;
}

/** Options of {@linkcode imbalance}. */
export interface ImbalanceOptions {
  /**
   * Share of its expert's tokens that each slot takes, [layers, slots], row
   * major; the shares of one expert's replicas add up to 1. Empty slots are not
   * looked at.
   *
   * @default {equal shares}
   */
  readonly shares?: Float32Array | Float64Array;
  /**
   * Ranks that may hold experts.
   *
   * @default {all ranks}
   */
  readonly active?: readonly number[];
  /**
   * What is balanced.
   *
   * @default {tokens}
   */
  readonly objective?: Objective;
  /**
   * Which rank is on which node; it matters if the objective has a
   * `crossNodeCost`.
   *
   * @default {all on one node}
   */
  readonly topology?: Topology;
}

/** Result of {@linkcode imbalance}. */
export interface Imbalance {
  /** Imbalance of each layer, [layers], from 1; 1 for layers without load. */
  readonly layers: Float64Array;
  /** Mean over the layers with load, from 1. */
  readonly mean: number;
  /** Highest of all layers, from 1. */
  readonly max: number;
}

/** How far the shares of one expert may miss 1: float32 rounding of many replicas. */
const SHARE_TOLERANCE = 1e-4;

/**
 * Mean rank load over maximum rank load, layer by layer.
 *
 * A rank's load is the sum, over its slots, of what the slot takes of its
 * expert's tokens. 1 is perfect balance, 1 ÷ ranks is everything on one rank; a
 * layer without any load counts as 1.
 *
 * @param load Tokens per logical expert, [layers, experts], row major.
 * @param placement Where the experts are.
 * @param options Shares of the replicas, if they are unequal.
 * @returns Balancedness of each layer, and their mean.
 * @throws {RangeError} If sizes do not fit the placement, if a load is negative
 * or not finite, or if shares are not between 0 and 1 or those of an expert do
 * not add up to 1.
 *
 * @example
 * ```ts
 * import { balancedness, Placement } from "@eplb/eplb";
 * import { assertEquals } from "@std/assert";
 *
 * const placement = Placement.from([[0, 1, 0, 2]], { ranks: 2 });
 * const load = new Float64Array([40, 10, 30]);
 * // Rank 0 takes 40 / 2 + 10, rank 1 takes 40 / 2 + 30.
 * assertEquals(balancedness(load, placement).mean, 40 / 50);
 * ```
 */
export function balancedness(
  load: Float64Array | Int32Array,
  placement: Placement,
  options: BalancednessOptions = {},
): Balancedness {
  const { shares } = options;
  checkLoad(load, placement, "balancedness");
  if (shares !== undefined) checkShares(shares, placement, "balancedness");
  const layers = new Float64Array(placement.layers);
  for (let layer = 0; layer < layers.length; layer++) {
    layers[layer] = balance(rankLoads(load, placement, { layer, shares }));
  }
  const sum = layers.reduce((sum, value) => sum + value, 0);
  return { layers, mean: sum / layers.length };
}

/**
 * Cost of the busiest active rank as a multiple of the mean, layer by layer.
 *
 * With the default objective a rank costs what it gets of the tokens, and this
 * is the inverse of {@linkcode balancedness} over the active ranks. If ranks
 * have speeds, the mean is weighted by them: 1 is reached when all ranks take
 * the same time.
 *
 * @param load Tokens per logical expert, [layers, experts], row major.
 * @param placement Where the experts are.
 * @param options Shares, active ranks and what is balanced.
 * @returns Imbalance of each layer; mean and highest of those with load.
 * @throws {RangeError} If sizes do not fit the placement, if a load is negative
 * or not finite, if shares are not between 0 and 1 or those of an expert do not
 * add up to 1, if an active rank does not exist, or if the objective is out of
 * range.
 *
 * @example
 * ```ts
 * import { imbalance, Placement } from "@eplb/eplb";
 * import { assertEquals } from "@std/assert";
 *
 * const placement = Placement.from([[0, 1, 0, 2]], { ranks: 2 });
 * const load = new Float64Array([40, 10, 30]);
 * assertEquals(imbalance(load, placement).mean, 50 / 40);
 * const shares = new Float64Array([0.75, 1, 0.25, 1]);
 * assertEquals(imbalance(load, placement, { shares }).mean, 1);
 * ```
 */
export function imbalance(
  load: Float64Array | Int32Array,
  placement: Placement,
  options: ImbalanceOptions = {},
): Imbalance {
  const { shares, topology } = options;
  checkLoad(load, placement, "imbalance");
  if (shares !== undefined) checkShares(shares, placement, "imbalance");
  const active = checkRanks(options, placement);
  const objective = rankObjective(options.objective ?? {}, placement.ranks);
  const input = { load, placement, shares, objective, topology };
  const layers = new Float64Array(placement.layers).fill(1);
  let sum = 0;
  let counted = 0;
  for (let layer = 0; layer < layers.length; layer++) {
    const first = layer * placement.experts;
    const row = load.subarray(first, first + placement.experts);
    if (row.every((tokens) => tokens === 0)) continue;
    const costs = rankCosts(input, layer);
    layers[layer] = imbalanceOf(costs, { active, pace: objective.pace });
    sum += layers[layer]!;
    counted++;
  }
  const max = layers.reduce((a, b) => Math.max(a, b), 1);
  return { layers, mean: counted === 0 ? 1 : sum / counted, max };
}

/** Slots of the new placement that hold another expert than before. */
export function movedSlots(from: Placement, to: Placement): number {
  let moved = 0;
  to.physicalToLogical.forEach((expert, i) => {
    if (expert >= 0 && expert !== from.physicalToLogical[i]) moved++;
  });
  return moved;
}

/** The active ranks; refuses those that do not exist, and another topology. */
function checkRanks(
  { active, topology }: ImbalanceOptions,
  { ranks }: Placement,
): readonly number[] {
  const action = "measure imbalance";
  if (topology !== undefined && topology.ranks !== ranks) {
    throw new RangeError(
      `Cannot ${action}: the topology has ${topology.ranks} ranks, the placement ${ranks}`,
    );
  }
  if (active === undefined) return [...Array(ranks).keys()];
  for (const rank of active) {
    checkInteger(rank, {
      action,
      name: "an active rank",
      min: 0,
      max: ranks - 1,
    });
  }
  return active;
}

/** Tokens of each rank in one layer, [ranks]. */
export function rankLoads(
  load: Float64Array | Int32Array,
  placement: Placement,
  options: {
    readonly layer: number;
    readonly shares: Float32Array | Float64Array | undefined;
  },
): Float64Array {
  const { slots, slotsPerRank, experts, ranks } = placement;
  const { layer, shares } = options;
  const sums = new Float64Array(ranks);
  for (let slot = 0; slot < slots; slot++) {
    const expert = placement.physicalToLogical[layer * slots + slot]!;
    if (expert < 0) continue;
    const row = layer * experts + expert;
    const share = shares === undefined
      ? 1 / placement.logicalReplicaCount[row]!
      : shares[layer * slots + slot]!;
    sums[Math.floor(slot / slotsPerRank)]! += load[row]! * share;
  }
  return sums;
}

/** The largest load is divided by first, which keeps rounding from exceeding 1. */
function balance(loads: Float64Array): number {
  const max = loads.reduce((a, b) => Math.max(a, b), 0);
  if (max === 0) return 1;
  return loads.reduce((sum, value) => sum + value / max, 0) / loads.length;
}

function checkLoad(
  load: Float64Array | Int32Array,
  placement: Placement,
  measure: string,
): void {
  const { layers, experts } = placement;
  if (load.length !== layers * experts) {
    throw new RangeError(
      `Cannot measure ${measure}: load must have ${layers} layers × ${experts} experts, it has ${load.length} values`,
    );
  }
  for (const [index, tokens] of load.entries()) {
    if (!(tokens >= 0 && tokens < Infinity)) {
      throw new RangeError(
        `Cannot measure ${measure}: load of layer ${
          Math.floor(index / experts)
        }, expert ${
          index % experts
        } must be non-negative and finite, it is ${tokens}`,
      );
    }
  }
}

function checkShares(
  shares: Float32Array | Float64Array,
  placement: Placement,
  measure: string,
): void {
  const { layers, slots, experts, physicalToLogical } = placement;
  if (shares.length !== layers * slots) {
    throw new RangeError(
      `Cannot measure ${measure}: shares must have ${layers} layers × ${slots} slots, they have ${shares.length} values`,
    );
  }
  const sums = new Float64Array(layers * experts);
  for (const [index, share] of shares.entries()) {
    const expert = physicalToLogical[index]!;
    if (expert < 0) continue;
    const layer = Math.floor(index / slots);
    if (!(share >= 0 && share <= 1)) {
      throw new RangeError(
        `Cannot measure ${measure}: share of layer ${layer}, slot ${
          index % slots
        } must be between 0 and 1, it is ${share}`,
      );
    }
    sums[layer * experts + expert]! += share;
  }
  for (const [index, sum] of sums.entries()) {
    if (Math.abs(sum - 1) > SHARE_TOLERANCE) {
      throw new RangeError(
        `Cannot measure ${measure}: shares of layer ${
          Math.floor(index / experts)
        }, expert ${index % experts} must add up to 1, they add up to ${sum}`,
      );
    }
  }
}
