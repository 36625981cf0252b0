/**
 * The default placement policy: primaries stay, redundant experts are sinks.
 *
 * @module
 */
import { checkInteger, show } from "../_check.ts";
import { Placement } from "../placement.ts";
import { carryLayer } from "./_carry.ts";
import { checkInput, isDense, type PolicyJob } from "./_job.ts";
import { type QuotaLimits, QuotaPlanner } from "./_quota_planner.ts";
import { rankObjective } from "./_rank_cost.ts";
import { keepBudget } from "./_redundancy_budget.ts";
import { equalShares } from "./_shares.ts";
import type { PolicyInput, PolicyPlan } from "./policy.ts";

/** Options of {@linkcode quotaPolicy}. */
export interface QuotaOptions {
  /**
   * By what part of the ideal the busiest rank may exceed it before slots of a layer move.
   *
   * @default {0.01}
   */
  readonly tolerance?: number;
  /**
   * How many standard deviations of sampling it may exceed the ideal by, if that is more: no layer
   * is chased below an imbalance of 1 + noise · √(active ranks ÷ tokens of the layer).
   *
   * @default {1}
   */
  readonly noise?: number;
  /**
   * The most slots of a layer that may change. Experts that no active rank holds are restored in
   * any case, and count. Without a current placement nothing is limited.
   *
   * @default {Infinity}
   */
  readonly maxMoves?: number;
  /**
   * Whether two primaries may change places where that gains more for each slot than a copy does.
   *
   * @default {true}
   */
  readonly movePrimaries?: boolean;
  /**
   * Redundant slots that all layers with tokens may fill together. They go to the layers that are
   * least even without them; what is left of the slots of each rank stays empty.
   *
   * @default {all there are}
   */
  readonly redundantSlots?: number;
}

/**
 * Balances with as few moves as it can: primaries stay, and redundant experts take what is too
 * much for their ranks.
 *
 * Replicas of an expert share its tokens unequally. For each layer with tokens:
 *
 * 1. The tokens are split anew over the copies that are there, which moves no bytes, by a maximum
 *    flow that makes the cost of the busiest rank as low as these copies allow.
 * 2. If that is above the tolerance and above what sampling explains, copies are added, the one
 *    first that takes most from ranks that have too much: in empty slots and over redundant copies
 *    that carry less than that. Where it gains more for each slot that moves, two primaries change
 *    places. After every move, the split is made anew.
 * 3. If the target cannot be reached, the lowest threshold that can be is found by bisection.
 *
 * Without a current placement, primaries are packed with equal numbers on all ranks, the hottest
 * experts get the redundant slots, and each expert stays on one node (each of the `groups`, if
 * they divide evenly over the nodes). Later copies prefer the node of their primary.
 *
 * The primary of an expert is its copy in the lowest place among the slots of its rank. Redundant
 * experts are put behind primaries on each rank, so primaries stay what they are. The plan depends
 * on the load and the current placement alone, and planning again on the same load from a result
 * that `maxMoves` did not cut short moves nothing.
 *
 * With `expertCost`, an expert counts as activated once while moves are looked for; then copies
 * that carry little give it to others. With `crossNodeCost`, the split is not quite the best, but
 * the busiest rank costs at most 1 + `crossNodeCost` times the least.
 *
 * @param input What to decide from.
 * @param options How much may move, and for what.
 * @returns The placement and the shares.
 * @throws {RangeError} If the sizes do not fit together, a load is negative or not finite, the
 * active ranks have fewer slots than there are experts, or an option or the objective is out of
 * range.
 *
 * @example
 * ```ts
 * import { Placement, quotaPolicy, Topology } from "@eplb/eplb";
 * import { assertEquals } from "@std/assert";
 *
 * // Two ranks of three slots; 90 and 30 tokens.
 * const { placement, shares } = quotaPolicy({
 *   load: new Float64Array([50, 40, 10, 20]),
 *   experts: 4,
 *   topology: Topology.uniform({ ranks: 2, nodes: 1 }),
 *   slotsPerRank: 3,
 *   current: Placement.from([[0, 1, -1, 2, 3, -1]], { ranks: 2 }),
 * }, { noise: 0 });
 * // Rank 1 takes a copy of expert 0, and three fifths of its tokens.
 * assertEquals([...placement.physicalToLogical], [0, 1, -1, 2, 3, 0]);
 * assertEquals([...shares], [0.4, 1, 0, 1, 1, 0.6]);
 * ```
 */
export function quotaPolicy(
  input: PolicyInput,
  options: QuotaOptions = {},
): PolicyPlan {
  const job = checkInput(input);
  const objective = rankObjective(input.objective ?? {}, job.ranks);
  const limits = checkLimits(options);
  const budget = checkBudget(options);
  const planner = new QuotaPlanner(job, objective, limits);
  const map = startingMap(job, planner);
  const shares = equalSharesOfDense(map, job);
  if (budget === Infinity) {
    for (const layer of layersWithTokens(job)) {
      planner.balance(rowOf(map, job, layer), layer);
      planner.share(rowOf(shares, job, layer));
    }
  } else {
    planWithin(budget, { map, job, planner, limits });
    for (const layer of layersWithTokens(job)) {
      planner.resplit(rowOf(map, job, layer), layer);
      planner.share(rowOf(shares, job, layer));
    }
  }
  return { placement: Placement.from(map, job), shares };
}
