// The GPU part of the suite: ranks on GPUs, in one process and in several.

import {
  assert,
  assertEquals,
  assertRejects,
  assertStringIncludes,
} from "@std/assert";
import { StoreServer } from "../../lib/cluster/store_server.ts";
import type { TransportName } from "../../lib/native/transport.ts";
import { ExpertWeights } from "../../lib/native/weights.ts";
import { Placement, type PlacementShape } from "../../lib/placement.ts";
import { Engine } from "../../lib/engine/engine.ts";
import { RearrangeError } from "../../lib/engine/errors.ts";
import { planMove } from "../../lib/engine/move.ts";
import { Topology } from "../../lib/topology.ts";
import { ExpertLayout } from "../../lib/weights/layout.ts";
import { columnsOf } from "../_columns.ts";
import { hasOneSidedNccl, library } from "../_native.ts";
import { startRanks } from "./_job.ts";
import type { RankReport, RankTask } from "./_rank_process.ts";

const STEPS = Number(Deno.env.get("EPLB_TEST_STEPS") ?? 200);
const gpus = library.devices().devices.length;
if (gpus < 2) {
  // deno-lint-ignore no-console -- a skipped suite should say so
  console.log(`GPU tests need a GPU, some two, this machine has ${gpus}`);
}

/** A job: its ranks are on the GPUs in turn, and said to be on so many nodes. */
interface World {
  readonly transport: TransportName;
  readonly ranks: number;
  readonly nodes: number;
  readonly ignore: boolean;
}
const nccl: World = {
  transport: "nccl",
  ranks: gpus,
  nodes: 1,
  ignore: gpus < 2,
};
const pull: World = {
  transport: "pull",
  ranks: Math.max(gpus, 2),
  nodes: 1,
  ignore: gpus < 1,
};
const eight: World = {
  transport: "pull",
  ranks: 8,
  nodes: 1,
  ignore: gpus < 1,
};
const put: World = {
  ...nccl,
  transport: "nccl-put",
  ignore: gpus < 2 || !hasOneSidedNccl(),
};
/** With one node everything is pulled, with a node per rank everything is sent. */
const near: World = { ...nccl, transport: "pull+nccl" };
const far: World = { ...near, nodes: gpus };
const mixed: World = {
  ...near,
  ranks: gpus - gpus % 2,
  nodes: 2,
  ignore: gpus < 4,
};

function describe({ transport, ranks, nodes }: World): string {
  const on = nodes === 1 ? "" : `, ${nodes} nodes`;
  return `${transport}, ${ranks} ranks on ${gpus} GPUs${on}`;
}

function topologyOf({ ranks, nodes }: World): Topology {
  return Topology.uniform({ ranks, nodes });
}

function onGpu(rank: number): number {
  return rank % gpus;
}

/** Sizes that take every path: tiny, unaligned, packed, sent on their own. */
const layout = new ExpertLayout([
  { name: "id", dtype: "U8", shape: [4] },
  { name: "odd", dtype: "U8", shape: [1003] },
  { name: "small", dtype: "U8", shape: [7168] },
  { name: "large", dtype: "U8", shape: [300_000] },
]);

function shapeOf({ ranks }: World): PlacementShape {
  return { layers: 6, ranks, slotsPerRank: 5, experts: 7 };
}

/** Weights on every GPU, filled as the placement says. */
async function fill(
  placement: Placement,
  device: (rank: number) => number | "host",
  of = layout,
): Promise<ExpertWeights[]> {
  return await Promise.all(
    Array.from({ length: placement.ranks }, async (_, rank) => {
      const weights = await ExpertWeights.allocate(library, {
        layout: of,
        layers: placement.layers,
        slots: placement.slotsPerRank,
        device: device(rank),
      });
      await weights.fill(columnsOf(placement, rank), { seed: 5 });
      return weights;
    }),
  );
}

/** Compares every byte with host memory that was filled from the map directly. */
async function assertHolds(
  weights: readonly ExpertWeights[],
  placement: Placement,
): Promise<void> {
  const expected = await fill(placement, () => "host", weights[0]!.layout);
  for (const [rank, one] of weights.entries()) {
    for (let layer = 0; layer < placement.layers; layer++) {
      for (let slot = 0; slot < placement.slotsPerRank; slot++) {
        one.tensorBytes.forEach((_, tensor) => {
          const at = { layer, slot, tensor };
          assertEquals(one.read(at), expected[rank]!.read(at));
        });
      }
    }
  }
  expected.forEach((one) => one.close());
}

