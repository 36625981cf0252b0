// SPDX-License-Identifier: Apache-2.0
// The table of `bench --serving`.

import {
  formatBytes,
  formatRate,
  formatSeconds,
  formatTable,
} from "../../report/table.ts";
import type { Moved, Serving, ServingCase } from "./serving.ts";

/** What is measured, and the table. */
export function servingText(serving: Serving, color: boolean): string {
  const runs = serving.cases[0]!.async.runs.length;
  return [
    "A step loop while every layer is rearranged by the policy preserve, all ranks in one process;\n" +
    `medians of ${runs} rearrangements, in brackets the worst of them. ${
      forwardText(serving)
    }`,
    servingTable(serving, color),
    `Held against ${serving.idleSteps} steps alone: speed against their mean, the longest step against their median, which is\n` +
    "shown, with the longest of them in brackets. pause: what `step()` takes, mean and longest.\n" +
    `async: one layer changes between two steps${boundText(serving)}. ` +
    "sync: one step waits for all layers.",
  ].join("\n\n");
}

function boundText({ maxRate }: Serving): string {
  return maxRate === null
    ? ""
    : `; a rank gathers at most ${formatRate(maxRate)}`;
}

function forwardText({ product, stepSeconds, cases }: Serving): string {
  const counts = cases.map(({ products }) => products);
  if (counts.includes(null)) {
    return `Forward pass:\na timer of ${
      formatSeconds(stepSeconds)
    }; nothing is computed.`;
  }
  const { m, n, k } = product;
  return `Forward pass:\n${[...new Set(counts)].join(" or ")} products ` +
    `[${m}, ${k}] x [${k}, ${n}] on each GPU at once.`;
}

function servingTable({ cases }: Serving, color: boolean): string {
  return formatTable(cases.flatMap((one) => [asyncRow(one), syncRow(one)]), {
    columns: [
      { header: "model" },
      { header: "transport" },
      { header: "mode" },
      { header: "step alone", align: "right" },
      { header: "steps", align: "right" },
      { header: "speed kept", align: "right" },
      { header: "longest step", align: "right" },
      { header: "pause (longest)", align: "right" },
      { header: "slots moved", align: "right" },
      { header: "into busiest rank", align: "right" },
      { header: "time", align: "right" },
      { header: "rate", align: "right" },
      { header: "wrong", align: "right" },
    ],
    color,
  });
}

function asyncRow(
  { model, transport, async: { median, runs }, wrong }: ServingCase,
): string[] {
  const slowest = Math.min(...runs.map(({ speedKept }) => speedKept));
  const longest = Math.max(...runs.map(({ longest }) => longest));
  return [
    model,
    transport,
    "async",
    `${formatSeconds(median.idleSeconds)} (${times(median.idleLongest)})`,
    String(Math.round(median.steps)),
    `${percent(median.speedKept)} (${percent(slowest)})`,
    `${times(median.longest)} (${times(longest)})`,
    ...movedCells(median, runs),
    String(wrong),
  ];
}

function syncRow(
  { model, transport, sync: { median, runs }, wrong }: ServingCase,
): string[] {
  return [
    ...[model, transport, "sync", "-", "1", "-", "-"],
    ...movedCells(median, runs),
    String(wrong),
  ];
}

function movedCells(median: Moved, runs: readonly Moved[]): string[] {
  const pause = Math.max(...runs.map(({ pauseSeconds }) => pauseSeconds));
  return [
    `${formatSeconds(median.meanPauseSeconds)} (${formatSeconds(pause)})`,
    percent(median.moved),
    formatBytes(median.busiestBytes),
    formatSeconds(median.moveSeconds),
    formatRate(median.bytesPerSecond),
  ];
}

function percent(fraction: number): string {
  return `${(100 * fraction).toFixed(1)} %`;
}

function times(ratio: number): string {
  return `${ratio.toFixed(2)}x`;
}
