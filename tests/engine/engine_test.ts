import {
  assert,
  assertEquals,
  assertRejects,
  assertStringIncludes,
  assertThrows,
} from "@std/assert";
import { EplbError } from "../../lib/native/errors.ts";
import { ExpertWeights } from "../../lib/native/weights.ts";
import { Placement } from "../../lib/placement.ts";
import { Engine } from "../../lib/engine/engine.ts";
import { planMove } from "../../lib/engine/move.ts";
import { RearrangeError } from "../../lib/engine/errors.ts";
import type { EngineOptions } from "../../lib/engine/options.ts";
import { Topology } from "../../lib/topology.ts";
import { ExpertLayout } from "../../lib/weights/layout.ts";
import { columnsOf } from "../_columns.ts";
import { library } from "../_native.ts";

const layout = new ExpertLayout([{ name: "w", dtype: "U8", shape: [64] }]);
const shape = { layers: 3, ranks: 4, slotsPerRank: 3, experts: 8 };
const placement = Placement.contiguous(shape);
const topology = Topology.uniform({ ranks: 4, nodes: 2 });

interface Job extends AsyncDisposable {
  readonly options: EngineOptions;
  readonly weights: readonly ExpertWeights[];
}

async function makeJob(
  options: { layout?: ExpertLayout; layers?: number } = {},
): Promise<Job> {
  const size = {
    layout: options.layout ?? layout,
    layers: options.layers ?? shape.layers,
    slots: shape.slotsPerRank,
  };
  const weights = await Promise.all(
    Array.from({ length: 4 }, () => ExpertWeights.allocate(library, size)),
  );
  return {
    weights,
    options: { library, topology, placement, weights },
    [Symbol.asyncDispose]: () => {
      weights.forEach((one) => one.close());
      return Promise.resolve();
    },
  };
}

/** A job whose slots hold what the placement says. */
async function makeFilledJob(): Promise<Job> {
  const job = await makeJob();
  for (const [rank, one] of job.weights.entries()) {
    await one.fill(columnsOf(placement, rank));
  }
  return job;
}

Deno.test("connect() refuses weights, placement and topology that do not fit", async () => {
  await using job = await makeJob();
  const { options, weights } = job;
  const cases: [Partial<EngineOptions>, string][] = [
    [{ weights: [] }, "weights is empty"],
    [{ ranks: [0, 1] }, "4 weights are given for 2 ranks"],
    [{ ranks: [0, 1, 1, 2] }, "not ascending"],
    [{ ranks: [0, 1, 2, 9] }, "rank 9 is outside"],
    [{ weights: weights.slice(0, 3) }, "no process holds rank 3"],
    [{ topology: Topology.uniform({ ranks: 8, nodes: 1 }) }, "topology 8"],
    [
      { placement: Placement.contiguous({ ...shape, layers: 2 }) },
      "it has 3 layers, placement has 2",
    ],
    [
      { placement: Placement.contiguous({ ...shape, slotsPerRank: 4 }) },
      "it has 3 slots, placement has 4 per rank",
    ],
    [{ transport: "nccl" }, "weights are in host memory"],
    [{ transport: "pull+nccl" }, "weights are in host memory"],
    [{ transport: "nccl-put" }, "weights are in host memory"],
    [{ staging: { bytes: 100 } }, "staging has 100 bytes"],
    [{ timeout: 0 }, "Cannot wait 0 ms"],
  ];
  for (const [change, message] of cases) {
    await assertRejects(
      () => Engine.connect({ ...options, ...change }),
      RangeError,
      message,
    );
  }
});

Deno.test("connect() refuses ranks whose tensors differ", async () => {
  await using job = await makeJob();
  await using other = await makeJob({
    layout: new ExpertLayout([{ name: "w", dtype: "U8", shape: [65] }]),
  });
  const weights = [...job.weights.slice(0, 3), other.weights[3]!];
  await assertRejects(
    () => Engine.connect({ ...job.options, weights }),
    RangeError,
    "Cannot connect rank 3: its tensors have 65 bytes per expert",
  );
});

Deno.test("rearrange() goes in several steps where staging has room for one expert", async () => {
  await using job = await makeFilledJob();
  await using engine = await Engine.connect({
    ...job.options,
    staging: { bytes: 256 },
  });
  for (let seed = 1; seed <= 20; seed++) {
    const to = Placement.random({ ...shape, seed });
    const { verified, plans, moves } = await engine.rearrange(to, {
      verify: true,
    });
    assertEquals(verified, true);
    assert(plans.length > 1);
    const { unchanged, sameRank, duplicate, sameNode, crossNode } = moves;
    assertEquals(
      unchanged + sameRank + duplicate + sameNode + crossNode,
      to.physicalToLogical.length,
    );
    assert(engine.placement.equals(to));
  }
  assert(engine.stagingBytes <= 256);
  // Every byte is the one its expert was given at the start.
  await using fresh = await makeJob();
  for (const [rank, one] of fresh.weights.entries()) {
    await one.fill(columnsOf(engine.placement, rank));
    assertEquals(await job.weights[rank]!.digest(), await one.digest());
  }
});

