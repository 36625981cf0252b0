// SPDX-License-Identifier: Apache-2.0

/**
 * Replays workloads against a policy: how balanced, how much moved.
 *
 * @module
 */
import { checkInteger } from "./_check.ts";
import { type Imbalance, imbalance, movedSlots } from "./metrics.ts";
import { planMigration } from "./migration/plan.ts";
import { lowerBoundSeconds, traffic } from "./migration/traffic.ts";
import { Placement } from "./placement.ts";
import type { Policy, PolicyInput, PolicyPlan } from "./policies/policy.ts";
import { SeededRandom } from "./random.ts";
import type { Topology } from "./topology.ts";
import { modelShape } from "./weights/shapes.ts";
import { drawMultinomial } from "./_multinomial.ts";

/** One workload of a replay. */
export interface SimulationPhase {
  /** Its name, for the report. */
  readonly name: string;
  /** Tokens per logical expert, [layers, experts], row major. */
  readonly load: Float64Array;
}

/** Options of {@linkcode simulate}. */
export interface SimulateOptions {
  /** Decides where experts shall be. */
  readonly policy: Policy;
  /** Takes back what is not worth its bytes; default: everything is accepted. */
  readonly gate?: (input: PolicyInput, plan: PolicyPlan) => PolicyPlan;
  /** Logical experts per layer. */
  readonly experts: number;
  /** Ranks, nodes and link rates. */
  readonly topology: Topology;
  /** Slots of one rank in each layer. */
  readonly slotsPerRank: number;
  /**
   * Bytes of one expert, for the estimated time of moves.
   *
   * @default {44_050_944, an expert of DeepSeek-R1 in FP8}
   */
  readonly expertBytes?: number;
  /**
   * Tokens of one step in each layer. Steps are then drawn from the phase's load, and the policy
   * sees only what was drawn since the phase began.
   *
   * @default {the policy sees the phase's whole load at once}
   */
  readonly tokens?: number;
  /**
   * Steps of a phase, with `tokens`; the policy is asked after each.
   *
   * @default {10}
   */
  readonly steps?: number;
  /**
   * Seed of the draws.
   *
   * @default {0}
   */
  readonly seed?: number;
}

/** What became of one phase. */
export interface PhaseResult {
  /** Name of the phase. */
  readonly name: string;
  /** Mean imbalance of the MoE layers before anything is done: max ÷ mean rank load. */
  readonly staleMean: number;
  /** Mean imbalance of the MoE layers at the end. */
  readonly mean: number;
  /** Imbalance of the worst layer at the end. */
  readonly max: number;
  /** Slots that got another expert, per MoE layer, over the whole phase. */
  readonly movedSlotsPerLayer: number;
  /** Bytes into the busiest rank, over the whole phase. */
  readonly busiestBytes: number;
  /** Milliseconds of the slowest plan. */
  readonly planMilliseconds: number;
  /** Least milliseconds that the link rates allow for all moves; undefined if they are unknown. */
  readonly estimatedMoveMilliseconds: number | undefined;
}

/** Bytes of an expert of DeepSeek-R1 in FP8: w13, w2 and their scales. */
export const EXPERT_BYTES: number =
  modelShape("deepseek-r1").layout.expertBytes;

/**
 * Replays phases in order, and rebalances as the policy and the gate say.
 *
 * Experts begin in contiguous slots, and the first phase places them as the policy likes; from
 * then on each phase begins with the placement that the one before left behind. Imbalance is that
 * of the phase's own load, also where the policy has only seen draws from it.
 *
 * @param phases Workloads, in order.
 * @param options Policy, sizes, draws.
 * @returns One result per phase.
 * @throws {RangeError} If a phase has another size than the first, or a size is not positive.
 *
 * @example A load that moves to another expert
 * ```ts
 * import { policies, simulate, Topology } from "@eplb/eplb";
 * import { assert } from "@std/assert";
 *
 * const results = simulate([
 *   { name: "morning", load: new Float64Array([9, 1, 1, 1]) },
 *   { name: "evening", load: new Float64Array([1, 1, 1, 9]) },
 * ], {
 *   policy: policies.quota,
 *   experts: 4,
 *   topology: Topology.uniform({ ranks: 2, nodes: 1 }),
 *   slotsPerRank: 3,
 * });
 * assert(results[1]!.mean <= results[1]!.staleMean);
 * ```
 */