Deno.test({
  name: "fill() and digest() on a GPU equal those on the host",
  ignore: pull.ignore,
  fn: async () => {
    const placement = Placement.random({ ...shapeOf(pull), seed: 1 });
    const onGpus = await fill(placement, onGpu);
    const onHost = await fill(placement, () => "host");
    for (const [rank, one] of onGpus.entries()) {
      assertEquals(await one.digest(), await onHost[rank]!.digest());
    }
    await assertHolds(onGpus, placement);
    [...onGpus, ...onHost].forEach((one) => one.close());
  },
});

for (
  const { name, world, ...options } of [
    { name: "defaults", world: nccl },
    { name: "one staging set", world: nccl, staging: { sets: 1 } },
    { name: "groups of few operations", world: nccl, maxOpsPerGroup: 4 },
    { name: "nothing packed", world: nccl, smallBytes: 0 },
    { name: "everything packed", world: nccl, smallBytes: 1 << 20 },
    { name: "few thread blocks", world: nccl, maxCtas: 4 },
    { name: "defaults", world: pull },
    { name: "one staging set", world: pull, staging: { sets: 1 } },
    { name: "every tensor by copy engine", world: pull, smallBytes: 0 },
    { name: "every tensor by kernel", world: pull, smallBytes: 1 << 20 },
    { name: "copy engine only", world: pull, copyEngineOnly: true },
    { name: "defaults", world: eight },
    {
      name: "copy engine only, nothing small",
      world: eight,
      copyEngineOnly: true,
      smallBytes: 0,
    },
    { name: "defaults", world: near },
    { name: "one staging set", world: near, staging: { sets: 1 } },
    { name: "nothing small", world: near, smallBytes: 0 },
    { name: "copy engine only", world: near, copyEngineOnly: true },
    { name: "defaults", world: far },
    { name: "copy engine only", world: far, copyEngineOnly: true },
    { name: "defaults", world: mixed },
    { name: "one staging set", world: mixed, staging: { sets: 1 } },
    { name: "groups of few operations", world: mixed, maxOpsPerGroup: 4 },
    { name: "nothing small", world: mixed, smallBytes: 0 },
    { name: "everything small", world: mixed, smallBytes: 1 << 20 },
    { name: "copy engine only", world: mixed, copyEngineOnly: true },
    { name: "defaults", world: put },
    { name: "one staging set", world: put, staging: { sets: 1 } },
    { name: "groups of few operations", world: put, maxOpsPerGroup: 4 },
    { name: "nothing small", world: put, smallBytes: 0 },
    { name: "everything small", world: put, smallBytes: 1 << 20 },
    { name: "copy engine only", world: put, copyEngineOnly: true },
    {
      name: "copy engine only, nothing small",
      world: put,
      copyEngineOnly: true,
      smallBytes: 0,
    },
  ] as const
) {
  Deno.test({
    name: `chains of random maps end bit for bit where they should: ${
      describe(world)
    }: ${name}`,
    ignore: world.ignore,
    fn: async () => {
      const { transport } = world;
      const shape = shapeOf(world);
      const start = Placement.contiguous(shape);
      const weights = await fill(start, onGpu);
      const engine = await Engine.connect({
        library,
        weights,
        placement: start,
        topology: topologyOf(world),
        transport,
        ...options,
      });
      for (let step = 0; step < STEPS; step++) {
        const to = Placement.random({ ...shape, seed: step + 1 });
        const sources = step % 2 === 0 ? "balanced" : "chunked";
        const verify = step % 10 === 0;
        const result = await engine.rearrange(to, { sources, verify });
        assertEquals(result.mismatches, []);
        if (step % 50 === 0) await assertHolds(weights, to);
      }
      await assertHolds(weights, engine.placement);
      await engine.close();
      weights.forEach((one) => one.close());
    },
  });
}

/** When a move is under way, in milliseconds from the moment that it is planned. */
interface Span {
  readonly begin: number;
  readonly end: number;
}

