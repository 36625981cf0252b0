import { assertEquals, assertThrows } from "@std/assert";
import fc from "fast-check";
import { METRICS } from "../../lib/telemetry/instruments.ts";
import { EplbMetrics } from "../../lib/telemetry/metrics.ts";
import { committed, decided, ended, started } from "./_events.ts";
import { parsePrometheus } from "./_prometheus.ts";

function page(model: string): EplbMetrics {
  const metrics = new EplbMetrics({
    buckets: { eplb_commit_stall_seconds: [0.0001, 0.001, 0.5] },
  });
  const events = [started(), decided(), committed(), ended()];
  for (const event of events) metrics.observe({ ...event, model });
  metrics.observe(committed({ model, stallSeconds: 0.5 }));
  metrics.observe(committed({ model, stallSeconds: 8 }));
  return metrics;
}

Deno.test("prometheus() writes counters, gauges and histograms", () => {
  const lines = page("main").prometheus().split("\n");
  const of = (name: string): string[] =>
    lines.filter((line) =>
      new RegExp(`\\b${name}(_bucket|_sum|_count)?\\b`).test(line)
    );
  assertEquals(of("eplb_layer_balancedness_ratio"), [
    "# HELP eplb_layer_balancedness_ratio Balancedness of a layer in the last load window, under the map that served it",
    "# TYPE eplb_layer_balancedness_ratio gauge",
    'eplb_layer_balancedness_ratio{model="main",layer="0"} 0.5',
    'eplb_layer_balancedness_ratio{model="main",layer="1"} 0.25',
  ]);
  assertEquals(of("eplb_cycles_total"), [
    "# HELP eplb_cycles_total Cycles that have ended, by how",
    "# TYPE eplb_cycles_total counter",
    'eplb_cycles_total{model="main",outcome="committed"} 1',
    'eplb_cycles_total{model="main",outcome="resplit"} 0',
    'eplb_cycles_total{model="main",outcome="unchanged"} 0',
    'eplb_cycles_total{model="main",outcome="abandoned"} 0',
    'eplb_cycles_total{model="main",outcome="failed"} 0',
  ]);
  // 0.0003, 0.5 (on a bound) and 8 (above all of them).
  assertEquals(of("eplb_commit_stall_seconds"), [
    "# HELP eplb_commit_stall_seconds Time for which a step was held up while layers were committed",
    "# TYPE eplb_commit_stall_seconds histogram",
    'eplb_commit_stall_seconds_bucket{model="main",le="0.0001"} 0',
    'eplb_commit_stall_seconds_bucket{model="main",le="0.001"} 1',
    'eplb_commit_stall_seconds_bucket{model="main",le="0.5"} 2',
    'eplb_commit_stall_seconds_bucket{model="main",le="+Inf"} 3',
    'eplb_commit_stall_seconds_sum{model="main"} 8.5003',
    'eplb_commit_stall_seconds_count{model="main"} 3',
  ]);
});

Deno.test("prometheus() lists every metric in the table's order once each has a value", () => {
  const families = parsePrometheus(page("main").prometheus());
  assertEquals(
    [...families].map(([name, { type, help }]) => [name, type, help]),
    METRICS.map(({ name, kind, help }) => [name, kind, help]),
  );
});

Deno.test("prometheus() begins with the counters that have no model", () => {
  const families = parsePrometheus(new EplbMetrics().prometheus());
  assertEquals(
    [...families].map(([name, { samples }]) => [name, samples]),
    ["eplb_cycles_skipped_total", "eplb_events_dropped_total"].map((
      name,
    ) => [name, [{ name, labels: {}, value: 0 }]]),
  );
});

Deno.test("prometheus() writes any model name so that it can be read back", () => {
  const name = fc.oneof(
    fc.string({ unit: "grapheme" }),
    fc.string({ unit: fc.constantFrom(...'\\"\n\r{}=, n#é') }),
  );
  fc.assert(
    fc.property(name, (model) => {
      const families = parsePrometheus(page(model).prometheus());
      const { samples } = families.get("eplb_moved_bytes_total")!;
      assertEquals(
        samples.map(({ labels, value }) => [labels, value]),
        [
          [{ model, case: "same-rank" }, 300],
          [{ model, case: "same-node" }, 3000],
          [{ model, case: "cross-node" }, 4000],
        ],
      );
    }),
  );
});

Deno.test("prometheus() does not depend on which model speaks first", () => {
  const events = [started(), decided(), committed(), ended()];
  const [one, other] = [["a", "b"], ["b", "a"]].map((models) => {
    const metrics = new EplbMetrics();
    for (const model of models) {
      for (const event of events) metrics.observe({ ...event, model });
    }
    return metrics.prometheus();
  });
  assertEquals(one, other);
});

Deno.test("parsePrometheus() of these tests refuses what the format forbids", () => {
  const head = "# HELP a b\n# TYPE a counter\n";
  const histogram = "# HELP a b\n# TYPE a histogram\n";
  for (
    const text of [
      `${head}a 1`,
      "a 1\n",
      "# HELP a b\n# TYPE a summary\na 1\n",
      `${head}a 1\na 2\n`,
      `${head}b 1\n`,
      `${head}a{x="\\t"} 1\n`,
      `${head}a{x="""} 1\n`,
      `${head}a{x="1",x="2"} 1\n`,
      `${head}a{x="1"}1\n`,
      `${head}a{1x="1"} 1\n`,
      `${head}a undefined\n`,
      `${head}a -1\n`,
      `${head}a 1\n${head}a 1\n`,
      `${histogram}a_bucket{le="1"} 1\na_sum 1\na_count 1\n`,
      `${histogram}a_bucket{le="1"} 2\na_bucket{le="+Inf"} 1\na_sum 1\na_count 1\n`,
      `${histogram}a_bucket{le="+Inf"} 1\na_sum 1\na_count 2\n`,
      `${histogram}a_bucket{le="+Inf"} 1\na_count 1\n`,
    ]
  ) {
    assertThrows(() => parsePrometheus(text), SyntaxError, undefined, text);
  }
});
