import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import fc from "fast-check";
import {
  buildDispatchTables,
  type DispatchTables,
} from "../../lib/dispatch/tables.ts";
import { Dispatcher } from "../../lib/native/dispatcher.ts";
import { EplbError } from "../../lib/native/errors.ts";
import { ExpertWeights } from "../../lib/native/weights.ts";
import { Placement } from "../../lib/placement.ts";
import { SeededRandom } from "../../lib/random.ts";
import { Topology } from "../../lib/topology.ts";
import { ExpertLayout } from "../../lib/weights/layout.ts";
import {
  naiveHash,
  naiveParts,
  replicasOf,
  scenes,
} from "../dispatch/_model.ts";
import { library } from "../_native.ts";

/** A dispatcher of these sizes, with these tables. */
function dispatcherWith(
  tables: DispatchTables,
  options: { readonly layers?: number; readonly device?: number } = {},
): Dispatcher {
  const dispatcher = Dispatcher.create(library, { ...tables, ...options });
  dispatcher.update(tables);
  return dispatcher;
}

/** Two layers of four experts in six slots on three ranks. */
const placement = Placement.from([[0, 1, 2, 3, 0, 1], [3, 2, 1, 0, 0, 0]], {
  ranks: 3,
});
const tables = buildDispatchTables(placement);

/** An id of each kind: experts, none, and no expert's. */
function randomIds(
  count: number,
  options: { readonly experts: number; readonly seed: number },
): Int32Array {
  const random = new SeededRandom(options.seed);
  return new Int32Array(count).map(() => {
    const id = random.below(options.experts + 3) - 1;
    return id > options.experts ? -7 : id;
  });
}

/** The slot of one token, by walking along the table. */
function naiveSlot(
  tables: DispatchTables,
  token: {
    readonly row: number;
    readonly layer: number;
    readonly expert: number;
    readonly salt: number;
  },
): number {
  const cell = token.layer * tables.experts + token.expert;
  const at = cell * tables.maxReplicas;
  const hash = naiveHash(token.row, token);
  for (let i = 0; i < tables.replicaCount[cell]! - 1; i++) {
    if (hash < tables.thresholds[at + i]!) {
      return tables.logicalToPhysical[at + i]!;
    }
  }
  return tables.logicalToPhysical[at + tables.replicaCount[cell]! - 1]!;
}

Deno.test("Dispatcher.dispatch() gives the slots and counts the loads of a naive model", async () => {
  const runs = fc.record({
    tokens: fc.nat(40),
    topK: fc.integer({ min: 1, max: 9 }),
    salt: fc.integer({ min: 0, max: 2 ** 32 - 1 }),
    padding: fc.option(fc.nat(40)),
    record: fc.constantFrom(true, false, undefined),
    inPlace: fc.boolean(),
    seed: fc.integer({ min: 0, max: 2 ** 32 - 1 }),
  });
  await fc.assert(fc.asyncProperty(
    scenes,
    fc.boolean(),
    fc.array(runs, { minLength: 1, maxLength: 6 }),
    async (scene, nearest, calls) => {
      const { layers, experts } = scene.placement;
      const tables = buildDispatchTables(scene.placement, {
        ...scene,
        nearest,
      });
      using dispatcher = dispatcherWith(tables);
      const loads = new Float64Array(layers * experts);
      for (const { tokens, topK, padding, record, ...call } of calls) {
        const layer = call.seed % layers;
        const logical = randomIds(tokens * topK, { experts, seed: call.seed });
        const validTokens = Math.max(0, tokens - (padding ?? 0));
        const expected = logical.map((expert, i) => {
          const row = Math.floor(i / topK);
          if (row >= validTokens || expert < 0 || expert >= experts) return -1;
          if (record !== false) loads[layer * experts + expert]!++;
          const { salt } = call;
          const slot = naiveSlot(tables, { row, layer, expert, salt });
          assert(
            replicasOf(scene.placement, { layer, expert }).includes(slot),
          );
          return slot;
        });
        const input = logical.slice();
        const physical = call.inPlace ? input : new Int32Array(logical.length);
        dispatcher.dispatch(input, physical, {
          layer,
          topK,
          salt: call.salt,
          ...(padding === null ? {} : { validTokens }),
          ...(record === undefined ? {} : { record }),
        });
        assertEquals(physical, expected);
        if (!call.inPlace) assertEquals(input, logical);
      }
      dispatcher.snapshot();
      assertEquals(await dispatcher.read(), loads);
    },
  ));
});

