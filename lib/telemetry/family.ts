// SPDX-License-Identifier: Apache-2.0

/**
 * The series of one metric, in memory.
 *
 * @module
 */
import type { Metric } from "./instruments.ts";
import type { MetricLabels, MetricSample } from "./samples.ts";

/** What a series holds. */
export interface MetricSeries {
  /** Which series it is. */
  readonly labels: MetricLabels;
  /** Value of a counter or gauge; sum of a histogram's values. */
  readonly value: number;
  /**
   * Values of a histogram by bucket, [buckets + 1], each in one bucket: the first
   * whose bound it does not exceed, or the last, which has no bound. Empty for
   * counters and gauges.
   */
  readonly counts: readonly number[];
}

/** A series that can still change. */
interface Cell {
  readonly labels: MetricLabels;
  value: number;
  readonly counts: number[];
}

/** All series of one metric. */
export class Family {
  /** The metric. */
  readonly metric: Metric;
  readonly #cells = new Map<string, Cell>();

  constructor(metric: Metric) {
    this.metric = metric;
  }

  /** Whether a sample can be recorded: its number makes sense, and its labels are in the table. */
  accepts({ labels, value }: MetricSample): boolean {
    return Number.isFinite(value) && value >= 0 &&
      this.metric.labels.every(({ name, values }) =>
        typeof labels[name] === "string" &&
        (values === undefined || values.includes(labels[name]))
      );
  }

  /** Records a value as the metric's kind demands. */
  record({ labels, value }: MetricSample): void {
    const { kind, buckets } = this.metric;
    const cell = this.#cell(labels);
    cell.value = kind === "gauge" ? value : cell.value + value;
    if (kind !== "histogram") return;
    const bucket = buckets.findIndex((bound) => value <= bound);
    cell.counts[bucket < 0 ? buckets.length : bucket]! += 1;
  }

  /**
   * Lets what is counted begin at 0, where all labels are known: a rate cannot
   * see the first count of a series that appears with it.
   */
  begin(given: MetricLabels): void {
    const { kind, labels } = this.metric;
    if (kind === "gauge") return;
    let combinations: MetricLabels[] = [{}];
    for (const { name, values } of labels) {
      const choices = values ??
        (Object.hasOwn(given, name) ? [given[name]!] : []);
      combinations = combinations.flatMap((labels) =>
        choices.map((value) => ({ ...labels, [name]: value }))
      );
    }
    combinations.forEach((labels) => this.#cell(labels));
  }

  /** The series, by model, then in the order of the table or of the layers. */
  series(): readonly MetricSeries[] {
    return [...this.#cells.values()]
      .map(({ labels, value, counts }) => ({
        labels,
        value,
        counts: [...counts],
      }))
      .sort((a, b) =>
        compare(a.labels["model"] ?? "", b.labels["model"] ?? "")
      );
  }

  #cell(labels: MetricLabels): Cell {
    const { metric } = this;
    const key = JSON.stringify(metric.labels.map(({ name }) => labels[name]));
    const known = this.#cells.get(key);
    if (known !== undefined) return known;
    const counts = metric.kind === "histogram"
      ? Array<number>(metric.buckets.length + 1).fill(0)
      : [];
    const cell = { labels: Object.freeze({ ...labels }), value: 0, counts };
    this.#cells.set(key, cell);
    return cell;
  }
}

/** Compares by code unit, so that the order is the same in every locale. */
function compare(a: string, b: string): number {
  return a < b ? -1 : a > b ? 1 : 0;
}