/** Layers that are committed, and when they were moved if all of them are. */
interface Attempt {
  readonly layers: number;
  readonly span?: Span;
}

/** Rearranges, and aborts it `after` milliseconds from the moment that it is planned. */
async function attempt(
  engine: Engine,
  to: Placement,
  after: number | undefined,
): Promise<Attempt> {
  const controller = new AbortController();
  let end = 0;
  // Plans at once; weights move when this waits.
  const moved = engine.rearrange(to, {
    signal: controller.signal,
    onProgress: () => end = performance.now() - planned,
  });
  const planned = performance.now();
  const timer = after === undefined
    ? undefined
    : setTimeout(() => controller.abort(), after);
  try {
    const { moveSeconds } = await moved;
    return { layers: to.layers, span: { begin: end - moveSeconds * 1e3, end } };
  } catch (error) {
    assert(error instanceof RearrangeError, String(error));
    return { layers: error.committedLayers };
  } finally {
    clearTimeout(timer);
  }
}

/** The golden ratio's multiples: parts of 1 that spread evenly, however many there are. */
const GOLDEN = 0.618;

for (const world of [nccl, pull, eight, near, mixed, put]) {
  Deno.test({
    name: `a rearrangement takes the time that maxRate asks for: ${
      describe(world)
    }`,
    ignore: world.ignore,
    fn: async () => {
      const { transport, ranks } = world;
      const shape = { layers: 6, ranks, slotsPerRank: 5, experts: 5 * ranks };
      const start = Placement.contiguous(shape);
      const weights = await fill(start, onGpu);
      const engine = await Engine.connect({
        library,
        weights,
        placement: start,
        topology: Topology.uniform({ ranks, nodes: 1 }),
        transport,
      });
      // Each rank gets all that the next one has.
      const map = start.physicalToLogical.map((expert) =>
        (expert + 5) % shape.experts
      );
      const to = Placement.from(map, { ranks, layers: 6 });
      const maxRate = 5 * layout.expertBytes / 0.02; // a layer in 20 ms
      const { moveSeconds } = await engine.rearrange(to, { maxRate });
      assert(moveSeconds >= 0.12 && moveSeconds < 5, `${moveSeconds} s`);
      await assertHolds(weights, to);
      await engine.close();
      weights.forEach((one) => one.close());
    },
  });
}

for (const world of [nccl, pull, eight, put]) {
  Deno.test({
    name: `an aborted rearrangement keeps weights and maps equal: ${
      describe(world)
    }`,
    ignore: world.ignore,
    fn: async () => {
      const large = new ExpertLayout([
        { name: "w", dtype: "U8", shape: [8 << 20] },
        { name: "s", dtype: "U8", shape: [512] },
      ]);
      const { transport, ranks } = world;
      // Most slots get their expert from another rank, which takes some time on any GPUs.
      const sizes = {
        layers: 60,
        ranks,
        slotsPerRank: 8,
        experts: 6 * ranks,
      };
      let placement = Placement.contiguous(sizes);
      const weights = await fill(placement, onGpu, large);
      const committed: number[] = [];
      const partly = (): number =>
        committed.filter((layers) => layers > 0 && layers < 60).length;
      // The first one is not aborted: it tells when to.
      let span: Span | undefined;
      for (let round = 0; round < 20 && partly() < 3; round++) {
        const engine = await Engine.connect({
          library,
          weights,
          placement,
          topology: topologyOf(world),
          transport,
        });
        const to = Placement.random({ ...sizes, seed: round });
        const part = (GOLDEN * round) % 1;
        const after = span && span.begin + part * (span.end - span.begin);
        const result = await attempt(engine, to, after);
        span = result.span ?? span;
        committed.push(result.layers);
        placement = engine.placement;
        await engine.close();
        const same = await fill(placement, onGpu, large);
        for (const [rank, one] of weights.entries()) {
          assertEquals(await one.digest(), await same[rank]!.digest());
        }
        same.forEach((one) => one.close());
      }
      weights.forEach((one) => one.close());
      assert(
        partly() > 0,
        `no abort came while layers were being moved: ${committed} of 60 were committed`,
      );
    },
  });
}

