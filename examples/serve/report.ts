// SPDX-License-Identifier: Apache-2.0
// What is printed at the end.

import { formatSeconds, formatTable } from "../../lib/report/table.ts";
import type { ServeOptions } from "./options.ts";
import type { PhaseReport } from "./phases.ts";

/** What was served. */
export interface ServeReport {
  /** What was asked for. */
  readonly options: ServeOptions;
  /** Family of the model. */
  readonly model: string;
  /** MoE layers. */
  readonly layers: number;
  /** Logical experts per layer. */
  readonly experts: number;
  /** Experts of each token. */
  readonly topK: number;
  /** Slots of all ranks, per layer. */
  readonly slots: number;
  /** Where the weights were. */
  readonly device: "host" | "cuda";
  /** Number of processes. */
  readonly processes: number;
  /** Each phase of the traffic. */
  readonly phases: readonly PhaseReport[];
  /** Cycles at whose end all layers were as decided and some slots had other experts. */
  readonly rearrangements: number;
  /** Cycles that were due while another one was in progress. */
  readonly skippedCycles: number;
  /** Steps that rearrangements took from the load to the last layer, in all. */
  readonly cycleSteps: number;
  /** Seconds for which steps were held up, in all. */
  readonly stallSeconds: number;
  /** Tokens served. */
  readonly tokens: number;
  /** Tokens that came out of every layer with the bits of the model without balancing. */
  readonly equalTokens: number;
  /** Seconds from the first to the last step. */
  readonly seconds: number;
}

/** The report for people. */
export function formatReport(
  report: ServeReport,
  options: { readonly color: boolean },
): string {
  const { experts, layers, topK, slots, device, processes } = report;
  const { mode, policy, steps, interval, ranks } = report.options;
  const right = (header: string) => ({ header, align: "right" as const });
  const table = formatTable(report.phases.map(rowOfPhase), {
    ...options,
    columns: [
      { header: "workload" },
      right("steps"),
      right("cycles"),
      right("moved slots"),
      right("worst cycle"),
      right("unbalanced"),
      right("at first"),
      right("later"),
      right("tokens"),
      right("equal"),
    ],
  });
  return [
    `${report.model}: ${layers} MoE layers of ${experts} experts in ${slots} slots, top ${topK}`,
    `${ranks} ranks in ${
      processes === 1 ? "one process" : `${processes} processes`
    }, weights on ${device === "host" ? "the host" : "GPUs"}, ` +
    `${mode} ${policy} every ${interval} steps`,
    "",
    table,
    "",
    `balancedness = mean ÷ maximum rank load, mean of the layers: in the cycle that found it`,
    `worst (before → after), and of the tokens that ranks got: with the placement of the start,`,
    `in a phase's first ${interval} steps, and from step ${
      2 * interval + 1
    } on`,
    "",
    `${steps} steps in ${formatSeconds(report.seconds)}: ` +
    `${report.rearrangements} rearrangements, in progress during ${report.cycleSteps} steps, ` +
    `held them up for ${formatSeconds(report.stallSeconds)}`,
    `${report.equalTokens} of ${report.tokens} tokens came out of all ${layers} layers with the ` +
    `bits of the model without balancing`,
  ].join("\n");
}

function rowOfPhase(phase: PhaseReport): (string | number)[] {
  const { worstCycle, later } = phase;
  return [
    phase.workload,
    phase.steps,
    phase.cycles,
    phase.movedSlots,
    worstCycle === undefined
      ? "–"
      : `${fraction(worstCycle.before)} → ${fraction(worstCycle.after)}`,
    fraction(phase.unbalanced),
    fraction(phase.atFirst),
    later === undefined ? "–" : fraction(later),
    phase.tokens,
    phase.equalTokens,
  ];
}

function fraction(value: number): string {
  return value.toFixed(3);
}
