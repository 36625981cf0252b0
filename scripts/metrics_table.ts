// SPDX-License-Identifier: Apache-2.0

/**
 * Writes the tables of `docs/metrics.md` from the table in the source:
 *
 *     deno run --allow-read --allow-write scripts/metrics_table.ts
 *
 * @module
 */
import { METRICS } from "../lib/telemetry/instruments.ts";

const DOCUMENT = new URL("../docs/metrics.md", import.meta.url);
const BEGIN = "<!-- Written by scripts/metrics_table.ts: begin -->";
const END = "<!-- Written by scripts/metrics_table.ts: end -->";

/** Puts the tables of today between the marks of a document. */
export function withTables(document: string): string {
  const begin = document.indexOf(BEGIN);
  const end = document.indexOf(END);
  if (begin < 0 || end < begin) {
    throw new SyntaxError(
      `Cannot write tables: the document lacks "${BEGIN}" before "${END}"`,
    );
  }
  const head = document.slice(0, begin + BEGIN.length);
  return `${head}\n\n${tables()}\n\n${document.slice(end)}`;
}

function tables(): string {
  const metrics = METRICS.map(({ name, kind, unit, labels, help }) => [
    `\`${name}\``,
    kind,
    unit,
    labels.map(({ name }) => `\`${name}\``).join(", "),
    help,
  ]);
  const histograms = METRICS.filter(({ kind }) => kind === "histogram");
  return [
    table(["Metric", "Kind", "Unit", "Labels", "What it tells"], metrics),
    "Labels have no other values than these:",
    table(["Label", "Of", "Values"], labelRows()),
    "Buckets of the histograms, by their upper bounds:",
    table(
      ["Histogram", "Bounds"],
      histograms.map(({ name, buckets }) => [
        `\`${name}\``,
        buckets.join(", "),
      ]),
    ),
  ].join("\n\n");
}

/** A row for each set of values of a label, with the metrics that have it. */
function labelRows(): string[][] {
  const owners = new Map<string, string[]>();
  for (const metric of METRICS) {
    for (const { name, values } of metric.labels) {
      const key = JSON.stringify([name, values ?? []]);
      owners.set(key, [...owners.get(key) ?? [], `\`${metric.name}\``]);
    }
  }
  return [...owners].map(([key, names]) => {
    const [label, values] = JSON.parse(key) as [string, string[]];
    const open = label === "model"
      ? "names of the state's models"
      : "numbers of the model's layers, from 0";
    return [
      `\`${label}\``,
      label === "model" ? "all that have it" : names.join(", "),
      values.length === 0 ? open : values.map((v) => `\`${v}\``).join(", "),
    ];
  });
}

/** A table in Markdown, padded as `deno fmt` pads it. */
function table(header: readonly string[], rows: readonly string[][]): string {
  const widths = header.map((_, column) =>
    Math.max(...[header, ...rows].map((row) => row[column]!.length))
  );
  const line = (cells: readonly string[], fill = " "): string =>
    `| ${cells.map((cell, i) => cell.padEnd(widths[i]!, fill)).join(" | ")} |`;
  return [
    line(header),
    line(header.map(() => ""), "-"),
    ...rows.map((row) => line(row)),
  ].join("\n");
}

if (import.meta.main) {
  const document = await Deno.readTextFile(DOCUMENT);
  await Deno.writeTextFile(DOCUMENT, withTables(document));
}
