import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { Placement } from "../../lib/placement.ts";
import { policies } from "../../lib/policies/registry.ts";
import { SeededRandom } from "../../lib/random.ts";
import { Topology } from "../../lib/topology.ts";
import {
  breathe,
  ofType,
  serve,
  ServedLedger,
  servePasses,
  SMALL,
} from "./_serving.ts";

for (const mode of ["async", "sync"] as const) {
  for (const policy of ["quota", "deepseek", "preserve", "swap"] as const) {
    Deno.test(`step() follows the load with ${policy}, ${mode}: maps and weights agree after each step`, async () => {
      using served = new ServedLedger(SMALL);
      const { state, events } = await serve({ mode, policy });
      await using _ = state;
      await served.addTo(state);
      const random = new SeededRandom(5);
      await servePasses(state, served, {
        random,
        passes: 100,
        hot: (step) => Math.floor(step / 25),
      });
      await state.drain();
      served.check();
      const ended = ofType(events, "cycle-ended");
      assert(ended.length >= 4, `${ended.length} cycles`);
      assert(ended.some(({ outcome }) => outcome === "committed"));
      assertEquals(
        ended.filter(({ outcome }) =>
          outcome === "abandoned" || outcome === "failed"
        ),
        [],
      );
      assertEquals(state.failure, undefined);
      for (
        const { balancednessBefore, balancednessAfter } of ofType(
          events,
          "cycle-decided",
        )
      ) {
        const mean = (row: Float64Array): number =>
          row.reduce((a, b) => a + b, 0) / row.length;
        assert(mean(balancednessAfter) >= mean(balancednessBefore) - 1e-9);
      }
    });
  }
}

Deno.test("step() lets at most so many layers change between two forward passes", async () => {
  using served = new ServedLedger({ ...SMALL, layers: 7 });
  const { state, events } = await serve({
    mode: "async",
    policy: "deepseek",
    layersPerStep: 2,
  });
  await using _ = state;
  await served.addTo(state);
  const random = new SeededRandom(1);
  let before = served.model.placement;
  for (let step = 0; step < 60; step++) {
    served.forward(random, 3);
    await breathe();
    await state.step();
    const now = served.model.placement;
    const rows = (placement: Placement): string[] =>
      placement.toJSON().physical_to_logical_map.map(String);
    const old = rows(before);
    const changed = rows(now).filter((row, layer) => row !== old[layer]);
    assert(changed.length <= 2, `${changed.length} layers changed`);
    before = now;
  }
  const committed = ofType(events, "layers-committed");
  assert(committed.length >= 4);
  const [first] = ofType(events, "cycle-ended");
  assertEquals(first?.outcome, "committed");
  assertEquals(first?.committedLayers, 7);
});

for (
  const [what, nodes, staging] of [
    ["staging of one expert", 1, { bytes: 512 }],
    ["two nodes", 2, undefined],
    ["two nodes and staging of one expert", 2, { bytes: 512 }],
  ] as const
) {
  Deno.test(`step() takes several moves one after the other, with ${what}`, async () => {
    using served = new ServedLedger(SMALL);
    const { state, events } = await serve({
      policy: "deepseek",
      topology: Topology.uniform({ ranks: 4, nodes }),
      layersPerStep: 2,
      stepInterval: 40,
      windowSteps: 10,
    });
    await using _ = state;
    await served.addTo(state, staging === undefined ? {} : { staging });
    const random = new SeededRandom(3);
    await servePasses(state, served, {
      random,
      passes: 200,
      hot: (step) => Math.floor(step / 40),
    });
    await state.drain();
    served.check();
    const ended = ofType(events, "cycle-ended");
    assert(ended.length >= 3);
    for (const { outcome, committedLayers, layers } of ended) {
      assertEquals(outcome, "committed");
      assertEquals(committedLayers, layers);
    }
    if (staging !== undefined) {
      // More commits than the layers of all cycles: layers have changed several times.
      const commits = ofType(events, "layers-committed");
      const total = commits.reduce((sum, { layers }) => sum + layers, 0);
      assert(total > ended.length * SMALL.layers, `${total}`);
    }
  });
}

Deno.test("step() moves a chunk of layers per step, sync", async () => {
  using served = new ServedLedger({ ...SMALL, layers: 6 });
  const { state, events } = await serve({
    mode: "sync",
    policy: "deepseek",
    layersPerStep: 4,
    stepInterval: 100,
    windowSteps: 50,
  });
  await using _ = state;
  await served.addTo(state);
  const random = new SeededRandom(1);
  for (let step = 0; step < 30; step++) {
    served.forward(random, 3);
    await state.step();
    served.check();
  }
  const committed = ofType(events, "layers-committed");
  assertEquals(committed.map(({ step }) => step), [25, 26]);
  assertEquals(committed.map(({ layers }) => layers), [4, 2]);
});