Deno.test({
  name:
    "without a transport, GPUs of one node pull, and those of several use NCCL, too",
  ignore: nccl.ignore,
  fn: async () => {
    const start = Placement.contiguous({ ...shapeOf(nccl), ranks: 2 });
    const weights = await fill(start, onGpu);
    for (const [nodes, transport] of [[1, "pull"], [2, "pull+nccl"]] as const) {
      const topology = Topology.uniform({ ranks: 2, nodes });
      const job = { library, weights, placement: start, topology };
      await using engine = await Engine.connect(job);
      assertEquals(engine.transport, transport);
    }
    weights.forEach((one) => one.close());
  },
});

Deno.test({
  name: "nccl, pull+nccl, nccl-put: two ranks on one GPU are refused",
  ignore: pull.ignore,
  fn: async () => {
    const start = Placement.contiguous({ ...shapeOf(pull), ranks: 2 });
    const weights = await fill(start, () => 0);
    for (const transport of ["nccl", "pull+nccl", "nccl-put"] as const) {
      await assertRejects(
        () =>
          Engine.connect({
            library,
            weights,
            placement: start,
            topology: Topology.uniform({ ranks: 2, nodes: 1 }),
            transport,
          }),
        RangeError,
        "two ranks share a GPU",
      );
    }
    weights.forEach((one) => one.close());
  },
});

Deno.test({
  name: "nccl-put stages also what could be written directly",
  ignore: put.ignore,
  fn: async () => {
    const { transport, ranks } = put;
    const shape = shapeOf(put);
    const start = Placement.contiguous(shape);
    const weights = await fill(start, onGpu);
    await using engine = await Engine.connect({
      library,
      weights,
      placement: start,
      topology: Topology.uniform({ ranks, nodes: 1 }),
      transport,
    });
    for (let seed = 1; seed <= 10; seed++) {
      const to = Placement.random({ ...shape, seed });
      const settings = engine.moveSettings({ direct: true });
      const move = planMove(engine.placement, to, settings);
      assertEquals(move.drained, move.from);
      const { verified } = await engine.rearrange(to, {
        direct: true,
        verify: true,
      });
      assertEquals(verified, true);
    }
    await assertHolds(weights, engine.placement);
    await engine.close();
    weights.forEach((one) => one.close());
  },
});

function taskOf({ transport, nodes }: World): RankTask {
  return {
    layers: 4,
    slotsPerRank: 5,
    experts: 7,
    nodes,
    words: [1, 300, 200_000],
    steps: 50,
    timeout: 60_000,
    gpus,
    transport,
  };
}

async function runAll(
  world: World,
  task: RankTask,
  victim?: { rank: number; after: number },
): Promise<(RankReport | undefined)[]> {
  const { ranks: worldSize } = world;
  await using server = StoreServer.listen({ worldSize, token: "t" });
  const ranks = startRanks(server, task);
  if (victim !== undefined) {
    await Promise.all(ranks.map(({ heard }) => heard));
    await new Promise((resolve) => setTimeout(resolve, victim.after));
    ranks[victim.rank]!.child.kill("SIGKILL");
  }
  return await Promise.all(ranks.map(({ report }) => report));
}

for (const world of [nccl, pull, eight, near, far, mixed, put]) {
  Deno.test({
    name: `one process per rank: ${describe(world)}`,
    ignore: world.ignore,
    fn: async () => {
      for (const report of await runAll(world, taskOf(world))) {
        assertEquals(report?.error, undefined);
        assertEquals([report?.steps, report?.wrongWords], [50, 0]);
      }
    },
  });
}

for (const world of [nccl, pull, near, mixed, put]) {
  Deno.test({
    name:
      `kill -9 of a rank gives the others an error that names it, and loses nothing: ${
        describe(world)
      }`,
    ignore: world.ignore,
    fn: async () => {
      const task = { ...taskOf(world), steps: 1_000_000, timeout: 20_000 };
      for (let round = 0; round < 4; round++) {
        const rank = round % world.ranks;
        const victim = { rank, after: 100 + 150 * round };
        const reports = await runAll(world, task, victim);
        assertEquals(reports[rank], undefined);
        for (const report of reports) {
          if (report === undefined) continue;
          assertEquals(report.failedRank, rank, report.error);
          assertStringIncludes(report.error!, `rank ${rank}`);
          assertEquals(report.wrongWords, 0);
        }
      }
    },
  });
}