/** Tokens of each slot of layer 0 when every row is for one expert. */
function tokensPerSlot(
  dispatcher: Dispatcher,
  options: {
    readonly expert: number;
    readonly tokens: number;
    readonly slots: number;
    readonly salt: number;
  },
): Float64Array {
  const { expert, tokens, slots, salt } = options;
  const logical = new Int32Array(tokens).fill(expert);
  const physical = new Int32Array(tokens);
  dispatcher.dispatch(logical, physical, { layer: 0, topK: 1, salt });
  const counts = new Float64Array(slots);
  for (const slot of physical) counts[slot]!++;
  return counts;
}

Deno.test("Dispatcher.dispatch() honours the shares, within what chance allows", () => {
  const TOKENS = 20_000;
  const ranks = 8;
  const placement = Placement.from(
    [[0, 0, 0, 1, 1, 2, 0, 2, 0, 1, 0, 2, 2, 2, 2, 2]],
    { ranks },
  );
  // deno-fmt-ignore
  const shares = new Float64Array([
    0.5, 0.25, 0.125, 0.7, 0.2, 0, 0.0625, 0.9, 0.03125, 0.1, 0.03125, 0.01, 0.02, 0.03, 0.04, 0,
  ]);
  const topology = Topology.uniform({ ranks, nodes: 2 });
  const scene = { placement, shares, topology, rank: 1 };
  for (const nearest of [false, true]) {
    const options = { ...scene, nearest };
    using dispatcher = dispatcherWith(buildDispatchTables(placement, options));
    for (let expert = 0; expert < 3; expert++) {
      const parts = naiveParts(scene, { ...options, layer: 0, expert });
      for (const salt of [0, 1, 2, 1_000_003, 2 ** 32 - 1]) {
        const counts = tokensPerSlot(dispatcher, {
          expert,
          tokens: TOKENS,
          slots: 16,
          salt,
        });
        for (const { slot, part } of parts) {
          // Five standard deviations of a binomial distribution.
          const chance = 5 * Math.sqrt(TOKENS * part * (1 - part));
          assert(Math.abs(counts[slot]! - TOKENS * part) <= chance);
          counts[slot] = 0;
        }
        assertEquals(counts, new Float64Array(16));
      }
    }
  }
});

Deno.test("Dispatcher.dispatch() chooses anew with another salt, and alike with the same", () => {
  using dispatcher = dispatcherWith(tables);
  using other = dispatcherWith(tables);
  const logical = new Int32Array(1000);
  const choices = [0, 1, 0].map((salt, i) => {
    const physical = new Int32Array(1000);
    const where = i === 2 ? other : dispatcher;
    where.dispatch(logical, physical, { layer: 1, topK: 1, salt });
    return physical;
  });
  assertEquals(choices[0], choices[2]);
  const same = choices[0]!.filter((slot, i) => slot === choices[1]![i]).length;
  assert(same > 250 && same < 420, `${same} of 1000, not about a third`);
});

Deno.test("Dispatcher.update() replaces the tables of its layers, at the same addresses", () => {
  const next = Placement.from([[3, 2, 1, 0, 3, 2], [0, 1, 2, 3, 0, 0]], {
    ranks: 3,
  });
  const maxReplicas = 4;
  using dispatcher = Dispatcher.create(library, {
    layers: 2,
    experts: 4,
    maxReplicas,
  });
  const addresses = dispatcher.addresses();
  assertEquals(new Set(Object.values(addresses)).size, 4);
  const slotOf2 = (layer: number): number => {
    const physical = new Int32Array(1);
    dispatcher.dispatch(new Int32Array([2]), physical, { layer, topK: 1 });
    return physical[0]!;
  };
  assertEquals([slotOf2(0), slotOf2(1)], [-1, -1]);
  dispatcher.update(buildDispatchTables(placement, { maxReplicas }));
  assertEquals([slotOf2(0), slotOf2(1)], [2, 1]);
  const second = { maxReplicas, firstLayer: 1, layers: 1 };
  const tables = buildDispatchTables(next, second);
  dispatcher.update(tables);
  tables.logicalToPhysical.fill(99); // ours again
  assertEquals([slotOf2(0), slotOf2(1)], [2, 2]);
  assertEquals(dispatcher.addresses(), addresses);
});

Deno.test("Dispatcher.update() refuses tables of another size, and what is no table", () => {
  using dispatcher = dispatcherWith(tables);
  const refused = (
    change: Partial<DispatchTables>,
    message: string,
    type: new (...args: never[]) => Error = RangeError,
  ): void => {
    const wrong = { ...tables, ...change };
    assertThrows(() => dispatcher.update(wrong), type, message);
  };
  refused(
    { maxReplicas: 4 },
    "they are for 4 experts of up to 4 replicas, the dispatcher for 4 of up to 3",
  );
  refused({ experts: 5 }, "they are for 5 experts");
  refused({ layers: 1 }, "arrays have 24, 8 and 24 entries, not 12, 4 and 12");
  refused({ thresholds: new Uint32Array(23) }, "and 23 entries");
  refused({ firstLayer: -1 }, "firstLayer must be an integer from 0");
  refused({ firstLayer: 1 }, "2 layers from layer 1 on are outside", EplbError);
  const physical = tables.logicalToPhysical.slice();
  physical[0] = -1;
  refused(
    { logicalToPhysical: physical },
    "layer 0, expert 0 lists slot -1",
    EplbError,
  );
  assertThrows(
    () => dispatcher.update(tables, { timeout: 0 }),
    RangeError,
    "Cannot wait 0 ms",
  );
});

