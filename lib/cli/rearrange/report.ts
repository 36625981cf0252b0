// SPDX-License-Identifier: Apache-2.0
// The report of a rearrangement: one JSON document, or tables for people.

import {
  formatBytes,
  formatRate,
  formatSeconds,
  formatTable,
} from "../../report/table.ts";
import type { Mismatch } from "../../engine/canary.ts";
import type { Job, JobOutcome } from "./job.ts";

/** How many mismatches are listed one by one. */
const LISTED_MISMATCHES = 20;

/** The JSON document of `rearrange --json`. */
export interface RearrangeReport {
  readonly ranks: number;
  readonly nodes: number;
  readonly layers: number;
  readonly slotsPerRank: number;
  readonly experts: number;
  readonly expertBytes: number;
  readonly weights: string;
  readonly device: "host" | "cuda";
  readonly transport: string;
  readonly processes: number;
  readonly sources: string;
  /** The bound on what each rank gathers, in bytes per second; null without. */
  readonly maxRate: number | null;
  /** Slots of all layers and ranks that hold an expert, by where it came from. */
  readonly moves: {
    readonly unchanged: number;
    readonly sameRank: number;
    readonly duplicate: number;
    readonly sameNode: number;
    readonly crossNode: number;
  };
  /** Rearrangements that follow each other, as staging memory or nodes ask for. */
  readonly hops: number;
  /** Bytes that crossed nodes: less than the moves say where an expert goes to several ranks of one. */
  readonly bytesBetweenNodes: number;
  /** By rank. */
  readonly bytesSent: readonly number[];
  /** By rank. */
  readonly bytesReceived: readonly number[];
  /** Of each rank. */
  readonly stagingBytes: number;
  readonly planSeconds: number;
  readonly moveSeconds: number;
  readonly lowerBoundSeconds: number | null;
  readonly gigabytesPerSecond: number;
  /** Mean rank load over maximum rank load, mean of the layers; null without a load. */
  readonly balancedness:
    | { readonly before: number; readonly after: number }
    | null;
  /** null if it was not asked for. */
  readonly verified: boolean | null;
  readonly mismatches: number;
  readonly mismatched: readonly Mismatch[];
  /** Every repetition; moves, bytes and times above are the last one's. */
  readonly runs: readonly {
    readonly moveSeconds: number;
    readonly busiestBytes: number;
    readonly gigabytesPerSecond: number;
    readonly lowerBoundSeconds: number | null;
    readonly verified: boolean | null;
  }[];
}

/** Sums up a job. */
export function makeReport(job: Job, outcome: JobOutcome): RearrangeReport {
  const { result, before, after } = outcome.runs.at(-1)!;
  const { shape, topology, source } = job;
  const mismatches = outcome.runs.flatMap((run) => run.result.mismatches);
  const { unchanged, sameRank, duplicate, sameNode, crossNode } = result.moves;
  return {
    ranks: topology.ranks,
    nodes: topology.nodes,
    layers: shape.layers,
    slotsPerRank: shape.slotsPerRank,
    experts: shape.experts,
    expertBytes: source.layout.expertBytes,
    weights: source.name,
    device: job.devices[0] === "host" ? "host" : "cuda",
    transport: outcome.transport,
    processes: topology.ranks / job.locals.length,
    sources: job.sources,
    maxRate: job.maxRate ?? null,
    moves: { unchanged, sameRank, duplicate, sameNode, crossNode },
    hops: result.plans.length,
    bytesBetweenNodes: result.traffic.nodeBytesOut.reduce((a, b) => a + b, 0),
    bytesSent: Array.from(result.traffic.bytesSent),
    bytesReceived: Array.from(result.traffic.bytesReceived),
    stagingBytes: outcome.stagingBytes,
    planSeconds: result.planSeconds,
    moveSeconds: result.moveSeconds,
    lowerBoundSeconds: result.lowerBoundSeconds ?? null,
    gigabytesPerSecond: result.gigabytesPerSecond,
    balancedness: before === undefined || after === undefined
      ? null
      : { before, after },
    verified: verdict(outcome),
    mismatches: mismatches.length,
    mismatched: mismatches.slice(0, LISTED_MISMATCHES),
    runs: outcome.runs.map(({ result: one }) => ({
      moveSeconds: one.moveSeconds,
      busiestBytes: Math.max(...one.traffic.bytesReceived),
      gigabytesPerSecond: one.gigabytesPerSecond,
      lowerBoundSeconds: one.lowerBoundSeconds ?? null,
      verified: one.verified ?? null,
    })),
  };
}

/** Whether every repetition was verified; null if none was asked to be. */
function verdict(outcome: JobOutcome): boolean | null {
  const all = outcome.runs.map(({ result }) => result.verified);
  return all.includes(undefined) ? null : all.every((one) => one === true);
}