Deno.test("rearrange() lets an expert enter a node once, and go on from there", async () => {
  // Expert 4 is on the first node alone; both ranks of the second node get it.
  const row = [0, 1, 2, 3, 4, 5, 6, 7, 4, 4, 2, 3];
  const to = Placement.from([row, row, row], { ranks: 4 });
  for (const relay of [true, false]) {
    await using job = await makeFilledJob();
    await using engine = await Engine.connect(job.options);
    const result = await engine.rearrange(to, { verify: true, relay });
    assertEquals(result.verified, true);
    assertEquals(result.plans.length, relay ? 2 : 1);
    assertEquals(result.moves.crossNode, 6);
    const crossed = result.traffic.crossNodeBytesSent.reduce((a, b) => a + b);
    assertEquals(crossed, (relay ? 3 : 6) * 64);
  }
});

Deno.test("rearrange() reports wrong bytes as mismatches, by name", async () => {
  await using job = await makeJob();
  for (const one of job.weights) {
    await one.fill(new Int32Array(9).map((_, i) => i));
  }
  await using engine = await Engine.connect(job.options);
  const to = Placement.random({ ...shape, seed: 1 });
  // A byte that changes behind the engine's back, after the first digests: as
  // soon as progress is reported the last layer's source is spoiled at its target.
  const result = await engine.rearrange(to, {
    verify: true,
    onProgress: (done) => {
      if (done < 3) return;
      const at = { layer: 2, slot: 1, tensor: 0, offset: 5 };
      const [byte] = job.weights[2]!.read(at, new Uint8Array(1));
      job.weights[2]!.write(at, new Uint8Array([byte! ^ 255]));
    },
  });
  assertEquals(result.verified, false);
  const expert = to.physicalToLogical[2 * to.slots + 2 * 3 + 1]!;
  assertEquals(result.mismatches, [
    { layer: 2, rank: 2, slot: 1, expert, tensor: "w" },
  ]);
});

Deno.test("rearrange() says what was moved: bytes, rates, lower bound", async () => {
  await using job = await makeJob();
  await using engine = await Engine.connect({
    ...job.options,
    topology: Topology.uniform({
      ranks: 4,
      nodes: 2,
      rates: { intraNode: 1e6, interNode: 1e6 },
    }),
  });
  const map = [...placement.physicalToLogical];
  [map[0], map[11]] = [map[11]!, map[0]!];
  const to = Placement.from(Int32Array.from(map), { ranks: 4, layers: 3 });
  const result = await engine.rearrange(to);
  assertEquals([...result.traffic.bytesReceived], [64, 0, 0, 64]);
  assertEquals([...result.traffic.bytesSent].reduce((a, b) => a + b), 128);
  assertEquals(result.lowerBoundSeconds, 64e-6);
  assertEquals(result.verified, undefined);
  assertEquals(result.gigabytesPerSecond, 64 / result.moveSeconds / 1e9);
});

Deno.test("rearrange() takes the time that maxRate asks for", async () => {
  await using job = await makeFilledJob();
  await using engine = await Engine.connect({
    ...job.options,
    staging: { bytes: 256 },
  });
  // Ranks 0 and 3 swap their outer slots in all three layers.
  const row = [...placement.physicalToLogical.subarray(0, 12)];
  [row[0], row[11]] = [row[11]!, row[0]!];
  const { verified, moveSeconds } = await engine.rearrange(
    Placement.from([row, row, row], { ranks: 4 }),
    { verify: true, maxRate: 64 / 0.02 }, // an expert in 20 ms
  );
  assertEquals(verified, true);
  assert(moveSeconds >= 0.06, `${moveSeconds} s`);
});

for (const maxRate of [0, -1, 0.5, NaN, Infinity, 2 ** 53]) {
  Deno.test(`rearrange() and begin() refuse maxRate ${maxRate}, before anything moves`, async () => {
    await using job = await makeJob();
    await using engine = await Engine.connect(job.options);
    const to = Placement.random({ ...shape, seed: 3 });
    const message =
      `Cannot rearrange: maxRate must be from 1 to 9007199254740991 bytes per second, got ${maxRate}`;
    await assertRejects(
      () => engine.rearrange(to, { maxRate }),
      RangeError,
      message,
    );
    const move = planMove(placement, to, engine.moveSettings());
    assertThrows(() => engine.begin(move, { maxRate }), RangeError, message);
    assert(engine.placement.equals(placement));
    await engine.rearrange(to); // still fit for it
  });
}

