// SPDX-License-Identifier: Apache-2.0

import { basename } from "@std/path";
import { readLoad, totalLoad } from "../load/files.ts";
import { policies, type PolicyName } from "../policies/registry.ts";
import { gatePlan } from "../policies/gate.ts";
import { formatTable } from "../report/table.ts";
import {
  type PhaseResult,
  simulate as replay,
  type SimulationPhase,
} from "../simulate.ts";
import { type Command, EXIT, UsageError } from "./command.ts";
import type { Flags } from "./flags.ts";
import {
  GATE_FLAGS,
  POLICY_NAMES,
  RANK_FLAGS,
  readGate,
  readPolicies,
  readSizes,
} from "./plan/input.ts";

/** The JSON document of `simulate --json`. */
export interface SimulateReport {
  readonly policies: readonly {
    readonly policy: PolicyName;
    readonly phases: readonly PhaseResult[];
  }[];
}

/** `eplb simulate`. */
export const simulate: Command = {
  name: "simulate",
  summary: "replay recorded workloads against policies, and compare them",
  description:
    "Replays workloads in order, each file a phase, and lets each policy rebalance\n" +
    "at the start of a phase; with --tokens after each of --steps steps, which are\n" +
    "drawn from the phase's load. Reports the imbalance (max ÷ mean rank load) before\n" +
    "and after, moved slots per layer, plan time and, if link rates are given, the\n" +
    "least time of the move.",
  groups: [{
    title: "Simulate",
    flags: [
      {
        name: "trace",
        value: "A,B,…",
        type: "text",
        help: "recorded loads in order, separated by commas",
      },
      ...RANK_FLAGS,
      {
        name: "policy",
        value: "NAME,…",
        type: "text",
        help: `of ${POLICY_NAMES.join(", ")} (default: all)`,
      },
      {
        name: "tokens",
        value: "T",
        type: "count",
        help: "tokens of a step in each layer, drawn from the phase's load",
      },
      {
        name: "steps",
        value: "S",
        type: "count",
        help: "steps of a phase, with --tokens (default: 10)",
      },
      { name: "seed", value: "X", type: "count", help: "seed of the draws" },
      ...GATE_FLAGS,
    ],
  }],
  examples: [
    "simulate --trace prefill.json,decode.json --ranks 32 --nodes 4 --redundant 64",
    "simulate --trace a.json,b.json --ranks 8 --redundant 16 --policy quota,deepseek --tokens 4096 --json",
  ],
  run: async (flags, terminal) => {
    const { phases, experts } = await readPhases(flags);
    const sizes = await readSizes(flags, experts);
    const names = readPolicies(
      flags.text("policy") ?? POLICY_NAMES.join(","),
    );
    const options = numbers(flags);
    const gate = readGate(flags);
    const report: SimulateReport = {
      policies: names.map((policy) => {
        terminal.progress(`simulating ${policy}`);
        return {
          policy,
          phases: replay(phases, {
            ...sizes,
            ...options,
            experts,
            policy: policies[policy],
            ...(gate === undefined ? {} : {
              gate: (input, plan) => gatePlan(input, plan, gate),
            }),
          }),
        };
      }),
    };
    terminal.progress("");
    terminal.print(
      flags.has("json")
        ? JSON.stringify(report, null, 2)
        : simulateText(report, terminal.color),
    );
    return EXIT.done;
  },
};

async function readPhases(
  flags: Flags,
): Promise<{ phases: SimulationPhase[]; experts: number }> {
  const paths = flags.text("trace")?.split(",") ?? [];
  if (paths.length === 0) throw new UsageError("--trace is needed");
  const phases: SimulationPhase[] = [];
  let experts = 0;
  for (const path of paths) {
    const trace = await readLoad(
      path,
      experts === 0 ? {} : { experts },
    );
    experts = trace.experts;
    phases.push({
      name: basename(path).replace(/\.\w+$/, ""),
      load: totalLoad(trace),
    });
  }
  return { phases, experts };
}

function numbers(
  flags: Flags,
): {
  tokens?: number;
  steps?: number;
  seed?: number;
  expertBytes?: number;
} {
  const tokens = flags.number("tokens");
  const steps = flags.number("steps");
  const seed = flags.number("seed");
  const expertBytes = flags.number("expert-bytes");
  if (tokens === undefined && (steps ?? seed) !== undefined) {
    throw new UsageError("--steps and --seed need --tokens");
  }
  return {
    ...(tokens === undefined ? {} : { tokens }),
    ...(steps === undefined ? {} : { steps }),
    ...(seed === undefined ? {} : { seed }),
    ...(expertBytes === undefined ? {} : { expertBytes }),
  };
}

function simulateText(report: SimulateReport, color: boolean): string {
  const rows = report.policies.flatMap(({ policy, phases }) =>
    phases.map((phase) => [
      policy,
      phase.name,
      phase.staleMean.toFixed(3),
      phase.mean.toFixed(4),
      phase.max.toFixed(3),
      phase.movedSlotsPerLayer.toFixed(1),
      phase.planMilliseconds.toFixed(1),
      phase.estimatedMoveMilliseconds?.toFixed(1) ?? "-",
    ])
  );
  return formatTable(rows, {
    columns: [
      { header: "policy" },
      { header: "phase" },
      { header: "stale", align: "right" },
      { header: "imbalance", align: "right" },
      { header: "worst", align: "right" },
      { header: "moved/layer", align: "right" },
      { header: "plan ms", align: "right" },
      { header: "move ms", align: "right" },
    ],
    color,
  });
}
