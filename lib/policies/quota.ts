/**
 * The default placement policy: primaries stay, redundant experts are sinks.
 *
 * @module
 */
import { checkInteger, show } from "../_check.ts";
import { Placement } from "../placement.ts";
import { carryLayer } from "./_carry.ts";
import { checkInput, isDense } from "./_job.ts";
import { type QuotaLimits, QuotaPlanner } from "./_quota_planner.ts";
import { rankObjective } from "./_rank_cost.ts";
import { equalShares } from "./_shares.ts";
import type { PolicyInput, PolicyPlan } from "./policy.ts";

/** Options of {@linkcode quotaPolicy}. */
export interface QuotaOptions {
  /**
   * By what part of the mean the busiest rank may exceed it before slots move.
   *
   * @default {0.01}
   */
  readonly tolerance?: number;
  /**
   * How many standard deviations of sampling it may exceed the mean by: layers are not balanced
   * better than 1 + noise · √(active ranks ÷ tokens of the layer).
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
   * Whether two primaries may change places where that gains more for each slot than a copy.
   *
   * @default {true}
   */
  readonly movePrimaries?: boolean;
}

export function quotaPolicy(
  input: PolicyInput,
  options: QuotaOptions = {},
): PolicyPlan {
  const job = checkInput(input);
  const objective = rankObjective(input.objective ?? {}, job.ranks);
  const planner = new QuotaPlanner(job, objective, checkOptions(options));
  const { layers, slots } = job;
  const map = new Int32Array(layers * slots).fill(-1);
  const shares = new Float64Array(layers * slots);
  for (let layer = 0; layer < layers; layer++) {
    const row = map.subarray(layer * slots, (layer + 1) * slots);
    if (isDense(job, layer)) {
      carryLayer(row, job, layer);
      continue;
    }
    planner.plan(
      row,
      layer,
      shares.subarray(layer * slots, (layer + 1) * slots),
    );
  }
  const placement = Placement.from(map, job);
  const even = equalShares(placement);
  for (let layer = 0; layer < layers; layer++) {
    if (!isDense(job, layer)) continue;
    const [begin, end] = [layer * slots, (layer + 1) * slots];
    shares.set(even.subarray(begin, end), begin);
  }
  return { placement, shares };
}

function checkOptions(options: QuotaOptions): QuotaLimits {
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
  if (maxMoves !== Infinity) {
    checkInteger(maxMoves, {
      action: "place experts",
      name: "maxMoves",
      min: 0,
    });
  }
  const { movePrimaries = true } = options;
  return { tolerance, noise, maxMoves, movePrimaries };
}
