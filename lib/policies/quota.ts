// SPDX-License-Identifier: Apache-2.0

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
import { type BudgetedLayer, keepBudget } from "./_redundancy_budget.ts";
import { Splitter } from "./_splitter.ts";
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
 * 3. If the target cannot be reached, what was reached becomes the threshold, and moves are looked
 *    for anew, so that none is made in vain.
 *
 * Without a current placement, primaries are packed with equal numbers on all ranks, the hottest
 * experts get the redundant slots, and each expert stays on one node (each of the `groups`, if
 * they divide evenly over the nodes). Later copies prefer the node of their primary.
 *
 * The primary of an expert is its copy in the lowest place among the slots of its rank. Here each
 * rank has its redundant experts behind its primaries, so primaries stay what they are; in a
 * placement made elsewhere, a new copy may come first and be the primary from then on.
 *
 * The plan depends on the load and the current placement alone, and planning again on the same
 * load from a result that `maxMoves` did not cut short moves nothing.
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
  const budget = checkBudget(options);
  const limits = { ...checkLimits(options), fill: budget === Infinity };
  const splitter = new Splitter(job, objective);
  const planner = new QuotaPlanner(job, objective, { splitter, limits });
  const map = startingMap(job, planner);
  if (budget !== Infinity) planWithin(budget, { map, job, planner, limits });
  const shares = new Float64Array(map.length);
  for (let layer = 0; layer < job.layers; layer++) {
    const row = rowOf(map, job, layer);
    if (budget === Infinity && !isDense(job, layer)) {
      planner.balance(row, layer);
    } else splitter.split(row, layer);
    splitter.share(rowOf(shares, job, layer));
  }
  return { placement: Placement.from(map, job), shares };
}

/** What a plan starts from: today's slots of active ranks, or a first placement. */
function startingMap(job: PolicyJob, planner: QuotaPlanner): Int32Array {
  const map = new Int32Array(job.layers * job.slots).fill(-1);
  for (let layer = 0; layer < job.layers; layer++) {
    const row = rowOf(map, job, layer);
    if (isDense(job, layer)) carryLayer(row, job, layer);
    else planner.begin(row, layer);
  }
  return map;
}

/**
 * Plans layers so that all together keep to a number of redundant slots.
 *
 * Each round balances every layer and then drops the copies that pay least. A round must gain
 * enough over the map before it, so planning again from the result changes nothing.
 */
function planWithin(
  budget: number,
  context: {
    readonly map: Int32Array;
    readonly job: PolicyJob;
    readonly planner: QuotaPlanner;
    readonly limits: QuotaLimits;
  },
): void {
  const { map, job, planner, limits } = context;
  const layers = layersWithTokens(job);
  const plan = (layer: number, next: Int32Array): BudgetedLayer => {
    const row = rowOf(next, job, layer);
    return { row, spared: planner.spare(row, layer) };
  };
  const today = layers.map((layer) => plan(layer, map));
  const kept = today.reduce((sum, { spared }) => sum + spared.slots.length, 0);
  let imbalance = job.current !== undefined && kept <= budget
    ? today.reduce((sum, { spared }) => sum + spared.imbalance[0]!, 0)
    : Infinity;
  const gain = layers.length * Math.max(limits.tolerance / 4, 1e-9);
  for (;;) {
    const next = map.slice();
    const budgeted = layers.map((layer) => {
      planner.balance(rowOf(next, job, layer), layer);
      return plan(layer, next);
    });
    const gone = keepBudget(budgeted, budget);
    const reached = budgeted.reduce(
      (sum, { spared }, i) => sum + spared.imbalance[gone[i]!]!,
      0,
    );
    if (!(reached < imbalance - gain)) return;
    imbalance = reached;
    map.set(next);
  }
}

function layersWithTokens(job: PolicyJob): number[] {
  return [...Array(job.layers).keys()].filter((layer) => !isDense(job, layer));
}

function rowOf<T extends Int32Array | Float64Array>(
  table: T,
  { slots }: PolicyJob,
  layer: number,
): T {
  return table.subarray(layer * slots, (layer + 1) * slots) as T;
}

function checkLimits(options: QuotaOptions): Omit<QuotaLimits, "fill"> {
  const { tolerance = 0.01, noise = 1, maxMoves = Infinity } = options;
  for (const [name, value] of Object.entries({ tolerance, noise })) {
    if (!(value >= 0 && value < Infinity)) {
      throw new RangeError(
        `Cannot place experts: ${name} must be non-negative and finite, it is ${
          show(value)
        }`,
      );
    }
  }
  checkCount("maxMoves", maxMoves);
  return {
    tolerance,
    noise,
    maxMoves,
    movePrimaries: options.movePrimaries ?? true,
  };
}

function checkBudget({ redundantSlots = Infinity }: QuotaOptions): number {
  checkCount("redundantSlots", redundantSlots);
  return redundantSlots;
}

function checkCount(name: string, value: number): void {
  if (value === Infinity) return;
  checkInteger(value, { action: "place experts", name, min: 0 });
}
