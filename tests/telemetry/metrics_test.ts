import { assertEquals, assertThrows } from "@std/assert";
import fc from "fast-check";
import type { CycleOutcome, EplbEvent } from "../../lib/runtime/events.ts";
import type { MetricName } from "../../lib/telemetry/instruments.ts";
import { EplbMetrics } from "../../lib/telemetry/metrics.ts";
import { committed, decided, ended, started } from "./_events.ts";

/** Values of a metric's series by their labels, joined. */
function read(metrics: EplbMetrics, name: MetricName): Record<string, number> {
  return Object.fromEntries(
    metrics.series(name).map((
      { labels, value },
    ) => [Object.values(labels).join(" "), value]),
  );
}

function observeAll(events: readonly EplbEvent[]): EplbMetrics {
  const metrics = new EplbMetrics();
  for (const event of events) metrics.observe(event);
  return metrics;
}

Deno.test("observe() takes balancedness and tokens from the newest decision", () => {
  const metrics = observeAll([
    decided(),
    decided({
      tokens: 800,
      rankTokens: { mean: 100, max: 125 },
      balancednessBefore: new Float64Array([0.75, 0.5]),
      balancednessAfter: new Float64Array([1, 0.5]),
    }),
    decided({ model: "draft", balancednessBefore: new Float64Array([0.125]) }),
  ]);
  assertEquals(read(metrics, "eplb_balancedness_ratio"), {
    draft: 0.125,
    main: 0.625,
  });
  assertEquals(read(metrics, "eplb_layer_balancedness_ratio"), {
    "draft 0": 0.125,
    "main 0": 0.75,
    "main 1": 0.5,
  });
  assertEquals(read(metrics, "eplb_planned_balancedness_ratio"), {
    draft: 0.875,
    main: 0.75,
  });
  assertEquals(read(metrics, "eplb_planned_layer_balancedness_ratio"), {
    "draft 0": 1,
    "draft 1": 0.75,
    "main 0": 1,
    "main 1": 0.5,
  });
  assertEquals(read(metrics, "eplb_window_tokens"), { draft: 1200, main: 800 });
  assertEquals(read(metrics, "eplb_mean_rank_tokens"), {
    draft: 150,
    main: 100,
  });
  assertEquals(read(metrics, "eplb_max_rank_tokens"), {
    draft: 400,
    main: 125,
  });
});

Deno.test("observe() counts cycles by trigger and by outcome", () => {
  const outcomes: CycleOutcome[] = ["committed", "unchanged", "committed"];
  const metrics = observeAll([
    started({ trigger: "request" }),
    ...outcomes.map((outcome) => ended({ outcome })),
    ended({ outcome: "failed", reason: "rank 3 is gone", failedRank: 3 }),
    { type: "cycle-skipped", step: 9000, cycle: 2 },
  ]);
  assertEquals(read(metrics, "eplb_cycles_started_total"), {
    "main interval": 0,
    "main request": 1,
    "main active-ranks": 0,
  });
  assertEquals(read(metrics, "eplb_cycles_total"), {
    "main committed": 2,
    "main resplit": 0,
    "main unchanged": 1,
    "main abandoned": 0,
    "main failed": 1,
  });
  assertEquals(read(metrics, "eplb_cycles_skipped_total"), { "": 1 });
});

Deno.test("observe() adds up slots and bytes of committed layers, however the cycle ended", () => {
  const nothing = { sameRank: 0, duplicate: 0, sameNode: 0, crossNode: 0 };
  const metrics = observeAll([
    ended(),
    ended({
      outcome: "unchanged",
      moves: { unchanged: 12, ...nothing },
      bytes: nothing,
    }),
    ended({
      outcome: "abandoned",
      moves: { unchanged: 1, ...nothing, sameNode: 2 },
      bytes: { sameRank: 1, sameNode: 10, crossNode: 100 },
    }),
  ]);
  assertEquals(read(metrics, "eplb_moved_slots_total"), {
    "main same-rank": 1,
    "main duplicate": 2,
    "main same-node": 5,
    "main cross-node": 4,
  });
  assertEquals(read(metrics, "eplb_moved_bytes_total"), {
    "main same-rank": 301,
    "main same-node": 3010,
    "main cross-node": 4100,
  });
});