export function simulate(
  phases: readonly SimulationPhase[],
  options: SimulateOptions,
): PhaseResult[] {
  const replay = new Replay(phases, options);
  return phases.map((phase) => replay.run(phase));
}

/** The state that goes from phase to phase. */
class Replay {
  readonly #options: SimulateOptions;
  readonly #random: SeededRandom;
  #placement: Placement;
  #shares: Float64Array | undefined;
  /** Whether the policy has placed the experts at all. */
  #placed = false;

  constructor(phases: readonly SimulationPhase[], options: SimulateOptions) {
    const { experts, topology: { ranks }, slotsPerRank, seed = 0 } = options;
    const cells = phases[0]?.load.length ?? experts;
    for (const { name, load } of phases) {
      if (load.length !== cells || cells % experts !== 0) {
        throw new RangeError(
          `Cannot simulate phase "${name}": its load has ${load.length} counts, not ${cells} in rows of ${experts}`,
        );
      }
    }
    for (const key of ["tokens", "steps"] as const) {
      if (options[key] === undefined) continue;
      checkInteger(options[key], { action: "simulate", name: key, min: 1 });
    }
    this.#options = options;
    this.#random = new SeededRandom(seed);
    const layers = cells / experts;
    this.#placement = Placement.contiguous({
      ...{ layers, ranks, slotsPerRank, experts },
    });
  }

  run(phase: SimulationPhase): PhaseResult {
    const { tokens, steps = 10 } = this.#options;
    const stale = this.#imbalance(phase.load);
    const totals = { moved: 0, bytes: 0, seconds: 0, plan: 0 };
    if (tokens === undefined) {
      this.#rebalance(phase.load, totals);
    } else {
      const seen = new Float64Array(phase.load.length);
      for (let step = 0; step < steps; step++) {
        this.#draw(phase.load, tokens, seen);
        this.#rebalance(seen, totals);
      }
    }
    const end = this.#imbalance(phase.load);
    return {
      name: phase.name,
      staleMean: stale.mean,
      mean: end.mean,
      max: end.max,
      movedSlotsPerLayer: totals.moved /
        Math.max(1, countMoe(phase.load, this.#options.experts)),
      busiestBytes: totals.bytes,
      planMilliseconds: totals.plan,
      estimatedMoveMilliseconds: Number.isNaN(totals.seconds)
        ? undefined
        : 1e3 * totals.seconds,
    };
  }

  /** Adds one step's tokens to what was seen, layer by layer. */
  #draw(load: Float64Array, tokens: number, seen: Float64Array): void {
    const { experts } = this.#options;
    for (let begin = 0; begin < load.length; begin += experts) {
      const row = load.subarray(begin, begin + experts);
      const target = seen.subarray(begin, begin + experts);
      drawMultinomial(row, { count: tokens, target, random: this.#random });
    }
  }

  #rebalance(
    load: Float64Array,
    totals: { moved: number; bytes: number; seconds: number; plan: number },
  ): void {
    const { policy, gate, experts, topology, slotsPerRank } = this.#options;
    const { expertBytes = EXPERT_BYTES } = this.#options;
    const input: PolicyInput = {
      ...{ load, experts, topology, slotsPerRank },
      ...(this.#placed ? { current: this.#placement } : {}),
    };
    const start = performance.now();
    const wanted = policy(input);
    const plan = gate === undefined || !this.#placed
      ? wanted
      : gate(input, wanted);
    totals.plan = Math.max(totals.plan, performance.now() - start);
    totals.moved += movedSlots(this.#placement, plan.placement);
    const bytes = traffic(
      planMigration(this.#placement, plan.placement, { topology }),
      { expertBytes },
    );
    totals.bytes += Math.max(...bytes.bytesReceived);
    totals.seconds += lowerBoundSeconds(bytes, topology) ?? NaN;
    this.#placement = plan.placement;
    this.#shares = plan.shares;
    this.#placed = true;
  }

  #imbalance(load: Float64Array): Imbalance {
    const options = this.#shares === undefined ? {} : { shares: this.#shares };
    return imbalance(load, this.#placement, options);
  }
}

/** Layers that have any load. */
function countMoe(load: Float64Array, experts: number): number {
  let layers = 0;
  for (let begin = 0; begin < load.length; begin += experts) {
    const row = load.subarray(begin, begin + experts);
    if (row.some((tokens) => tokens > 0)) layers++;
  }
  return layers;
}
