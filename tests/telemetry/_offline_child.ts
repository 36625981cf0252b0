// Run by open_telemetry_test.ts without any package and without the network.
import type { OpenTelemetryMeter } from "../../lib/telemetry/meter.ts";
import { EplbMetrics } from "../../lib/telemetry/metrics.ts";
import { exportMetrics } from "../../lib/telemetry/open_telemetry.ts";

const names: string[] = [];
const ignore = (): void => {};
const instrument = {
  addCallback: ignore,
  removeCallback: ignore,
  record: ignore,
};
const create = (name: string): typeof instrument => {
  names.push(name);
  return instrument;
};
const meter: OpenTelemetryMeter = {
  createHistogram: create,
  createObservableCounter: create,
  createObservableGauge: create,
};
const metrics = new EplbMetrics();
(await exportMetrics(metrics, { meter }))[Symbol.dispose]();
await Deno.stdout.write(new TextEncoder().encode(String(names.length)));
