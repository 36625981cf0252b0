// SPDX-License-Identifier: Apache-2.0

/**
 * Metrics as Prometheus reads them: text exposition format 0.0.4.
 *
 * @module
 */
import type { MetricSeries } from "./family.ts";
import type { Metric } from "./instruments.ts";
import type { MetricLabels } from "./samples.ts";

/** Media type of the format. */
export const PROMETHEUS_CONTENT_TYPE =
  "text/plain; version=0.0.4; charset=utf-8";

/** Writes one metric: what it is, and a line for each of its values. */
export function formatMetric(
  metric: Metric,
  series: readonly MetricSeries[],
): string {
  if (series.length === 0) return "";
  const { name, kind, help } = metric;
  const lines = series.flatMap((one) =>
    kind === "histogram"
      ? histogramLines(metric, one)
      : [line(name, one.labels, one.value)]
  );
  return [
    `# HELP ${name} ${escapeHelp(help)}`,
    `# TYPE ${name} ${kind}`,
    ...lines,
    "",
  ].join("\n");
}

/** Each bucket counts all values up to its bound, those of smaller ones too. */
function histogramLines(
  { name, buckets }: Metric,
  { labels, value, counts }: MetricSeries,
): string[] {
  let count = 0;
  const lines = counts.map((values, bucket) => {
    count += values;
    const le = bucket < buckets.length ? String(buckets[bucket]) : "+Inf";
    return line(`${name}_bucket`, { ...labels, le }, count);
  });
  return [
    ...lines,
    line(`${name}_sum`, labels, value),
    line(`${name}_count`, labels, count),
  ];
}

function line(name: string, labels: MetricLabels, value: number): string {
  const pairs = Object.entries(labels).map(([label, text]) =>
    `${label}="${escapeLabel(text)}"`
  );
  return `${name}${pairs.length === 0 ? "" : `{${pairs.join(",")}}`} ${value}`;
}

function escapeHelp(text: string): string {
  return text.replaceAll("\\", "\\\\").replaceAll("\n", "\\n");
}

function escapeLabel(text: string): string {
  return escapeHelp(text).replaceAll('"', '\\"');
}
