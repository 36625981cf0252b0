// SPDX-License-Identifier: Apache-2.0

/**
 * What is needed of an OpenTelemetry meter.
 *
 * A `Meter` of `@opentelemetry/api` is one; saying only what is needed of it keeps
 * the package out of the types of those who do not use it.
 *
 * @module
 */
import type { MetricLabels } from "./samples.ts";

/** What makes OpenTelemetry's instruments: a `Meter` of `@opentelemetry/api`. */
export interface OpenTelemetryMeter {
  /** Makes a histogram, which is told each value. */
  createHistogram(
    name: string,
    options: OpenTelemetryOptions,
  ): { record(value: number, labels: MetricLabels): void };
  /** Makes a counter that asks for its values. */
  createObservableCounter(
    name: string,
    options: OpenTelemetryOptions,
  ): OpenTelemetryObservable;
  /** Makes a gauge that asks for its values. */
  createObservableGauge(
    name: string,
    options: OpenTelemetryOptions,
  ): OpenTelemetryObservable;
}

/** What an instrument is made with. */
export interface OpenTelemetryOptions {
  /** What it tells. */
  readonly description: string;
  /** What it is counted in, in UCUM. */
  readonly unit: string;
  /** Upper bounds of a histogram's buckets. */
  readonly advice?: { readonly explicitBucketBoundaries: number[] };
}

/** An instrument that asks for its values when they are to be sent. */
export interface OpenTelemetryObservable {
  /** Adds a function that is asked. */
  addCallback(callback: OpenTelemetryCallback): void;
  /** Takes a function away. */
  removeCallback(callback: OpenTelemetryCallback): void;
}

/** Tells an instrument its values. */
export type OpenTelemetryCallback = (
  result: { observe(value: number, labels: MetricLabels): void },
) => void;