Deno.test("step() decides from the load of the window alone", async () => {
  using served = new ServedLedger(SMALL);
  const { state, events } = await serve({
    mode: "sync",
    stepInterval: 8,
    windowSteps: 4,
  });
  await using _ = state;
  const { model } = await served.addTo(state);
  // Load is recorded as the engine counts it; the first cycle is due after step 2, then 10, 18.
  for (let step = 1; step <= 18; step++) {
    const counts = new Float64Array(4 * 8).fill(step <= 14 ? 1000 : 1);
    model.record(counts);
    await state.step();
  }
  const tokens = ofType(events, "cycle-decided").map((event) => event.tokens);
  assertEquals(tokens, [2 * 32_000, 4 * 32_000, 4 * 32]);
});

Deno.test("step() counts what dispatch records, and nothing else", async () => {
  using served = new ServedLedger(SMALL);
  const { state, events } = await serve({ mode: "sync" });
  await using _ = state;
  const { model } = await served.addTo(state);
  const logical = Int32Array.of(0, 1, 2, -1, 3, 3);
  const physical = new Int32Array(6);
  const dispatcher = model.dispatcher(2);
  dispatcher.dispatch(logical, physical, { layer: 1, topK: 2 });
  assertEquals(physical[3], -1);
  // A dummy forward pass, and one with padding.
  dispatcher.dispatch(logical, physical, { layer: 1, topK: 2, record: false });
  dispatcher.dispatch(logical, physical, { layer: 2, topK: 2, validTokens: 1 });
  await state.step();
  await state.step();
  assertEquals(ofType(events, "cycle-decided")[0]?.tokens, 5 + 2);
});

Deno.test("request() is due at the end of the next step, and the interval begins anew", async () => {
  using served = new ServedLedger(SMALL);
  const { state, events } = await serve({ mode: "sync", stepInterval: 100 });
  await using _ = state;
  const { model } = await served.addTo(state);
  model.record(new Float64Array(32).fill(1));
  await state.step();
  state.request();
  await state.step();
  for (let step = 0; step < 101; step++) await state.step();
  const started = ofType(events, "cycle-started");
  assertEquals(started.map(({ step, trigger }) => [step, trigger]), [
    [2, "request"],
    [102, "interval"],
  ]);
});

Deno.test("step() skips what is due while a cycle is in progress", async () => {
  using served = new ServedLedger({ ...SMALL, layers: 8 });
  const { state, events } = await serve({
    mode: "async",
    policy: "deepseek",
    stepInterval: 2,
    windowSteps: 2,
  });
  await using _ = state;
  await served.addTo(state);
  const random = new SeededRandom(1);
  await servePasses(state, served, {
    random,
    passes: 24,
    hot: (step) => step,
  });
  await state.drain();
  served.check();
  assert(ofType(events, "cycle-skipped").length > 0);
  assert(ofType(events, "cycle-ended").length >= 1);
});

Deno.test("addModel() balances several models in turn, each with its own maps and load", async () => {
  using main = new ServedLedger(SMALL);
  using draft = new ServedLedger({ ...SMALL, layers: 1, experts: 6 });
  const { state, events } = await serve({ mode: "async", policy: "deepseek" });
  await using _ = state;
  await main.addTo(state);
  await draft.addTo(state, { name: "draft" });
  const random = new SeededRandom(2);
  for (let step = 0; step < 60; step++) {
    main.forward(random, 1);
    draft.forward(random, 4);
    await breathe();
    await state.step();
    main.check();
    draft.check();
  }
  await state.drain();
  const ended = ofType(events, "cycle-ended");
  for (const name of ["main", "draft"]) {
    assert(
      ended.some(({ model, outcome }) =>
        model === name && outcome === "committed"
      ),
      name,
    );
  }
  assertEquals(state.models.map(({ name }) => name), ["main", "draft"]);
});

Deno.test("addModel() is possible while another model's weights move", async () => {
  using main = new ServedLedger({ ...SMALL, layers: 8 });
  using late = new ServedLedger(SMALL);
  const { state, events } = await serve({ mode: "async", policy: "deepseek" });
  await using _ = state;
  await main.addTo(state);
  const random = new SeededRandom(2);
  for (let step = 0; step < 40; step++) {
    main.forward(random, 1);
    if (step === 4) {
      assert(state.busy);
      await late.addTo(state, { name: "late" });
    }
    if (step > 4) late.forward(random, 1);
    await breathe();
    await state.step();
    main.check();
    if (step > 4) late.check();
  }
  await state.drain();
  assert(ofType(events, "cycle-ended").some(({ model }) => model === "late"));
});

Deno.test("setActive() empties ranks that leave, and abandons what was planned with them", async () => {
  using served = new ServedLedger({ ...SMALL, layers: 8, slotsPerRank: 4 });
  const { state, events } = await serve({ mode: "async", policy: "quota" });
  await using _ = state;
  await served.addTo(state);
  const random = new SeededRandom(2);
  for (let step = 0; step < 60; step++) {
    served.forward(random, 1);
    if (step === 4) {
      assert(state.busy);
      state.setActive([0, 1, 3]);
    }
    await breathe();
    await state.step();
    served.check();
  }
  await state.drain();
  served.check();
  const { physicalToLogical, slots, slotsPerRank } = served.model.placement;
  physicalToLogical.forEach((expert, cell) => {
    const rank = Math.floor((cell % slots) / slotsPerRank);
    if (rank === 2) assertEquals(expert, -1);
  });
  const [first] = ofType(events, "cycle-ended");
  assertEquals(first?.outcome, "abandoned");
  assertStringIncludes(first!.reason!, "other ranks are active");
  assertEquals(ofType(events, "cycle-started")[1]?.trigger, "active-ranks");
});

