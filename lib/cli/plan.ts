// SPDX-License-Identifier: Apache-2.0

import { readLoad, totalLoad } from "../load/files.ts";
import {
  type Imbalance,
  imbalance,
  movedSlots,
  rankLoads,
} from "../metrics.ts";
import { Placement } from "../placement.ts";
import { policies } from "../policies/registry.ts";
import { type GateDecision, gatePlan } from "../policies/gate.ts";
import type { PolicyInput, PolicyPlan } from "../policies/policy.ts";
import { formatSeconds, formatTable } from "../report/table.ts";
import { type Command, EXIT, UsageError } from "./command.ts";
import type { Flags } from "./flags.ts";
import { heatRow } from "./plan/heat_map.ts";
import {
  GATE_FLAGS,
  POLICY_NAMES,
  RANK_FLAGS,
  readGate,
  readList,
  readPolicies,
  readSizes,
} from "./plan/input.ts";
import { readJSON } from "./rearrange/files.ts";

/** The JSON document of `plan --json`. */
export interface PlanReport {
  readonly physical_to_logical_map: readonly (readonly number[])[];
  /** Share of its expert's tokens that each slot takes, [layers][slots]. */
  readonly replica_shares: readonly (readonly number[])[];
  /** Max ÷ mean rank load over the active ranks: mean and worst of the MoE layers. */
  readonly imbalance: { readonly mean: number; readonly max: number };
  /** Slots that get another expert, over all layers; null without a current map. */
  readonly movedSlots: number | null;
  readonly planSeconds: number;
  /** Why each layer moves or not; with `--horizon`. */
  readonly decisions?: readonly GateDecision[];
}

/** `eplb plan`. */
export const plan: Command = {
  name: "plan",
  summary: "decide where experts should live, from a recorded load",
  description:
    "Reads tokens per expert and prints the map that a policy makes of them, with\n" +
    "the share of its expert's tokens that each slot should take. Loads may be\n" +
    "SGLang's JSON ({\"logical_count\": …}), vLLM's load_history, a TensorRT-LLM dump\n" +
    "folder, CSV or JSON lines; steps are added up. Layers without tokens are\n" +
    "carried through.",
  groups: [{
    title: "Plan",
    flags: [
      { name: "load", value: "FILE", type: "text", help: "recorded load" },
      ...RANK_FLAGS,
      {
        name: "policy",
        value: "NAME",
        type: "text",
        choices: POLICY_NAMES,
        help: `one of ${POLICY_NAMES.join(", ")} (default: quota)`,
      },
      {
        name: "current",
        value: "FILE",
        type: "text",
        help: "today's map, so that little moves",
      },
      {
        name: "groups",
        value: "G",
        type: "count",
        help: "groups of experts that deepseek keeps on one node (default: 1)",
      },
      {
        name: "active",
        value: "0,1,3",
        type: "text",
        help: "ranks that may hold experts (default: all)",
      },
      ...GATE_FLAGS,
    ],
  }],
  examples: [
    "plan --load prefill.json --ranks 32 --nodes 4 --redundant 32 --json",
    "plan --load decode.json --ranks 8 --redundant 16 --current map.json",
  ],
  run: async (flags, terminal) => {
    const input = await readInput(flags);
    const start = performance.now();
    const [name] = readPolicies(flags.text("policy") ?? "quota");
    const wanted = policies[name!](input);
    const gate = readGate(flags);
    const decided = gate === undefined ? wanted : gatePlan(input, wanted, gate);
    const planSeconds = (performance.now() - start) / 1e3;
    const measured = imbalance(input.load, decided.placement, {
      shares: decided.shares,
      topology: input.topology,
      ...(input.active === undefined ? {} : { active: input.active }),
    });
    const layers = layersOf(input, { decided, measured });
    const report = makeReport(input, { decided, measured, planSeconds });
    terminal.print(
      flags.has("json")
        ? JSON.stringify(report)
        : planText(report, layers, terminal.color),
    );
    return EXIT.done;
  },
};

