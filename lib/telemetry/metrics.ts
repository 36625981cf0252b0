// SPDX-License-Identifier: Apache-2.0

/**
 * Metrics of a model that is balanced while it serves.
 *
 * @module
 */
import { checkInteger } from "../_check.ts";
import type { EplbEvent } from "../runtime/events.ts";
import { type BucketOverrides, withBuckets } from "./buckets.ts";
import { Family, type MetricSeries } from "./family.ts";
import type { Metric, MetricName } from "./instruments.ts";
import { formatMetric } from "./prometheus.ts";
import { type MetricSample, samplesOf } from "./samples.ts";

/** Options of {@linkcode EplbMetrics}. */
export interface EplbMetricsOptions {
  /**
   * Other buckets for some histograms: upper bounds by name of the metric.
   *
   * @default {those of the table}
   */
  readonly buckets?: BucketOverrides;
}

/**
 * Keeps the metrics of a state in memory, for whoever reads them.
 *
 * It listens to the state's events. {@linkcode METRICS} lists what it keeps;
 * memory is bounded by models × layers.
 *
 * @example
 * ```ts
 * import { EplbMetrics } from "@eplb/eplb";
 * import { assertEquals } from "@std/assert";
 *
 * const metrics = new EplbMetrics();
 * // A state calls it: `onEvent: (event) => metrics.observe(event)`.
 * metrics.observe({
 *   type: "layers-committed",
 *   model: "main",
 *   cycle: 1,
 *   step: 3000,
 *   firstLayer: 0,
 *   layers: 4,
 *   commitSeconds: 0.0003,
 *   stallSeconds: 0.0004,
 * });
 * const [layers] = metrics.series("eplb_committed_layers_total");
 * assertEquals(layers!.value, 4);
 * ```
 */
export class EplbMetrics {
  readonly #families: ReadonlyMap<MetricName, Family>;
  readonly #models = new Set<string>();
  readonly #listeners = new Set<(sample: MetricSample) => void>();
  #step = 0;

  /**
   * Creates metrics in which nothing has been counted.
   *
   * @param options Buckets.
   * @throws {TypeError} If buckets are not an array.
   * @throws {RangeError} If buckets are empty, not finite or not ascending, or
   * if there is no histogram of that name.
   *
   * @example
   * ```ts
   * import { EplbMetrics } from "@eplb/eplb";
   * import { assertThrows } from "@std/assert";
   *
   * new EplbMetrics({ buckets: { eplb_plan_seconds: [0.1, 1, 10] } });
   * assertThrows(
   *   () => new EplbMetrics({ buckets: { eplb_plan_seconds: [1, 0.1] } }),
   *   RangeError,
   *   "Cannot set buckets of eplb_plan_seconds: bound 1 must be above 1, got 0.1",
   * );
   * ```
   */
  constructor(options: EplbMetricsOptions = {}) {
    const metrics = withBuckets(options.buckets ?? {});
    this.#families = new Map(
      metrics.map((metric) => [metric.name, new Family(metric)]),
    );
    for (const family of this.#families.values()) family.begin({});
  }

