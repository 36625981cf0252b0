// SPDX-License-Identifier: Apache-2.0

/**
 * Keeping the parts of a plan that save more time than they cost.
 *
 * @module
 */
import { checkInteger, show } from "../_check.ts";
import { shapeOf } from "../_physical_map.ts";
import { planMigration } from "../migration/plan.ts";
import { lowerBoundSeconds, traffic } from "../migration/traffic.ts";
import { Placement } from "../placement.ts";
import { carryActive } from "./_carry.ts";
import { checkInput, isDense, type PolicyJob } from "./_job.ts";
import { noiseFloor } from "./_noise.ts";
import {
  imbalanceOf,
  rankCosts,
  type RankObjective,
  rankObjective,
} from "./_rank_cost.ts";
import { lostExpert } from "./_restore.ts";
import { Splitter } from "./_splitter.ts";
import type { PolicyInput, PolicyPlan } from "./policy.ts";

/** Options of {@linkcode gatePlan}. */
export interface GateOptions {
  /** Bytes of one expert in one layer, all tensors together. */
  readonly expertBytes: number;
  /** Seconds that a rank takes for one unit of the objective's cost; by default, for one token. */
  readonly secondsPerCost: number;
  /** Steps of the model that the new placement will serve. */
  readonly horizonSteps: number;
  /**
   * Steps of the model that the load was counted in.
   *
   * @default {1}
   */
  readonly windowSteps?: number;
  /**
   * How many standard deviations of sampling an imbalance may be and still be noise.
   *
   * @default {1}
   */
  readonly noise?: number;
}

/**
 * Why the gate lets a layer through or not:
 *
 * | reason | accepted | what it means |
 * | --- | --- | --- |
 * | `unchanged` | yes | no slot gets another expert |
 * | `first` | yes | nothing was placed before |
 * | `restore` | yes | no active rank holds one of the experts today |
 * | `pays` | yes | the time saved is longer than the move takes |
 * | `rates-unknown` | yes | there is a gain, but how long the move takes is not known |
 * | `noise` | no | today's map, split anew, is as even as sampling allows |
 * | `no-gain` | no | the busiest rank would not cost less |
 * | `costs-more` | no | the move takes longer than it saves |
 */
export type GateReason =
  | "unchanged"
  | "first"
  | "restore"
  | "pays"
  | "rates-unknown"
  | "noise"
  | "no-gain"
  | "costs-more";

/** What the gate decided about one layer. */
export interface GateDecision {
  /** The layer. */
  readonly layer: number;
  /** Whether the layer is as planned; else it keeps today's map, split anew. */
  readonly accepted: boolean;
  /** Why. */
  readonly reason: GateReason;
  /** Seconds that the busiest rank saves over the horizon; 0 if there is no map of today to keep. */
  readonly gainSeconds: number;
  /** Seconds that moving takes at least; undefined if the rate of a link in use is unknown. */
  readonly moveSeconds: number | undefined;
  /** Imbalance of today's map, split anew; undefined if there is none to keep. */
  readonly staleImbalance: number | undefined;
  /** Imbalance of the plan. */
  readonly newImbalance: number;
  /** Slots that get another expert. */
  readonly movedSlots: number;
}

/** A plan of which only the layers that are worth it are left. */
export interface GatedPlan extends PolicyPlan {
  /** What was decided about each layer, [layers]. */
  readonly decisions: readonly GateDecision[];
}

