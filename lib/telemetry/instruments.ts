// SPDX-License-Identifier: Apache-2.0

/**
 * The table of every metric; all else about metrics derives from it.
 *
 * @module
 */
import type { GateReason } from "../policies/gate.ts";
import type { CycleOutcome, CycleTrigger } from "../runtime/events.ts";

/**
 * How a metric behaves:
 *
 * | kind | what a value does |
 * | --- | --- |
 * | `counter` | it is added to what is there; the sum never falls |
 * | `gauge` | it takes the place of what is there |
 * | `histogram` | it is counted in a bucket, and added to a sum |
 */
export type MetricKind = "counter" | "gauge" | "histogram";

/** Name of a metric. */
export type MetricName =
  | "eplb_balancedness_ratio"
  | "eplb_layer_balancedness_ratio"
  | "eplb_planned_balancedness_ratio"
  | "eplb_planned_layer_balancedness_ratio"
  | "eplb_window_tokens"
  | "eplb_mean_rank_tokens"
  | "eplb_max_rank_tokens"
  | "eplb_last_cycle_step"
  | "eplb_cycle_age_steps"
  | "eplb_cycles_started_total"
  | "eplb_cycles_total"
  | "eplb_cycles_skipped_total"
  | "eplb_gate_decisions_total"
  | "eplb_committed_layers_total"
  | "eplb_moved_slots_total"
  | "eplb_moved_bytes_total"
  | "eplb_events_dropped_total"
  | "eplb_load_reduction_seconds"
  | "eplb_plan_seconds"
  | "eplb_move_seconds"
  | "eplb_commit_seconds"
  | "eplb_commit_stall_seconds"
  | "eplb_cycle_stall_seconds"
  | "eplb_cycle_seconds"
  | "eplb_cycle_steps";

/** What a metric is counted in. */
export type MetricUnit =
  | "bytes"
  | "cycles"
  | "events"
  | "layers"
  | "ratio"
  | "seconds"
  | "slots"
  | "steps"
  | "tokens";

/** What tells the series of one metric apart. */
export interface MetricLabel {
  /** Name of the label. */
  readonly name: string;
  /**
   * All values that it can have; undefined for the names of models and the
   * numbers of layers.
   */
  readonly values?: readonly string[];
}

/** One line of the table. */
export interface Metric {
  /** Name, in Prometheus and in OpenTelemetry. */
  readonly name: MetricName;
  /** How it behaves. */
  readonly kind: MetricKind;
  /** What it is counted in. */
  readonly unit: MetricUnit;
  /** What it tells, in one sentence. */
  readonly help: string;
  /** What tells its series apart. */
  readonly labels: readonly MetricLabel[];
  /** Upper bounds of a histogram's buckets, ascending, without infinity; empty otherwise. */
  readonly buckets: readonly number[];
}

/** Lists the values of a label; the type sees to it that none is missing. */
function all<T extends string>(values: Record<T, true>): readonly T[] {
  return Object.keys(values) as T[];
}

const MODEL: MetricLabel = { name: "model" };
const LAYER: MetricLabel = { name: "layer" };
const OUTCOME: MetricLabel = {
  name: "outcome",
  values: all<CycleOutcome>({
    committed: true,
    resplit: true,
    unchanged: true,
    abandoned: true,
    failed: true,
  }),
};
const TRIGGER: MetricLabel = {
  name: "trigger",
  values: all<CycleTrigger>({
    interval: true,
    request: true,
    "active-ranks": true,
  }),
};
const REASON: MetricLabel = {
  name: "reason",
  values: all<GateReason>({
    unchanged: true,
    first: true,
    restore: true,
    pays: true,
    "rates-unknown": true,
    noise: true,
    "no-gain": true,
    "costs-more": true,
  }),
};
const SLOT_CASE: MetricLabel = {
  name: "case",
  values: ["same-rank", "duplicate", "same-node", "cross-node"],
};
const BYTE_CASE: MetricLabel = {
  name: "case",
  values: ["same-rank", "same-node", "cross-node"],
};

// From well below to well above what each phase takes: a commit tens of microseconds to milliseconds, a
// plan milliseconds to tens of them, a cycle tens of milliseconds to minutes.
const FROM_10_US = [
  ...[1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 0.001, 0.0025],
  ...[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1],
];
const FROM_1_MS = [
  ...[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25],
  ...[0.5, 1, 2.5, 5, 10, 30, 60],
];
const FROM_10_MS = [
  ...[0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5],
  ...[5, 10, 30, 60, 120, 300, 600],
];
const FROM_1_STEP = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000];

/** A line as it is written below: without a name, and with buckets only where there are some. */
type MetricSpec =
  & Omit<Metric, "name" | "buckets">
  & Partial<Pick<Metric, "buckets">>;