Deno.test("rearrange() names the batch that it waited for when the time is up", async () => {
  await using job = await makeJob();
  await using engine = await Engine.connect({
    ...job.options,
    staging: { bytes: 256 },
  });
  const to = Placement.random({ ...shape, seed: 3 });
  const error = await assertRejects(
    () => engine.rearrange(to, { maxRate: 1, timeout: 200, relay: false }),
    RearrangeError,
  );
  assertStringIncludes(error.message, "Cannot stage batch 1 within 1 bytes");
  assertStringIncludes(error.message, "the time limit has passed");
});

Deno.test("rearrange() ends with the signal, and says what is committed", async () => {
  const big = new ExpertLayout([
    { name: "w", dtype: "U8", shape: [1 << 20] },
  ]);
  const sizes = { ...shape, layers: 60 };
  const weights = await Promise.all(
    Array.from(
      { length: 4 },
      () =>
        ExpertWeights.allocate(library, { layout: big, layers: 60, slots: 3 }),
    ),
  );
  const start = Placement.contiguous(sizes);
  for (const [rank, one] of weights.entries()) {
    await one.fill(columnsOf(start, rank));
  }
  const engine = await Engine.connect({
    ...{ library, topology, weights },
    placement: start,
  });
  const to = Placement.random({ ...sizes, seed: 1 });
  const error = await assertRejects(
    () =>
      engine.rearrange(to, {
        signal: AbortSignal.timeout(20),
        relay: false,
      }),
    RearrangeError,
  );
  assert(error.committedLayers < 60);
  assert(
    error.placement.equals(Placement.mix(start, to, error.committedLayers)),
  );
  assert(engine.placement.equals(error.placement));
  await assertRejects(
    () => engine.rearrange(to),
    TypeError,
    "an earlier rearrangement failed",
  );
  await engine.close();
  // The weights live on: a new engine takes up where the old one stopped.
  await using next = await Engine.connect({
    ...{ library, topology, weights },
    placement: error.placement,
  });
  const { verified } = await next.rearrange(to, { verify: true });
  assertEquals(verified, true);
  await next.close();
  // Every byte is the one its expert was given at the start.
  using fresh = await ExpertWeights.allocate(library, {
    layout: big,
    layers: 60,
    slots: 3,
  });
  for (const [rank, one] of weights.entries()) {
    await fresh.fill(columnsOf(to, rank));
    assertEquals(await one.digest(), await fresh.digest());
    one.close();
  }
});

Deno.test("rearrange() refuses a signal that has fired, before anything moves", async () => {
  await using job = await makeJob();
  await using engine = await Engine.connect(job.options);
  const to = Placement.random({ ...shape, seed: 3 });
  const error = await assertRejects(
    () =>
      engine.rearrange(to, { signal: AbortSignal.abort("changed my mind") }),
    RearrangeError,
  );
  assertEquals(error.committedLayers, 0);
  assertStringIncludes(error.message, "changed my mind");
});

Deno.test("rearrange() refuses to run twice at a time", async () => {
  await using job = await makeJob();
  await using engine = await Engine.connect(job.options);
  const to = Placement.random({ ...shape, seed: 3 });
  const first = engine.rearrange(to);
  await assertRejects(
    () => engine.rearrange(to),
    TypeError,
    "Cannot rearrange: a rearrangement is in progress",
  );
  await first;
});

Deno.test("close() may be called twice, ends every use, and leaves the weights", async () => {
  await using job = await makeJob();
  const engine = await Engine.connect(job.options);
  const busy = (() => {
    try {
      job.weights[0]!.close();
    } catch (error) {
      return error;
    }
  })();
  assert(busy instanceof EplbError && busy.code === "busy");
  await engine.close();
  await engine.close();
  await assertRejects(
    () => engine.rearrange(placement),
    TypeError,
    "Cannot rearrange: engine is closed",
  );
});

Deno.test("close() ends a rearrangement in progress", async () => {
  await using job = await makeJob();
  const engine = await Engine.connect(job.options);
  // Tiny weights may have been moved before close() came; if not, it must say so.
  const moving = engine.rearrange(Placement.random({ ...shape, seed: 3 }))
    .catch((error) => assert(error instanceof RearrangeError, String(error)));
  await engine.close();
  await moving;
});