Deno.test("observe() counts the layers of a decision by the gate's reason", () => {
  const decision = {
    accepted: true,
    gainSeconds: 1,
    moveSeconds: 1,
    staleImbalance: 2,
    newImbalance: 1,
    movedSlots: 1,
  };
  const metrics = observeAll([
    decided({
      decisions: [
        { ...decision, layer: 0, reason: "pays" },
        { ...decision, layer: 1, reason: "noise", accepted: false },
      ],
    }),
    decided({ decisions: [{ ...decision, layer: 0, reason: "pays" }] }),
  ]);
  assertEquals(read(metrics, "eplb_gate_decisions_total"), {
    "main unchanged": 0,
    "main first": 0,
    "main restore": 0,
    "main pays": 2,
    "main rates-unknown": 0,
    "main noise": 1,
    "main no-gain": 0,
    "main costs-more": 0,
  });
});

Deno.test("observe() adds up the times of each phase", () => {
  const metrics = observeAll([
    decided({ loadSeconds: 0.25, planSeconds: 0.5 }),
    committed({ layers: 3, commitSeconds: 0.0625, stallSeconds: 0.125 }),
    committed({ layers: 4, stallSeconds: 0.25 }),
    ended({ moveSeconds: 2, stallSeconds: 0.375, seconds: 3, steps: 8 }),
    decided({ loadSeconds: 0.25, planSeconds: 1 }),
    ended({ outcome: "unchanged", moveSeconds: 0, seconds: 0.5, steps: 1 }),
  ]);
  const [layers] = metrics.series("eplb_committed_layers_total");
  assertEquals(layers!.value, 7);
  const sumAndCount = (name: MetricName): [number, number] => {
    const [series] = metrics.series(name);
    return [series!.value, series!.counts.reduce((a, b) => a + b, 0)];
  };
  assertEquals(sumAndCount("eplb_load_reduction_seconds"), [0.5, 2]);
  assertEquals(sumAndCount("eplb_plan_seconds"), [1.5, 2]);
  assertEquals(sumAndCount("eplb_commit_seconds"), [0.0625 + 0.0002, 2]);
  assertEquals(sumAndCount("eplb_commit_stall_seconds"), [0.375, 2]);
  assertEquals(sumAndCount("eplb_move_seconds"), [2, 1]);
  assertEquals(sumAndCount("eplb_cycle_stall_seconds"), [0.375 + 0.0006, 2]);
  assertEquals(sumAndCount("eplb_cycle_seconds"), [3.5, 2]);
  assertEquals(sumAndCount("eplb_cycle_steps"), [9, 2]);
});

Deno.test("observe() leaves out events that make no sense, as a whole", () => {
  const metrics = new EplbMetrics();
  const before = metrics.prometheus();
  const senseless = [
    decided({ planSeconds: NaN }),
    decided({ balancednessAfter: new Float64Array([1, NaN]) }),
    decided({ balancednessBefore: new Float64Array(0) }),
    committed({ stallSeconds: -1 }),
    ended({ seconds: Infinity }),
    ended({ step: NaN }),
    ended({ outcome: "exploded" as "failed" }),
    started({ trigger: "toString" as "request" }),
    { type: "rank-lost", step: 1 } as unknown as EplbEvent,
  ];
  for (const event of senseless) metrics.observe(event);
  assertEquals(
    metrics.prometheus(),
    before.replace(
      "\neplb_events_dropped_total 0\n",
      `\neplb_events_dropped_total ${senseless.length}\n`,
    ),
  );
});

Deno.test("observeStep() tells how old a model's last cycle is", () => {
  const metrics = new EplbMetrics();
  metrics.observeStep(10);
  assertEquals(read(metrics, "eplb_cycle_age_steps"), {});
  metrics.observe(ended({ step: 3000 }));
  metrics.observe(ended({ step: 3010, model: "draft" }));
  assertEquals(read(metrics, "eplb_last_cycle_step"), {
    draft: 3010,
    main: 3000,
  });
  assertEquals(read(metrics, "eplb_cycle_age_steps"), { draft: 0, main: 10 });
  metrics.observeStep(3500);
  metrics.observeStep(3400);
  assertEquals(read(metrics, "eplb_cycle_age_steps"), {
    draft: 490,
    main: 500,
  });
  for (const step of [-1, 1.5, NaN]) {
    assertThrows(
      () => metrics.observeStep(step),
      RangeError,
      "Cannot observe step: the step must be an integer from 0 to",
    );
  }
});

