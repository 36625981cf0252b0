// SPDX-License-Identifier: Apache-2.0
// The tables of `bench`, in the manner of nccl-tests.

import {
  formatBytes,
  formatRate,
  formatSeconds,
  formatTable,
} from "../../report/table.ts";
import { type Ceiling, CEILING_PIECE } from "./ceilings.ts";
import type { Interference } from "./interference.ts";
import type { Serving } from "./serving.ts";
import { servingText } from "./serving_report.ts";
import type { Transfer } from "./transfers.ts";

/** The JSON document of `bench --json`. */
export interface BenchReport {
  readonly eplb: string;
  readonly date: string;
  readonly device: string;
  readonly ranks: number;
  readonly nccl: number | null;
  readonly ceilings: readonly Ceiling[];
  readonly transfers: readonly Transfer[];
  readonly interference: readonly Interference[];
  /** What `--serving` measures instead of all that; null without it. */
  readonly serving: Serving | null;
}

/** The rate that transfers are held against, in bytes per second. */
export function ceilingOf(ceilings: readonly Ceiling[]): number | undefined {
  return ceilings.find((one) => one.pieceBytes === CEILING_PIECE)?.copyEngine;
}

/** The report for people. */
export function benchText(report: BenchReport, color: boolean): string {
  const parts = [`${report.device}, ${report.ranks} ranks`];
  if (report.serving !== null) {
    return [...parts, servingText(report.serving, color)].join("\n\n");
  }
  if (report.ceilings.length > 0) {
    parts.push("Ceilings: rate into one GPU", ceilingTable(report, color));
  }
  parts.push(
    "Rearrangements: chains of random maps, every byte verified",
    transferTable(report, color),
  );
  if (report.interference.length > 0) {
    parts.push(
      "Matrix products beside moving weights",
      interferenceTable(report, color),
    );
  }
  return parts.join("\n\n");
}

function rate(bytesPerSecond: number): string {
  return Number.isFinite(bytesPerSecond) ? formatRate(bytesPerSecond) : "-";
}

function ceilingTable(report: BenchReport, color: boolean): string {
  const rows = report.ceilings.map((one) => [
    formatBytes(one.pieceBytes),
    rate(one.copyEngine),
    rate(one.kernel),
    rate(one.local),
  ]);
  return formatTable(rows, {
    columns: [
      { header: "piece", align: "right" },
      { header: "copy engine", align: "right" },
      { header: "kernel", align: "right" },
      { header: "inside a GPU", align: "right" },
    ],
    color,
  });
}

function transferTable(report: BenchReport, color: boolean): string {
  const ceiling = ceilingOf(report.ceilings);
  const rows = report.transfers.map((one) => [
    one.model,
    one.transport,
    String(one.processes),
    formatBytes(one.busiestBytes),
    formatSeconds(one.moveSeconds),
    rate(one.bytesPerSecond),
    ceiling === undefined
      ? "-"
      : `${(100 * one.bytesPerSecond / ceiling).toFixed(0)} %`,
    formatBytes(one.stagingBytes),
    String(one.wrong),
  ]);
  return formatTable(rows, {
    columns: [
      { header: "model" },
      { header: "transport" },
      { header: "processes", align: "right" },
      { header: "into busiest rank", align: "right" },
      { header: "time", align: "right" },
      { header: "rate", align: "right" },
      { header: "of ceiling", align: "right" },
      { header: "staging", align: "right" },
      { header: "wrong", align: "right" },
    ],
    color,
  });
}

function interferenceTable(report: BenchReport, color: boolean): string {
  const rows = report.interference.map((one) => [
    one.products,
    one.transport,
    one.maxRate === null ? "-" : formatRate(one.maxRate),
    formatSeconds(one.alone),
    formatSeconds(one.beside),
    `${one.slowdown.toFixed(3)}x`,
    rate(one.movingAlone),
    rate(one.movingBeside),
  ]);
  return formatTable(rows, {
    columns: [
      { header: "products" },
      { header: "beside" },
      { header: "bound", align: "right" },
      { header: "alone", align: "right" },
      { header: "beside", align: "right" },
      { header: "slow-down", align: "right" },
      { header: "moving alone", align: "right" },
      { header: "moving beside", align: "right" },
    ],
    color,
  });
}