const TABLE: Readonly<Record<MetricName, MetricSpec>> = {
  eplb_balancedness_ratio: {
    kind: "gauge",
    unit: "ratio",
    help:
      "Balancedness (mean tokens of a rank over those of the busiest) in the last load window, under the map that served it, mean over the layers",
    labels: [MODEL],
  },
  eplb_layer_balancedness_ratio: {
    kind: "gauge",
    unit: "ratio",
    help:
      "Balancedness of a layer in the last load window, under the map that served it",
    labels: [MODEL, LAYER],
  },
  eplb_planned_balancedness_ratio: {
    kind: "gauge",
    unit: "ratio",
    help:
      "Balancedness in the last load window, under the map that was decided for it, mean over the layers",
    labels: [MODEL],
  },
  eplb_planned_layer_balancedness_ratio: {
    kind: "gauge",
    unit: "ratio",
    help:
      "Balancedness of a layer in the last load window, under the map that was decided for it",
    labels: [MODEL, LAYER],
  },
  eplb_window_tokens: {
    kind: "gauge",
    unit: "tokens",
    help: "Tokens in the last load window, over all ranks, layers and experts",
    labels: [MODEL],
  },
  eplb_mean_rank_tokens: {
    kind: "gauge",
    unit: "tokens",
    help:
      "Mean tokens of a rank in the last load window, over the layers with load",
    labels: [MODEL],
  },
  eplb_max_rank_tokens: {
    kind: "gauge",
    unit: "tokens",
    help:
      "Largest tokens of a rank in the last load window, over the layers with load",
    labels: [MODEL],
  },
  eplb_last_cycle_step: {
    kind: "gauge",
    unit: "steps",
    help: "Step at which the last cycle ended",
    labels: [MODEL],
  },
  eplb_cycle_age_steps: {
    kind: "gauge",
    unit: "steps",
    help: "Steps since the last cycle ended",
    labels: [MODEL],
  },
  eplb_cycles_started_total: {
    kind: "counter",
    unit: "cycles",
    help: "Cycles that have begun, by why",
    labels: [MODEL, TRIGGER],
  },
  eplb_cycles_total: {
    kind: "counter",
    unit: "cycles",
    help: "Cycles that have ended, by how",
    labels: [MODEL, OUTCOME],
  },
  eplb_cycles_skipped_total: {
    kind: "counter",
    unit: "cycles",
    help: "Cycles that did not begin because one was in progress",
    labels: [],
  },
  eplb_gate_decisions_total: {
    kind: "counter",
    unit: "layers",
    help: "Layers on which the gate has decided, by why they move or not",
    labels: [MODEL, REASON],
  },
  eplb_committed_layers_total: {
    kind: "counter",
    unit: "layers",
    help: "Layers that have got new weights and maps",
    labels: [MODEL],
  },
  eplb_moved_slots_total: {
    kind: "counter",
    unit: "slots",
    help:
      "Slots of committed layers that have got another expert, over all ranks, by where it came from",
    labels: [MODEL, SLOT_CASE],
  },
  eplb_moved_bytes_total: {
    kind: "counter",
    unit: "bytes",
    help:
      "Bytes that have entered slots of committed layers, over all ranks, by where they came from",
    labels: [MODEL, BYTE_CASE],
  },
  eplb_events_dropped_total: {
    kind: "counter",
    unit: "events",
    help:
      "Events left out of all metrics: of an unknown type, or with a number that is negative or not finite",
    labels: [],
  },
  eplb_load_reduction_seconds: {
    kind: "histogram",
    unit: "seconds",
    help: "Time that adding up the load over the ranks took in a cycle",
    labels: [MODEL],
    buckets: FROM_1_MS,
  },
  eplb_plan_seconds: {
    kind: "histogram",
    unit: "seconds",
    help: "Time that the policy and the gate took in a cycle",
    labels: [MODEL],
    buckets: FROM_1_MS,
  },
  eplb_move_seconds: {
    kind: "histogram",
    unit: "seconds",
    help:
      "Time from the first byte to the last commit of a cycle, of cycles that moved bytes",
    labels: [MODEL],
    buckets: FROM_10_MS,
  },
  eplb_commit_seconds: {
    kind: "histogram",
    unit: "seconds",
    help: "Time that putting layers in place took at the end of a step",
    labels: [MODEL],
    buckets: FROM_10_US,
  },
  eplb_commit_stall_seconds: {
    kind: "histogram",
    unit: "seconds",
    help: "Time for which a step was held up while layers were committed",
    labels: [MODEL],
    buckets: FROM_10_US,
  },
  eplb_cycle_stall_seconds: {
    kind: "histogram",
    unit: "seconds",
    help: "Time for which steps were held up in a cycle, in all",
    labels: [MODEL],
    buckets: FROM_1_MS,
  },
  eplb_cycle_seconds: {
    kind: "histogram",
    unit: "seconds",
    help: "Time from the start to the end of a cycle",
    labels: [MODEL],
    buckets: FROM_10_MS,
  },
  eplb_cycle_steps: {
    kind: "histogram",
    unit: "steps",
    help: "Steps from the first to the last of a cycle",
    labels: [MODEL],
    buckets: FROM_1_STEP,
  },
};

/**
 * Every metric, in the order in which they are listed everywhere.
 *
 * @example
 * ```ts
 * import { METRICS } from "@eplb/eplb";
 * import { assertEquals } from "@std/assert";
 *
 * const bytes = METRICS.find(({ name }) => name === "eplb_moved_bytes_total")!;
 * assertEquals(bytes.kind, "counter");
 * assertEquals(bytes.unit, "bytes");
 * assertEquals(bytes.labels.map(({ name }) => name), ["model", "case"]);
 * ```
 */
export const METRICS: readonly Metric[] = (Object.keys(TABLE) as MetricName[])
  .map((name) => ({ buckets: [], ...TABLE[name], name }));
