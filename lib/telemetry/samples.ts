// SPDX-License-Identifier: Apache-2.0

/**
 * What an event adds to the metrics.
 *
 * @module
 */
import type { CycleDecided, CycleEnded, EplbEvent } from "../runtime/events.ts";
import type { MetricName } from "./instruments.ts";

/** Values of a metric's labels, by name and in the table's order. */
export type MetricLabels = Readonly<Record<string, string>>;

/** One value of one metric. */
export interface MetricSample {
  /** The metric. */
  readonly name: MetricName;
  /** Which of its series. */
  readonly labels: MetricLabels;
  /** The value, in the metric's unit. */
  readonly value: number;
}

/** Lists what an event adds to the metrics; undefined for events of an unknown type. */
export function samplesOf(
  event: EplbEvent,
): readonly MetricSample[] | undefined {
  switch (event.type) {
    case "cycle-started": {
      const labels = { model: event.model, trigger: event.trigger };
      return [{ name: "eplb_cycles_started_total", labels, value: 1 }];
    }
    case "cycle-decided":
      return [...gauges(event), ...layerGauges(event), ...decisions(event)];
    case "layers-committed": {
      const { layers, commitSeconds, stallSeconds } = event;
      return ofModel(event.model, {
        eplb_committed_layers_total: layers,
        eplb_commit_seconds: commitSeconds,
        eplb_commit_stall_seconds: stallSeconds,
      });
    }
    case "cycle-ended":
      return [...ending(event), ...moved(event)];
    case "cycle-skipped":
      return [{ name: "eplb_cycles_skipped_total", labels: {}, value: 1 }];
    default:
      return undefined;
  }
}

/** Samples that have no label but the model's. */
function ofModel(
  model: string,
  values: Partial<Record<MetricName, number>>,
): MetricSample[] {
  return Object.entries(values).map(([name, value]) => ({
    name: name as MetricName,
    labels: { model },
    value,
  }));
}

function gauges(event: CycleDecided): MetricSample[] {
  return ofModel(event.model, {
    eplb_balancedness_ratio: mean(event.balancednessBefore),
    eplb_planned_balancedness_ratio: mean(event.balancednessAfter),
    eplb_window_tokens: event.tokens,
    eplb_mean_rank_tokens: event.rankTokens.mean,
    eplb_max_rank_tokens: event.rankTokens.max,
    eplb_load_reduction_seconds: event.loadSeconds,
    eplb_plan_seconds: event.planSeconds,
  });
}

function layerGauges(event: CycleDecided): MetricSample[] {
  const { model, balancednessBefore, balancednessAfter } = event;
  const perLayer = (name: MetricName, values: Float64Array): MetricSample[] =>
    Array.from(values, (value, layer) => ({
      name,
      labels: { model, layer: String(layer) },
      value,
    }));
  return [
    ...perLayer("eplb_layer_balancedness_ratio", balancednessBefore),
    ...perLayer("eplb_planned_layer_balancedness_ratio", balancednessAfter),
  ];
}

function decisions({ model, decisions }: CycleDecided): MetricSample[] {
  return decisions.map(({ reason }) => ({
    name: "eplb_gate_decisions_total",
    labels: { model, reason },
    value: 1,
  }));
}

function ending(event: CycleEnded): MetricSample[] {
  const { model, outcome, step, steps, moveSeconds } = event;
  return [
    { name: "eplb_cycles_total", labels: { model, outcome }, value: 1 },
    ...ofModel(model, {
      eplb_last_cycle_step: step,
      // Cycles that moved nothing would only fill the first bucket.
      ...(moveSeconds === 0 ? {} : { eplb_move_seconds: moveSeconds }),
      eplb_cycle_stall_seconds: event.stallSeconds,
      eplb_cycle_seconds: event.seconds,
      eplb_cycle_steps: steps,
    }),
  ];
}

function moved({ model, moves, bytes }: CycleEnded): MetricSample[] {
  const byCase = (
    name: MetricName,
    values: Readonly<Record<string, number>>,
  ): MetricSample[] =>
    Object.entries(values).map(([label, value]) => ({
      name,
      labels: { model, case: label },
      value,
    }));
  return [
    ...byCase("eplb_moved_slots_total", {
      "same-rank": moves.sameRank,
      duplicate: moves.duplicate,
      "same-node": moves.sameNode,
      "cross-node": moves.crossNode,
    }),
    ...byCase("eplb_moved_bytes_total", {
      "same-rank": bytes.sameRank,
      "same-node": bytes.sameNode,
      "cross-node": bytes.crossNode,
    }),
  ];
}

function mean(values: Float64Array): number {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}