Deno.test("series() puts each value into the first bucket that holds it", () => {
  const finite = { noNaN: true, noDefaultInfinity: true };
  fc.assert(fc.property(
    fc.uniqueArray(fc.double({ ...finite, min: 0, max: 10 }), { minLength: 1 }),
    fc.array(fc.double({ ...finite, min: 0, max: 12 })),
    (bounds, values) => {
      const buckets = bounds.sort((a, b) => a - b);
      // Values that lie on a bound belong to the bucket below it.
      const all = [...values, ...buckets];
      const metrics = new EplbMetrics({
        buckets: { eplb_commit_stall_seconds: buckets },
      });
      for (const stallSeconds of all) {
        metrics.observe(committed({ stallSeconds }));
      }
      const [series] = metrics.series("eplb_commit_stall_seconds");
      const upTo = (bound: number): number =>
        all.filter((value) => value <= bound).length;
      assertEquals(
        series!.counts,
        [...buckets, Infinity].map((bound, index) =>
          upTo(bound) - (index === 0 ? 0 : upTo(buckets[index - 1]!))
        ),
      );
      assertEquals(series!.value, all.reduce((a, b) => a + b, 0));
    },
  ));
});

Deno.test("series() agrees with a naive sum over any list of events", () => {
  const model = fc.constantFrom("main", "draft", 'é\n"\\{}');
  const outcome = fc.constantFrom<CycleOutcome>(
    ...["committed", "unchanged", "abandoned", "failed"] as const,
  );
  const bytes = fc.record({
    sameRank: fc.nat(),
    sameNode: fc.nat(),
    crossNode: fc.nat(),
  });
  const event = fc.oneof(
    fc.record({ model, layers: fc.nat(99) }).map(committed),
    fc.record({ model, outcome, bytes, step: fc.nat() }).map(ended),
  );
  fc.assert(fc.property(fc.array(event), (events) => {
    const metrics = observeAll(events);
    for (const name of new Set(events.map(({ model }) => model))) {
      const own = events.filter(({ model }) => model === name);
      const layers = own.reduce(
        (sum, event) =>
          sum + (event.type === "layers-committed" ? event.layers : 0),
        0,
      );
      const ends = own.filter((event) => event.type === "cycle-ended");
      const crossNode = ends
        .reduce((sum, { bytes }) => sum + bytes.crossNode, 0);
      assertEquals(read(metrics, "eplb_committed_layers_total")[name], layers);
      assertEquals(
        read(metrics, "eplb_moved_bytes_total")[`${name} cross-node`],
        crossNode,
      );
      assertEquals(
        read(metrics, "eplb_last_cycle_step")[name],
        ends.at(-1)?.step,
      );
      assertEquals(
        read(metrics, "eplb_cycles_total")[`${name} abandoned`],
        ends.filter(({ outcome }) => outcome === "abandoned").length,
      );
    }
  }));
});

Deno.test("series() gives copies, so that readers change nothing", () => {
  const metrics = observeAll([committed()]);
  const [series] = metrics.series("eplb_commit_stall_seconds");
  (series!.counts as number[]).fill(99);
  const [again] = metrics.series("eplb_commit_stall_seconds");
  assertEquals(again!.counts.reduce((a, b) => a + b, 0), 1);
});

Deno.test("subscribe() hears every value until it is disposed, each call by itself", () => {
  const metrics = new EplbMetrics();
  const heard: [string, number][] = [];
  const listener = ({ name, value }: { name: string; value: number }): void =>
    void heard.push([name, value]);
  const first = metrics.subscribe(listener);
  const second = metrics.subscribe(listener);
  metrics.observe({ type: "cycle-skipped", step: 1, cycle: 1 });
  first[Symbol.dispose]();
  first[Symbol.dispose]();
  metrics.observe(committed({ layers: 5, stallSeconds: 0.5 }));
  second[Symbol.dispose]();
  metrics.observe(committed());
  assertEquals(heard, [
    ["eplb_cycles_skipped_total", 1],
    ["eplb_cycles_skipped_total", 1],
    ["eplb_committed_layers_total", 5],
    ["eplb_commit_seconds", 0.0002],
    ["eplb_commit_stall_seconds", 0.5],
  ]);
});
