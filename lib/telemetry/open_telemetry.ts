// SPDX-License-Identifier: Apache-2.0

/**
 * Metrics through OpenTelemetry.
 *
 * @module
 */
import meta from "../../deno.json" with { type: "json" };
import type { Metric, MetricName, MetricUnit } from "./instruments.ts";
import type { OpenTelemetryCallback, OpenTelemetryMeter } from "./meter.ts";
import type { EplbMetrics } from "./metrics.ts";

type Histogram = ReturnType<OpenTelemetryMeter["createHistogram"]>;

/** Options of {@linkcode exportMetrics}. */
export interface ExportMetricsOptions {
  /**
   * Meter that makes the instruments.
   *
   * @default {"@eplb/eplb" of the global meter provider}
   */
  readonly meter?: OpenTelemetryMeter;
}

/** Units as OpenTelemetry writes them: UCUM, with things counted in braces. */
const UNITS: Readonly<Record<MetricUnit, string>> = {
  bytes: "By",
  cycles: "{cycle}",
  events: "{event}",
  layers: "{layer}",
  ratio: "1",
  seconds: "s",
  slots: "{slot}",
  steps: "{step}",
  tokens: "{token}",
};

/**
 * Hands metrics to OpenTelemetry, under the names and labels of {@linkcode METRICS}.
 *
 * With `OTEL_DENO=true` in the environment Deno sends them by itself, to where
 * `OTEL_EXPORTER_OTLP_ENDPOINT` says. Counters and gauges are read when they are
 * sent; histograms are told each value as it is recorded, from now on, so call it
 * before the first cycle.
 *
 * `npm:@opentelemetry/api` is loaded by the call, and only if no meter is given.
 * Without `OTEL_DENO` and without another provider the instruments do nothing.
 *
 * @param metrics What is handed over.
 * @param options The meter.
 * @returns What takes the metrics away from OpenTelemetry when disposed.
 *
 * @example
 * ```ts
 * import { EplbMetrics, exportMetrics } from "@eplb/eplb";
 * import { assertEquals } from "@std/assert";
 *
 * const metrics = new EplbMetrics();
 * using _exported = await exportMetrics(metrics);
 * metrics.observe({ type: "cycle-skipped", step: 6000, cycle: 1 });
 * // What Deno sends from now on, under OTEL_DENO=true:
 * const [skipped] = metrics.series("eplb_cycles_skipped_total");
 * assertEquals(skipped!.value, 1);
 * ```
 */
export async function exportMetrics(
  metrics: EplbMetrics,
  options: ExportMetricsOptions = {},
): Promise<Disposable> {
  const meter = options.meter ?? await globalMeter();
  const parts = new DisposableStack();
  const histograms = new Map<MetricName, Histogram>();
  for (const metric of metrics.metrics) {
    if (metric.kind === "histogram") {
      histograms.set(metric.name, createHistogram(meter, metric));
    } else {
      parts.use(observeSeries(meter, { metric, metrics }));
    }
  }
  parts.use(metrics.subscribe(({ name, labels, value }) => {
    histograms.get(name)?.record(value, labels);
  }));
  return parts;
}

/** Loaded late: those who never export need neither the package nor the network. */
async function globalMeter(): Promise<OpenTelemetryMeter> {
  const api = await import("@opentelemetry/api");
  return api.metrics.getMeter(meta.name, meta.version);
}

function createHistogram(meter: OpenTelemetryMeter, metric: Metric): Histogram {
  const { name, help, unit, buckets } = metric;
  return meter.createHistogram(name, {
    description: help,
    unit: UNITS[unit],
    advice: { explicitBucketBoundaries: [...buckets] },
  });
}

/** A counter or gauge that reads its series whenever OpenTelemetry asks. */
function observeSeries(
  meter: OpenTelemetryMeter,
  { metric, metrics }: {
    readonly metric: Metric;
    readonly metrics: EplbMetrics;
  },
): Disposable {
  const { name, kind, help, unit } = metric;
  const options = { description: help, unit: UNITS[unit] };
  const instrument = kind === "counter"
    ? meter.createObservableCounter(name, options)
    : meter.createObservableGauge(name, options);
  const read: OpenTelemetryCallback = (result) => {
    for (const { labels, value } of metrics.series(name)) {
      result.observe(value, labels);
    }
  };
  instrument.addCallback(read);
  return { [Symbol.dispose]: () => instrument.removeCallback(read) };
}
