// SPDX-License-Identifier: Apache-2.0
// What a step costs when nothing is due, and mapping the tokens of a layer on the host.
//
// deno bench -A bench/step_bench.ts

import {
  EplbState,
  ExpertLayout,
  ExpertWeights,
  NativeLibrary,
  Topology,
} from "../mod.ts";

const library = NativeLibrary.open();
const layout = new ExpertLayout([{ name: "w", dtype: "U8", shape: [16] }]);
const shape = { layers: 58, slots: 36 };
const weights = await Promise.all(
  Array.from(
    { length: 8 },
    () => ExpertWeights.allocate(library, { layout, ...shape }),
  ),
);
const state = await EplbState.create({
  library,
  topology: Topology.uniform({ ranks: 8, nodes: 1 }),
  stepInterval: 2 ** 30,
  windowSteps: 1000,
});
const model = await state.addModel({ name: "main", weights, experts: 256 });
const dispatcher = model.dispatcher(0);
const logical = Int32Array.from({ length: 4096 * 8 }, (_, i) => (i * 37) % 256);
const physical = new Int32Array(logical.length);

Deno.bench("step(), nothing due, not awaited", () => {
  void state.step();
});

Deno.bench("await step(), nothing due", async () => {
  await state.step();
});

Deno.bench("dispatch() on the host, 4096 tokens × top-8 of 256", () => {
  dispatcher.dispatch(logical, physical, { layer: 3, topK: 8 });
});

const few = logical.slice(0, 8);
Deno.bench("dispatch() on the host, 1 token × top-8 of 256", () => {
  dispatcher.dispatch(few, physical.subarray(0, 8), { layer: 3, topK: 8 });
});