/**
 * Weighs, layer by layer, the time that a plan saves against the time that its move takes.
 *
 * A layer is saved (cost of its busiest rank today − in the plan) × `secondsPerCost` ÷
 * `windowSteps` in each of `horizonSteps` steps; today's map is taken with its tokens split anew,
 * as that costs no bytes. Moving it takes at least the bytes on the busiest link ÷ its rate. A
 * layer that is not worth it keeps today's map, with the new split.
 *
 * @param input What the plan was decided from.
 * @param plan The plan of any policy.
 * @param options What bytes, tokens and steps are worth.
 * @returns The plan with the layers that were accepted, and the decisions.
 * @throws {RangeError} If the input is not valid, the plan has another shape, or an option is out of
 * range.
 *
 * @example
 * ```ts
 * import { gatePlan, Placement, quotaPolicy, Topology } from "@eplb/eplb";
 * import { assertEquals } from "@std/assert";
 *
 * const input = {
 *   load: new Float64Array([900, 100, 100, 100]),
 *   experts: 4,
 *   topology: Topology.uniform({ ranks: 2, nodes: 1, rates: { intraNode: 400e9 } }),
 *   slotsPerRank: 3,
 *   current: Placement.from([[0, 1, -1, 2, 3, -1]], { ranks: 2 }),
 * };
 * const options = { expertBytes: 40e6, secondsPerCost: 1e-7, horizonSteps: 1000 };
 * const { decisions } = gatePlan(input, quotaPolicy(input), options);
 * // 1000 tokens become 600 on the busiest rank: 40 µs in each of 1000 steps.
 * assertEquals(decisions[0]?.reason, "pays");
 * assertEquals(decisions[0]?.moveSeconds, 40e6 / 400e9);
 * ```
 */
export function gatePlan(
  input: PolicyInput,
  plan: PolicyPlan,
  options: GateOptions,
): GatedPlan {
  const job = checkInput(input);
  const settings = checkOptions(options);
  checkPlan(plan, job);
  const gate = new Gate(input, plan, { job, settings });
  const decisions = Array.from(
    { length: job.layers },
    (_, layer) => gate.decide(layer),
  );
  const placement = Placement.from(gate.map, job);
  return { placement, shares: gate.shares, decisions };
}

class Gate {
  /** Experts of the gated plan, [layers, slots], and shares. */
  readonly map: Int32Array;
  readonly shares: Float64Array;
  readonly #job: PolicyJob;
  readonly #settings: Required<GateOptions>;
  readonly #objective: RankObjective;
  readonly #splitter: Splitter;

  constructor(
    input: PolicyInput,
    plan: PolicyPlan,
    { job, settings }: {
      readonly job: PolicyJob;
      readonly settings: Required<GateOptions>;
    },
  ) {
    this.map = plan.placement.physicalToLogical.slice();
    this.shares = plan.shares.slice();
    this.#job = job;
    this.#settings = settings;
    this.#objective = rankObjective(input.objective ?? {}, job.ranks);
    this.#splitter = new Splitter(job, this.#objective);
  }

  /** Decides about a layer; if it is not accepted, it becomes what it is today. */
  decide(layer: number): GateDecision {
    const { slots, experts, current } = this.#job;
    const planned = this.#view(this.map, this.shares, layer);
    const planCosts = this.#costs(planned);
    const decision = {
      layer,
      accepted: true,
      gainSeconds: 0,
      moveSeconds: undefined,
      staleImbalance: undefined,
      newImbalance: this.#imbalance(planCosts),
      movedSlots: this.#countMoved(planned.row, layer),
    };
    if (current === undefined) return { ...decision, reason: "first" };
    const today = {
      layer,
      row: new Int32Array(slots).fill(-1),
      shares: new Float64Array(slots),
    };
    carryActive(today.row, this.#job, layer);
    if (lostExpert(today.row, experts) >= 0) {
      return { ...decision, reason: "restore" };
    }
    this.#splitter.split(today.row, layer);
    this.#splitter.share(today.shares);
    const todayCosts = this.#costs(today);
    const weighed = {
      ...decision,
      gainSeconds: this.#gainSeconds(todayCosts, planCosts),
      moveSeconds: this.#moveSeconds(today.row, planned.row),
      staleImbalance: this.#imbalance(todayCosts),
    };
    const reason = this.#weigh(weighed);
    const accepted = !REJECTIONS.has(reason);
    if (!accepted) {
      planned.row.set(today.row);
      planned.shares.set(today.shares);
    }
    return { ...weighed, reason, accepted };
  }

  #weigh(
    layer: {
      readonly layer: number;
      readonly movedSlots: number;
      readonly staleImbalance: number;
      readonly gainSeconds: number;
      readonly moveSeconds: number | undefined;
    },
  ): GateReason {
    if (layer.movedSlots === 0) return "unchanged";
    if (layer.staleImbalance <= this.#floor(layer.layer)) return "noise";
    if (!(layer.gainSeconds > 0)) return "no-gain";
    if (layer.moveSeconds === undefined) return "rates-unknown";
    return layer.gainSeconds > layer.moveSeconds ? "pays" : "costs-more";
  }

  #floor(layer: number): number {
    const { load, experts, active } = this.#job;
    if (isDense(this.#job, layer)) return Infinity;
    const row = load.subarray(layer * experts, (layer + 1) * experts);
    const tokens = row.reduce((sum, value) => sum + value, 0);
    const { noise } = this.#settings;
    return noiseFloor(tokens, { ranks: active.length, noise });
  }

  #gainSeconds(today: Float64Array, planned: Float64Array): number {
    const { secondsPerCost, windowSteps, horizonSteps } = this.#settings;
    const saved = highest(today) - highest(planned);
    return saved * secondsPerCost / windowSteps * horizonSteps;
  }

  #moveSeconds(from: Int32Array, to: Int32Array): number | undefined {
    const { topology, ranks, experts } = this.#job;
    const shape = { layers: 1, ranks, experts };
    const migration = planMigration(
      Placement.from(from, shape),
      Placement.from(to, shape),
      { topology },
    );
    const { expertBytes } = this.#settings;
    return lowerBoundSeconds(traffic(migration, { expertBytes }), topology);
  }