async function readInput(flags: Flags): Promise<PolicyInput> {
  const path = flags.text("load");
  if (path === undefined) throw new UsageError("--load is needed");
  const trace = await readLoad(path);
  const { experts, layers } = trace;
  const sizes = await readSizes(flags, experts);
  const { ranks } = sizes.topology;
  const file = flags.text("current");
  const current = file === undefined
    ? undefined
    : Placement.fromJSON(await readJSON(file), { ranks, experts });
  if (current !== undefined && current.layers !== layers) {
    throw new RangeError(
      `Cannot use map "${file}": it has ${current.layers} layers, the load has ${layers}`,
    );
  }
  const active = flags.text("active");
  const groups = flags.number("groups");
  return {
    load: totalLoad(trace),
    experts,
    ...sizes,
    ...(current === undefined ? {} : { current }),
    ...(groups === undefined ? {} : { groups }),
    ...(active === undefined ? {} : { active: readList("active", active) }),
  };
}

/** One MoE layer of a plan. */
interface LayerPlan {
  readonly layer: number;
  readonly imbalance: number;
  readonly moved: number;
  /** Why it moves or not; "" without a gate. */
  readonly reason: string;
  readonly heat: string;
}

function decisionsOf(decided: PolicyPlan): readonly GateDecision[] | undefined {
  return (decided as { decisions?: readonly GateDecision[] }).decisions;
}

function layersOf(
  input: PolicyInput,
  done: { readonly decided: PolicyPlan; readonly measured: Imbalance },
): LayerPlan[] {
  const { decided, measured } = done;
  const { load, experts, current } = input;
  const { placement, shares } = decided;
  const { slots, physicalToLogical } = placement;
  const rows: LayerPlan[] = [];
  for (let layer = 0; layer < placement.layers; layer++) {
    const loads = rankLoads(load, placement, { layer, shares });
    const row = load.subarray(layer * experts, (layer + 1) * experts);
    if (row.every((tokens) => tokens === 0)) continue;
    let moved = 0;
    for (let i = layer * slots; i < (layer + 1) * slots; i++) {
      const expert = physicalToLogical[i]!;
      if (expert >= 0 && expert !== current?.physicalToLogical[i]) moved++;
    }
    const reason = decisionsOf(decided)?.[layer]?.reason ?? "";
    const heat = heatRow(loads);
    rows.push({
      layer,
      imbalance: measured.layers[layer]!,
      moved,
      reason,
      heat,
    });
  }
  return rows;
}

function makeReport(
  input: PolicyInput,
  done: {
    readonly decided: PolicyPlan;
    readonly measured: Imbalance;
    readonly planSeconds: number;
  },
): PlanReport {
  const { decided: { placement, shares }, measured, planSeconds } = done;
  const { slots } = placement;
  const decisions = decisionsOf(done.decided);
  return {
    ...placement.toJSON(),
    replica_shares: Array.from(
      { length: placement.layers },
      (_, layer) => [...shares.subarray(layer * slots, (layer + 1) * slots)],
    ),
    imbalance: { mean: measured.mean, max: measured.max },
    movedSlots: input.current === undefined
      ? null
      : movedSlots(input.current, placement),
    planSeconds,
    ...(decisions === undefined ? {} : { decisions }),
  };
}

function planText(
  report: PlanReport,
  layers: readonly LayerPlan[],
  color: boolean,
): string {
  const known = report.movedSlots !== null;
  const rows = layers.map(({ layer, imbalance, moved, reason, heat }) => [
    String(layer),
    imbalance.toFixed(4),
    known ? String(moved) : "-",
    reason,
    heat,
  ]);
  const table = formatTable(rows, {
    columns: [
      { header: "layer", align: "right" },
      { header: "imbalance", align: "right" },
      { header: "moved slots", align: "right" },
      { header: report.decisions === undefined ? "" : "gate" },
      { header: "load of each rank" },
    ],
    color,
  });
  const { mean, max } = report.imbalance;
  return [
    table,
    "",
    `imbalance ${mean.toFixed(4)} in the mean, ${
      max.toFixed(4)
    } in the worst layer; ` +
    `${known ? `${report.movedSlots} slots move; ` : ""}` +
    `planned in ${formatSeconds(report.planSeconds)}`,
  ].join("\n");
}