Deno.test("stop() abandons the cycle in progress, and those that would follow; the model serves on", async () => {
  using served = new ServedLedger({ ...SMALL, layers: 8 });
  const { state, events } = await serve({ mode: "async", policy: "deepseek" });
  await using _ = state;
  await served.addTo(state);
  const random = new SeededRandom(2);
  for (let step = 0; step < 40; step++) {
    served.forward(random, step);
    if (step === 7) state.stop("maintenance");
    await breathe();
    await state.step();
    served.check();
  }
  const ended = ofType(events, "cycle-ended");
  assert(ended.length >= 2);
  for (const { outcome, reason } of ended) {
    assertEquals(outcome, "abandoned");
    assertStringIncludes(reason!, "maintenance");
  }
});

Deno.test("create() takes a signal that stops balancing", async () => {
  using served = new ServedLedger(SMALL);
  const controller = new AbortController();
  const { state, events } = await serve({ signal: controller.signal });
  await using _ = state;
  await served.addTo(state);
  const random = new SeededRandom(2);
  for (let step = 0; step < 30; step++) {
    served.forward(random, step);
    if (step === 3) controller.abort("node is drained");
    await breathe();
    await state.step();
    served.check();
  }
  const [first] = ofType(events, "cycle-ended");
  assertEquals(first?.outcome, "abandoned");
  assertStringIncludes(first!.reason!, "node is drained");
});

Deno.test("a cycle without progress is abandoned, and the next one goes on", async () => {
  using served = new ServedLedger(SMALL);
  let slow = true;
  const { state, events } = await serve({
    mode: "async",
    stallTimeout: 20,
    policy: (input) => {
      // The policy keeps the thread, so that no vote can say that it is ready in time.
      const end = performance.now() + (slow ? 60 : 0);
      while (performance.now() < end);
      return policies.deepseek(input);
    },
  });
  await using _ = state;
  await served.addTo(state);
  const random = new SeededRandom(2);
  for (let step = 0; step < 60; step++) {
    served.forward(random, step);
    await breathe();
    await state.step();
    served.check();
    if (ofType(events, "cycle-ended").length > 0) slow = false;
  }
  await state.drain();
  const ended = ofType(events, "cycle-ended");
  assertEquals(ended[0]?.outcome, "abandoned");
  assertStringIncludes(ended[0]!.reason!, "no progress for");
  assert(ended.some(({ outcome }) => outcome === "committed"));
});

Deno.test("a policy that throws abandons the cycle, and says why", async () => {
  using served = new ServedLedger(SMALL);
  const { state, events } = await serve({
    policy: () => {
      throw new RangeError("no such luck");
    },
  });
  await using _ = state;
  await served.addTo(state);
  for (let step = 0; step < 12; step++) {
    await breathe();
    await state.step();
    served.check();
  }
  const [first] = ofType(events, "cycle-ended");
  assertEquals(first?.outcome, "abandoned");
  assertEquals(first?.reason, "rank 0: no such luck");
});

Deno.test("what a listener throws does not reach the engine", async () => {
  using served = new ServedLedger(SMALL);
  const { state } = await serve({
    onEvent: () => {
      throw new Error("full disk");
    },
  });
  await using _ = state;
  await served.addTo(state);
  const random = new SeededRandom(2);
  await servePasses(state, served, {
    random,
    passes: 20,
    hot: () => 1,
  });
  served.check();
});

Deno.test("profile() reserves staging memory and moves nothing", async () => {
  using served = new ServedLedger(SMALL);
  const { state } = await serve();
  await using _ = state;
  await served.addTo(state);
  const reserved = await state.profile();
  assertEquals(reserved.length, 1);
  assert(reserved[0]!.stagingBytes > 0);
  assert(served.model.placement.equals(served.start));
  served.check();
});

Deno.test("addModel() starts from a given map", async () => {
  const start = Placement.random({ ...SMALL, seed: 9 });
  using served = new ServedLedger(SMALL);
  // The weights hold what the contiguous map says, so only the map is looked at here.
  const { state } = await serve();
  await using _ = state;
  await served.addTo(state, { placement: start });
  assert(served.model.placement.equals(start));
});

Deno.test("close() ends a move in progress, and the weights stay as the map says", async () => {
  using served = new ServedLedger({ ...SMALL, layers: 8 });
  const { state } = await serve({ mode: "async", policy: "deepseek" });
  await served.addTo(state);
  const random = new SeededRandom(2);
  await servePasses(state, served, {
    random,
    passes: 8,
    hot: () => 1,
  });
  assert(state.busy);
  await state.close();
  served.check();
});
