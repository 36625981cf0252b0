// SPDX-License-Identifier: Apache-2.0

/**
 * Buckets of histograms other than the table's.
 *
 * @module
 */
import { show } from "../_check.ts";
import { type Metric, METRICS } from "./instruments.ts";

/**
 * Upper bounds of the buckets by name of the histogram, ascending and finite;
 * the bucket for what is above all of them is always there.
 */
export type BucketOverrides = Readonly<Record<string, readonly number[]>>;

/** The table, with other buckets for some histograms; refuses those that are none. */
export function withBuckets(overrides: BucketOverrides): readonly Metric[] {
  for (const [name, buckets] of Object.entries(overrides)) {
    checkHistogram(name);
    checkBuckets(name, buckets);
  }
  return METRICS.map((metric) =>
    Object.hasOwn(overrides, metric.name)
      ? { ...metric, buckets: [...overrides[metric.name]!] }
      : metric
  );
}

function checkHistogram(name: string): void {
  const histograms = METRICS.filter(({ kind }) => kind === "histogram")
    .map(({ name }) => name as string);
  if (histograms.includes(name)) return;
  throw new RangeError(
    `Cannot set buckets: ${show(name)} is not a histogram; those are ${
      histograms.join(", ")
    }`,
  );
}

function checkBuckets(name: string, buckets: unknown): void {
  if (!Array.isArray(buckets)) {
    throw new TypeError(
      `Cannot set buckets of ${name}: they must be an array, got ${
        show(buckets)
      }`,
    );
  }
  if (buckets.length === 0) {
    throw new RangeError(
      `Cannot set buckets of ${name}: there must be at least one bound`,
    );
  }
  for (const [index, bound] of buckets.entries()) {
    if (!Number.isFinite(bound)) {
      throw new RangeError(
        `Cannot set buckets of ${name}: bound ${index} must be a finite number, got ${
          show(bound)
        }`,
      );
    }
    if (index > 0 && bound <= buckets[index - 1]) {
      throw new RangeError(
        `Cannot set buckets of ${name}: bound ${index} must be above ${
          buckets[index - 1]
        }, got ${bound}`,
      );
    }
  }
}
