// SPDX-License-Identifier: Apache-2.0

/**
 * Deciding where experts shall be: policy and gate.
 *
 * @module
 */
import { balancedness, movedSlots, rankLoads } from "../metrics.ts";
import type { Placement } from "../placement.ts";
import {
  type GateDecision,
  type GateOptions,
  gatePlan,
} from "../policies/gate.ts";
import type { Objective } from "../policies/objective.ts";
import type { Policy, PolicyInput, PolicyPlan } from "../policies/policy.ts";

import { Topology } from "../topology.ts";

/**
 * What a move must save to be made.
 *
 * Without `secondsPerCost`, bytes are not weighed against time: layers whose imbalance is noise, or
 * which would not get better, stay as they are.
 */
export interface GateSettings extends Partial<GateOptions> {
  /**
   * Steps that a new placement will serve.
   *
   * @default {the step interval}
   */
  readonly horizonSteps?: number;
}

/** What is decided from. */
export interface DecisionInput {
  /** Tokens per logical expert, over all ranks, [layers, experts]. */
  readonly load: Float64Array;
  /** Steps that the load was counted in. */
  readonly windowSteps: number;
  readonly placement: Placement;
  /** Shares of the slots today, [layers, slots]. */
  readonly shares: Float64Array;
  readonly topology: Topology;
  readonly active: readonly number[] | undefined;
  readonly policy: Policy;
  readonly gate: GateSettings | undefined;
  readonly objective: Objective | undefined;
  readonly groups: number | undefined;
  /** Steps that a new placement will serve, if the gate does not say. */
  readonly horizonSteps: number;
  readonly expertBytes: number;
}

/** What was decided, and how it looks. */
export interface Decision extends PolicyPlan {
  readonly decisions: readonly GateDecision[];
  readonly movedSlots: number;
  readonly tokens: number;
  readonly rankTokens: { readonly mean: number; readonly max: number };
  readonly balancednessBefore: Float64Array;
  readonly balancednessAfter: Float64Array;
  readonly planSeconds: number;
}

/** Decides; pure, and the same on every process. */
export function decide(input: DecisionInput): Decision {
  const start = performance.now();
  const { load, placement, shares } = input;
  const plan = planFor(input);
  const planSeconds = (performance.now() - start) / 1e3;
  return {
    ...plan,
    movedSlots: movedSlots(placement, plan.placement),
    tokens: load.reduce((a, b) => a + b, 0),
    rankTokens: summarize(input),
    balancednessBefore: balancedness(load, placement, { shares }).layers,
    balancednessAfter: balancedness(load, plan.placement, {
      shares: plan.shares,
    }).layers,
    planSeconds,
  };
}

function planFor(
  input: DecisionInput,
): PolicyPlan & { readonly decisions: readonly GateDecision[] } {
  const { placement: current, policy, gate, active, objective, groups } = input;
  const request: PolicyInput = {
    load: input.load,
    experts: current.experts,
    topology: input.topology,
    slotsPerRank: current.slotsPerRank,
    current,
    ...(active && { active }),
    ...(objective && { objective }),
    ...(groups && { groups }),
  };
  const plan = policy(request);
  if (gate === undefined) return { ...plan, decisions: [] };
  const { secondsPerCost, ...rest } = gate;
  const weighs = secondsPerCost !== undefined;
  return gatePlan(weighs ? request : withoutRates(request), plan, {
    windowSteps: Math.max(1, input.windowSteps),
    horizonSteps: input.horizonSteps,
    ...rest,
    expertBytes: input.expertBytes,
    secondsPerCost: secondsPerCost ?? 1,
  });
}

/** The gate lets through what has a gain where it does not know how long a move takes. */
function withoutRates(input: PolicyInput): PolicyInput {
  return {
    ...input,
    topology: Topology.fromNodes(Array.from(input.topology.nodeOf)),
  };
}

/** Mean and largest tokens of a rank, over the layers with load. */
function summarize(
  { load, placement, shares }: DecisionInput,
): { mean: number; max: number } {
  let [sum, max, count] = [0, 0, 0];
  for (let layer = 0; layer < placement.layers; layer++) {
    const loads = rankLoads(load, placement, { layer, shares });
    if (loads.every((tokens) => tokens === 0)) continue;
    for (const tokens of loads) {
      sum += tokens;
      max = Math.max(max, tokens);
    }
    count += loads.length;
  }
  return { mean: count === 0 ? 0 : sum / count, max };
}