Deno.test("Dispatcher.dispatch() refuses what are no rows of ids", () => {
  using dispatcher = dispatcherWith(tables);
  const ids = new Int32Array(6);
  const refused = (
    options: Parameters<Dispatcher["dispatch"]>[2],
    message: string,
    physical = ids,
  ): void => {
    assertThrows(
      () => dispatcher.dispatch(ids, physical, options),
      RangeError,
      message,
    );
  };
  const layer = 0;
  refused(
    { layer, topK: 4 },
    "6 logical and 6 physical ids are not as many rows of 4",
  );
  refused({ layer, topK: 0 }, "are not as many rows of 0");
  refused({ layer, topK: 2 }, "6 logical and 5 physical", new Int32Array(5));
  refused(
    { layer, topK: 2, validTokens: 4 },
    "4 of 3 rows are said to be valid",
  );
  refused(
    { layer, topK: 2, validTokens: -1 },
    "validTokens must be an integer from 0",
  );
  refused(
    { layer: 0.5, topK: 2 },
    "layer must be an integer from 0 to 4294967295, got 0.5",
  );
  refused({ layer, topK: 1.5 }, "topK must be an integer");
  refused({ layer, topK: 2, salt: 2 ** 32 }, "salt must be an integer");
  assertThrows(
    () => dispatcher.dispatch(ids, ids, { layer: 2, topK: 2 }),
    EplbError,
    "layer 2 is outside of 2 layers",
  );
});

Deno.test("Dispatcher.launch() takes addresses, ids of 8 bytes, padding and salt from memory", async () => {
  using dispatcher = dispatcherWith(tables);
  const address = (view: ArrayBufferView<ArrayBuffer>): bigint =>
    Deno.UnsafePointer.value(Deno.UnsafePointer.of(view));
  const logical = new BigInt64Array([0n, 1n, -1n, 0n, 1n, 0n]);
  const physical = new BigInt64Array(6).fill(7n);
  const valid = new Int32Array([2]);
  const salt = new Uint32Array([40]);
  dispatcher.launch({
    layer: 1,
    logical: address(logical),
    physical: address(physical),
    tokens: 3,
    topK: 2,
    idBytes: 8,
    validTokens: address(valid),
    salt: 2,
    stepSalt: address(salt),
  });
  const [first, last] = [0, 1].map((row) =>
    BigInt(naiveSlot(tables, { row, layer: 1, expert: 0, salt: 42 }))
  );
  assertEquals([...physical], [first, 2n, -1n, last, -1n, -1n]);
  assertEquals([logical[1], valid[0], salt[0]], [1n, 2, 40]); // only read
  dispatcher.snapshot();
  const loads = await dispatcher.read();
  assertEquals([...loads], [0, 0, 0, 0, 2, 1, 0, 0]);
  assertThrows(
    () =>
      dispatcher.launch({
        layer: 0,
        logical: 0n,
        physical: 8n,
        tokens: 1,
        topK: 1,
      }),
    EplbError,
    "the address of the ids is null",
  );
});

Deno.test("Dispatcher.snapshot() is busy until the last one is read, and loses nothing", async () => {
  using dispatcher = dispatcherWith(tables);
  const count = (expert: number): void => {
    const ids = new Int32Array([expert]);
    dispatcher.dispatch(ids, ids, { layer: 0, topK: 1 });
  };
  await assertRejects(
    () => dispatcher.read(),
    EplbError,
    "no snapshot was taken",
  );
  count(1);
  dispatcher.snapshot();
  count(2);
  const busy = assertThrows(() => dispatcher.snapshot(), EplbError);
  assertEquals(busy.code, "busy");
  const reading = dispatcher.read();
  count(3); // other calls go on meanwhile
  assertEquals([...await reading], [0, 1, 0, 0, 0, 0, 0, 0]);
  dispatcher.snapshot();
  assertEquals([...await dispatcher.read()], [0, 0, 1, 1, 0, 0, 0, 0]);
});

