import { assert, assertEquals } from "@std/assert";
import { METRICS } from "../../lib/telemetry/instruments.ts";

Deno.test("METRICS follows the naming rules of Prometheus and of OpenTelemetry", () => {
  for (const { name, kind, unit } of METRICS) {
    assert(/^eplb(_[a-z]+)+$/.test(name), name);
    assert(name.length <= 63, name);
    assertEquals(name.endsWith("_total"), kind === "counter", name);
    // Prometheus keeps these endings for the lines of a histogram.
    assert(!/_(bucket|sum|count)$/.test(name), name);
    if (unit === "seconds" || unit === "ratio" || unit === "tokens") {
      assert(name.endsWith(`_${unit}`), name);
    }
    if (unit === "bytes") assert(name.includes("_bytes"), name);
  }
  assertEquals(new Set(METRICS.map(({ name }) => name)).size, METRICS.length);
});

Deno.test("METRICS has labels with few values, and layers only for balancedness", () => {
  for (const { name, labels } of METRICS) {
    for (const label of labels) {
      if (label.name === "layer") assert(name.includes("layer_balancedness"));
      else if (label.name !== "model") assert(label.values!.length <= 8, name);
    }
    if (labels.length > 0) assertEquals(labels[0]!.name, "model", name);
  }
});

Deno.test("METRICS gives buckets to histograms, and only to them", () => {
  for (const { name, kind, buckets } of METRICS) {
    assertEquals(buckets.length > 0, kind === "histogram", name);
    assertEquals([...buckets].sort((a, b) => a - b), buckets, name);
    assertEquals(new Set(buckets).size, buckets.length, name);
  }
});

Deno.test("METRICS has one line of help each, without a period", () => {
  for (const { name, help } of METRICS) {
    assert(/^[A-Z][^\n]*[^.\n]$/.test(help), name);
  }
  assertEquals(new Set(METRICS.map(({ help }) => help)).size, METRICS.length);
});