/** The report for people. */
export function reportText(report: RearrangeReport, color: boolean): string {
  const where = report.device === "cuda" ? "GPUs" : "host memory";
  return [
    `${report.weights}: ${count(report.layers, "layer")}, ` +
    `${count(report.experts, "expert")} of ${formatBytes(report.expertBytes)}`,
    `${count(report.ranks, "rank")} with ${
      count(report.slotsPerRank, "slot")
    } ` +
    `on ${count(report.nodes, "node")}, in ${where}, transport ` +
    `${report.transport}, ${count(report.processes, "process", "processes")}`,
    "",
    movesTable(report, color),
    "",
    timesTable(report, color),
    ...(report.runs.length > 1 ? ["", runsTable(report, color)] : []),
    "",
    verdictText(report),
  ].join("\n");
}

function count(number: number, one: string, many = `${one}s`): string {
  return `${number} ${number === 1 ? one : many}`;
}

function movesTable(report: RearrangeReport, color: boolean): string {
  const { moves, expertBytes } = report;
  const all = Object.values(moves).reduce((sum, slots) => sum + slots, 0);
  const row = (name: string, slots: number, bytes: number): string[] => [
    name,
    String(slots),
    `${(100 * slots / Math.max(all, 1)).toFixed(1)} %`,
    bytes === 0 ? "-" : formatBytes(bytes),
  ];
  return formatTable([
    row("unchanged", moves.unchanged, 0),
    row("copied inside the rank", moves.sameRank, moves.sameRank * expertBytes),
    row(
      "duplicate of a received one",
      moves.duplicate,
      moves.duplicate * expertBytes,
    ),
    row("from the same node", moves.sameNode, moves.sameNode * expertBytes),
    row("from another node", moves.crossNode, moves.crossNode * expertBytes),
  ], {
    columns: [
      { header: "slots" },
      { header: "number", align: "right" },
      { header: "share", align: "right" },
      { header: "bytes", align: "right" },
    ],
    color,
  });
}

function timesTable(report: RearrangeReport, color: boolean): string {
  const sum = (values: readonly number[]): number =>
    values.reduce((total, value) => total + value, 0);
  const bound = report.lowerBoundSeconds;
  const { hops, nodes, maxRate, balancedness } = report;
  const all: (string[] | undefined)[] = [
    ["plan", formatSeconds(report.planSeconds)],
    ["move", formatSeconds(report.moveSeconds)],
    hops === 1 ? undefined : ["in so many steps", String(hops)],
    [
      "lower bound",
      bound === null ? "link rates unknown" : formatSeconds(bound),
    ],
    ["moved between ranks", formatBytes(sum(report.bytesReceived))],
    nodes === 1
      ? undefined
      : ["moved between nodes", formatBytes(report.bytesBetweenNodes)],
    ["into the busiest rank", formatBytes(Math.max(...report.bytesReceived))],
    ["rate into it", formatRate(report.gigabytesPerSecond * 1e9)],
    maxRate === null
      ? undefined
      : ["bound on what a rank gathers", formatRate(maxRate)],
    ["staging memory of a rank", formatBytes(report.stagingBytes)],
    balancedness === null ? undefined : [
      "balancedness",
      `${balancedness.before.toFixed(3)} → ${balancedness.after.toFixed(3)}`,
    ],
  ];
  const rows = all.filter((row) => row !== undefined);
  return formatTable(rows, {
    columns: [{ header: "what" }, { header: "value", align: "right" }],
    color,
  });
}

function runsTable(report: RearrangeReport, color: boolean): string {
  const rows = report.runs.map((run, i) => [
    String(i + 1),
    formatSeconds(run.moveSeconds),
    formatBytes(run.busiestBytes),
    formatRate(run.gigabytesPerSecond * 1e9),
    run.verified === null ? "-" : run.verified ? "yes" : "NO",
  ]);
  return formatTable(rows, {
    columns: [
      { header: "run", align: "right" },
      { header: "move", align: "right" },
      { header: "into the busiest rank", align: "right" },
      { header: "rate", align: "right" },
      { header: "verified" },
    ],
    color,
  });
}

function verdictText(report: RearrangeReport): string {
  if (report.verified === null) return "not verified";
  if (report.verified) {
    return "verified: every expert's digest is that of its source";
  }
  const lines = report.mismatched.map(({ layer, rank, slot, expert, tensor }) =>
    `  layer ${layer}, rank ${rank}, slot ${slot}: expert ${expert}, ${tensor}`
  );
  return [`WRONG BYTES in ${report.mismatches} tensors:`, ...lines].join("\n");
}