  #costs(view: LayerView): Float64Array {
    const { load, topology, ranks, experts } = this.#job;
    const placement = Placement.from(view.row, { layers: 1, ranks, experts });
    return rankCosts({
      load: load.subarray(view.layer * experts, (view.layer + 1) * experts),
      placement,
      shares: view.shares,
      objective: this.#objective,
      topology,
    }, 0);
  }

  #imbalance(costs: Float64Array): number {
    const { active } = this.#job;
    return imbalanceOf(costs, { active, pace: this.#objective.pace });
  }

  #countMoved(row: Int32Array, layer: number): number {
    const { current, slots } = this.#job;
    const first = layer * slots;
    return row.reduce(
      (moved, expert, slot) =>
        expert >= 0 && expert !== current?.physicalToLogical[first + slot]
          ? moved + 1
          : moved,
      0,
    );
  }

  #view(map: Int32Array, shares: Float64Array, layer: number): LayerView {
    const { slots } = this.#job;
    const [from, to] = [layer * slots, (layer + 1) * slots];
    return {
      layer,
      row: map.subarray(from, to),
      shares: shares.subarray(from, to),
    };
  }
}

/** Experts and shares of one layer, [slots]. */
interface LayerView {
  readonly layer: number;
  readonly row: Int32Array;
  readonly shares: Float64Array;
}

const REJECTIONS: ReadonlySet<GateReason> = new Set([
  "noise",
  "no-gain",
  "costs-more",
]);

function highest(costs: Float64Array): number {
  return costs.reduce((a, b) => Math.max(a, b), 0);
}

function checkPlan({ placement, shares }: PolicyPlan, job: PolicyJob): void {
  if (shapeOf(placement) !== shapeOf(job)) {
    throw new RangeError(
      `Cannot gate plan: it has ${shapeOf(placement)}, the job has ${
        shapeOf(job)
      }`,
    );
  }
  if (shares.length !== placement.physicalToLogical.length) {
    throw new RangeError(
      `Cannot gate plan: there are ${shares.length} shares for ${placement.physicalToLogical.length} slots`,
    );
  }
}

function checkOptions(options: GateOptions): Required<GateOptions> {
  const { windowSteps = 1, noise = 1, ...rest } = options;
  const { expertBytes, secondsPerCost, horizonSteps } = rest;
  checkInteger(expertBytes, {
    action: "gate plan",
    name: "expertBytes",
    min: 1,
    max: Number.MAX_SAFE_INTEGER,
  });
  const numbers = { secondsPerCost, horizonSteps, windowSteps, noise };
  for (const [name, value] of Object.entries(numbers)) {
    const least = name === "windowSteps" ? Number.MIN_VALUE : 0;
    if (!(value >= least && value < Infinity)) {
      throw new RangeError(
        `Cannot gate plan: ${name} must be ${
          least > 0 ? "positive" : "non-negative"
        } and finite, it is ${show(value)}`,
      );
    }
  }
  return { ...numbers, expertBytes };
}