  /**
   * Every metric with the buckets that it has here.
   *
   * @example
   * ```ts
   * import { EplbMetrics } from "@eplb/eplb";
   * import { assertEquals } from "@std/assert";
   *
   * const buckets = { eplb_plan_seconds: [0.1, 1, 10] };
   * const { metrics } = new EplbMetrics({ buckets });
   * const plan = metrics.find(({ name }) => name === "eplb_plan_seconds");
   * assertEquals(plan?.buckets, [0.1, 1, 10]);
   * ```
   */
  get metrics(): readonly Metric[] {
    return [...this.#families.values()].map(({ metric }) => metric);
  }

  /**
   * Counts what an event tells.
   *
   * An event that makes no sense (of an unknown type, or with a number that is
   * negative or not finite) is left out as a whole, and counted in
   * `eplb_events_dropped_total`.
   *
   * @param event What a state tells.
   *
   * @example
   * ```ts
   * import { EplbMetrics } from "@eplb/eplb";
   * import { assertEquals } from "@std/assert";
   *
   * const metrics = new EplbMetrics();
   * metrics.observe({ type: "cycle-skipped", step: 6000, cycle: 1 });
   * const [skipped] = metrics.series("eplb_cycles_skipped_total");
   * assertEquals(skipped!.value, 1);
   * ```
   */
  observe(event: EplbEvent): void {
    const samples = samplesOf(event);
    if (!samples?.every((sample) => this.#accepts(sample))) {
      this.#record({ name: "eplb_events_dropped_total", labels: {}, value: 1 });
      return;
    }
    this.#step = Math.max(this.#step, event.step);
    if ("model" in event) this.#begin(event.model);
    for (const sample of samples) this.#record(sample);
  }

  /**
   * Tells how far the model is, for `eplb_cycle_age_steps`.
   *
   * Without it, the newest event's step is taken, and the age of the last cycle
   * stays at 0 until the next one begins.
   *
   * @param step Steps done so far; fewer than before are not looked at.
   * @throws {RangeError} If it is not a non-negative integer.
   *
   * @example
   * ```ts
   * import { EplbMetrics } from "@eplb/eplb";
   * import { assertEquals } from "@std/assert";
   *
   * const metrics = new EplbMetrics();
   * metrics.observe({
   *   type: "cycle-ended",
   *   model: "main",
   *   cycle: 1,
   *   step: 3000,
   *   outcome: "unchanged",
   *   reason: undefined,
   *   failedRank: undefined,
   *   committedLayers: 58,
   *   layers: 58,
   *   moves: { unchanged: 0, sameRank: 0, duplicate: 0, sameNode: 0, crossNode: 0 },
   *   bytes: { sameRank: 0, sameNode: 0, crossNode: 0 },
   *   steps: 1,
   *   moveSeconds: 0,
   *   stallSeconds: 0.001,
   *   seconds: 0.2,
   * });
   * metrics.observeStep(3100);
   * const [age] = metrics.series("eplb_cycle_age_steps");
   * assertEquals(age!.value, 100);
   * ```
   */
  observeStep(step: number): void {
    checkInteger(step, {
      action: "observe step",
      name: "the step",
      min: 0,
      max: Number.MAX_SAFE_INTEGER,
    });
    this.#step = Math.max(this.#step, step);
  }

  /**
   * Reads one metric.
   *
   * @param name The metric.
   * @returns Its series, by model, then in the order of the table or of the layers.
   *
   * @example
   * ```ts
   * import { EplbMetrics } from "@eplb/eplb";
   * import { assertEquals } from "@std/assert";
   *
   * const metrics = new EplbMetrics();
   * assertEquals(metrics.series("eplb_cycles_skipped_total"), [
   *   { labels: {}, value: 0, counts: [] },
   * ]);
   * ```
   */
  series(name: MetricName): readonly MetricSeries[] {
    if (name !== "eplb_cycle_age_steps") return this.#family(name).series();
    return this.#family("eplb_last_cycle_step").series().map((last) => ({
      ...last,
      value: this.#step - last.value,
    }));
  }

  /**
   * Writes all metrics in Prometheus' text exposition format 0.0.4.
   *
   * @returns Lines, each with a line break at its end; equal metrics give equal text.
   *
   * @example
   * ```ts
   * import { EplbMetrics } from "@eplb/eplb";
   * import { assert } from "@std/assert";
   *
   * const metrics = new EplbMetrics();
   * metrics.observe({ type: "cycle-skipped", step: 6000, cycle: 1 });
   * const lines = metrics.prometheus().split("\n");
   * assert(lines.includes("# TYPE eplb_cycles_skipped_total counter"));
   * assert(lines.includes("eplb_cycles_skipped_total 1"));
   * ```
   */
  prometheus(): string {
    return this.metrics
      .map((metric) => formatMetric(metric, this.series(metric.name)))
      .join("");
  }

  /**
   * Calls a function with every value from now on, as it is recorded.
   *
   * What the function throws comes out of {@linkcode EplbMetrics.observe}.
   *
   * @param listener The function.
   * @returns What ends it when disposed.
   *
   * @example
   * ```ts
   * import { EplbMetrics } from "@eplb/eplb";
   * import { assertEquals } from "@std/assert";
   *
   * const metrics = new EplbMetrics();
   * const names: string[] = [];
   * {
   *   using _listening = metrics.subscribe(({ name }) => names.push(name));
   *   metrics.observe({ type: "cycle-skipped", step: 6000, cycle: 1 });
   * }
   * metrics.observe({ type: "cycle-skipped", step: 9000, cycle: 1 });
   * assertEquals(names, ["eplb_cycles_skipped_total"]);
   * ```
   */
  subscribe(listener: (sample: MetricSample) => void): Disposable {
    // One entry for each call: the same function may listen twice.
    const entry = (sample: MetricSample): void => listener(sample);
    this.#listeners.add(entry);
    return { [Symbol.dispose]: () => void this.#listeners.delete(entry) };
  }

  #family(name: MetricName): Family {
    return this.#families.get(name)!;
  }

  #accepts(sample: MetricSample): boolean {
    return this.#family(sample.name).accepts(sample);
  }

  #record(sample: MetricSample): void {
    this.#family(sample.name).record(sample);
    for (const listener of this.#listeners) listener(sample);
  }

  #begin(model: string): void {
    if (this.#models.has(model)) return;
    this.#models.add(model);
    for (const family of this.#families.values()) family.begin({ model });
  }
}