Deno.test("Dispatcher.read() refuses counts that are no safe integers", async () => {
  using dispatcher = dispatcherWith(tables);
  const { loads } = dispatcher.addresses();
  const view = new BigUint64Array(
    Deno.UnsafePointerView.getArrayBuffer(
      Deno.UnsafePointer.create(loads)!,
      8 * 8,
    ),
  );
  view[5] = 2n ** 53n - 1n;
  dispatcher.snapshot();
  assertEquals((await dispatcher.read())[5], Number.MAX_SAFE_INTEGER);
  view[5] = 2n ** 53n;
  dispatcher.snapshot();
  await assertRejects(
    () => dispatcher.read(),
    RangeError,
    "layer 1, expert 1 has more than 2^53 - 1 tokens",
  );
});

Deno.test("Dispatcher.measure() times launches, which count", async () => {
  using dispatcher = dispatcherWith(tables);
  const ids = new Int32Array(8);
  const pointer = Deno.UnsafePointer.value(Deno.UnsafePointer.of(ids));
  const physical = new Int32Array(8);
  const call = {
    layer: 0,
    logical: pointer,
    physical: Deno.UnsafePointer.value(Deno.UnsafePointer.of(physical)),
    tokens: 4,
    topK: 2,
  };
  const seconds = await dispatcher.measure(call, 10);
  assert(seconds.length === 10 && seconds.every((one) => one > 0 && one < 1));
  assert(physical.every((slot) => slot === 0 || slot === 4));
  assertEquals(ids, new Int32Array(8)); // only read
  dispatcher.snapshot();
  assertEquals((await dispatcher.read())[0], 88); // and one to warm up
  await assertRejects(() => dispatcher.measure(call, 0), RangeError, "repeats");
});

Deno.test("Dispatcher.create() refuses sizes and devices that are not there", () => {
  const shape = { layers: 1, experts: 1, maxReplicas: 1 };
  for (const name of ["layers", "experts", "maxReplicas"] as const) {
    for (const size of [0, 1.5, -1]) {
      assertThrows(
        () => Dispatcher.create(library, { ...shape, [name]: size }),
        RangeError,
        `Cannot create dispatcher: ${name} must be an integer from 1`,
      );
    }
  }
  const device = 9999;
  const error = assertThrows(
    () => Dispatcher.create(library, { ...shape, device }),
    EplbError,
    "CUDA device 9999",
  );
  assert(["unsupported", "invalid-argument"].includes(error.code));
});

Deno.test("Dispatcher.close() may be called twice, and ends every use", async () => {
  const dispatcher = dispatcherWith(tables);
  dispatcher.close();
  dispatcher.close();
  const ids = new Int32Array(1);
  const uses = [
    () => dispatcher.update(tables),
    () => dispatcher.dispatch(ids, ids, { layer: 0, topK: 1 }),
    () =>
      dispatcher.launch({
        layer: 0,
        logical: 8n,
        physical: 8n,
        tokens: 1,
        topK: 1,
      }),
    () => dispatcher.snapshot(),
    () => dispatcher.addresses(),
    () => dispatcher.unsafeHandle,
  ];
  for (const use of uses) {
    assertThrows(use, TypeError, "Cannot use dispatcher: it is closed");
  }
  await assertRejects(() => dispatcher.read(), TypeError, "it is closed");
});

Deno.test({
  name: "a Dispatcher on a GPU gives the slots and loads of one on the host",
  ignore: library.devices().devices.length === 0,
  fn: async () => {
    const tokens = 4096;
    const topK = 8;
    const placement = Placement.random({
      layers: 2,
      ranks: 32,
      slotsPerRank: 9,
      experts: 256,
      seed: 3,
    });
    const tables = buildDispatchTables(placement);
    const logical = randomIds(tokens * topK, { experts: 256, seed: 4 });
    const expected = new Int32Array(logical.length);
    using host = dispatcherWith(tables);
    host.dispatch(logical, expected, { layer: 1, topK, salt: 9 });
    // Memory of the GPU: two slots, one of logical and one of physical ids.
    const layout = new ExpertLayout([
      { name: "ids", dtype: "I32", shape: [logical.length] },
    ]);
    using memory = await ExpertWeights.allocate(library, {
      layout,
      layers: 1,
      slots: 2,
      device: 0,
    });
    const { address, stride } = memory.address(0, 0);
    const source = new Uint8Array(logical.slice().buffer);
    memory.write({ layer: 0, slot: 0, tensor: 0 }, source);
    using gpu = dispatcherWith(tables, { device: 0 });
    gpu.launch({
      layer: 1,
      logical: address,
      physical: address + BigInt(stride),
      tokens,
      topK,
      salt: 9,
    });
    // The loads come after the ids on the stream.
    gpu.snapshot();
    const loads = await gpu.read();
    host.snapshot();
    assertEquals(loads, await host.read());
    const bytes = memory.read({ layer: 0, slot: 1, tensor: 0 });
    assertEquals(new Int32Array(bytes.buffer), expected);
  },
});
