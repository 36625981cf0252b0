// EplbState on GPUs: weights and maps there, in one process.

import { assert, assertEquals } from "@std/assert";
import type { TransportName } from "../../lib/native/transport.ts";
import { ExpertWeights } from "../../lib/native/weights.ts";
import { Placement } from "../../lib/placement.ts";
import { SeededRandom } from "../../lib/random.ts";
import type { EplbEvent } from "../../lib/runtime/events.ts";
import { EplbState } from "../../lib/runtime/state.ts";
import { Topology } from "../../lib/topology.ts";
import { ExpertLayout } from "../../lib/weights/layout.ts";
import { columnsOf } from "../_columns.ts";
import { hasOneSidedNccl, library } from "../_native.ts";
import { breathe, ofType } from "./_serving.ts";

const gpus = library.devices().devices.length;
const layout = new ExpertLayout([
  { name: "odd", dtype: "U8", shape: [1003] },
  { name: "large", dtype: "U8", shape: [3_000_000] },
]);
const LAYERS = 6;
const SLOTS = 5;
/** Words of the digests of one expert. */
const WORDS = 2 * layout.moved.length;
/** Steps from one cycle to the next, if it is over by then. */
const INTERVAL = 12;
/** Cycles that must come to move weights, and the milliseconds in which they must. */
const CYCLES = 5;
const LIMIT = 60_000;

/** Ranks on GPUs in turn, each slot filled as the map says. */
async function makeWeights(placement: Placement): Promise<ExpertWeights[]> {
  const { ranks } = placement;
  return await Promise.all(Array.from({ length: ranks }, async (_, rank) => {
    const weights = await ExpertWeights.allocate(library, {
      layout,
      layers: LAYERS,
      slots: SLOTS,
      device: rank % gpus,
    });
    await weights.fill(columnsOf(placement, rank), { seed: 3 });
    return weights;
  }));
}

function digestOf(digests: Uint32Array, expert: number): Uint32Array {
  return digests.subarray(expert * WORDS, (expert + 1) * WORDS);
}

/** Digests of every expert, computed once, on the host: [layers, experts] of `WORDS` words. */
async function digestsOf(experts: number): Promise<Uint32Array> {
  using all = await ExpertWeights.allocate(library, {
    layout,
    layers: LAYERS,
    slots: experts,
    device: "host",
  });
  const columns = Int32Array.from(
    { length: LAYERS * experts },
    (_, i) => i % experts,
  );
  await all.fill(columns, { seed: 3 });
  return await all.digest();
}

/** Every slot has the digest of the expert that the map puts there; emptied slots have any. */
async function assertHolds(
  weights: readonly ExpertWeights[],
  placement: Placement,
  digests: Uint32Array,
): Promise<void> {
  const experts = digests.length / LAYERS / WORDS;
  const found = await Promise.all(weights.map((one) => one.digest()));
  for (const [rank, own] of found.entries()) {
    for (const [at, expert] of columnsOf(placement, rank).entries()) {
      if (expert < 0) continue;
      const layer = Math.floor(at / SLOTS);
      assertEquals(
        digestOf(own, at),
        digestOf(digests, layer * experts + expert),
        `rank ${rank}, layer ${layer}, slot ${at % SLOTS}`,
      );
    }
  }
}

interface Case {
  readonly transport: TransportName;
  readonly ranks: number;
  readonly nodes: number;
  readonly ignore: boolean;
}
const cases: Case[] = [
  { transport: "pull", ranks: Math.max(2, gpus), nodes: 1, ignore: gpus < 1 },
  { transport: "pull", ranks: 8, nodes: 1, ignore: gpus < 1 },
  { transport: "nccl", ranks: gpus, nodes: 1, ignore: gpus < 2 },
  { transport: "pull+nccl", ranks: gpus, nodes: 1, ignore: gpus < 2 },
  {
    transport: "pull+nccl",
    ranks: gpus - gpus % 2,
    nodes: 2,
    ignore: gpus < 2,
  },
  {
    transport: "nccl-put",
    ranks: gpus,
    nodes: 1,
    ignore: gpus < 2 || !hasOneSidedNccl(),
  },
];

for (const { transport, ranks, nodes, ignore } of cases) {
  for (const policy of ["quota", "deepseek"] as const) {
    Deno.test({
      name:
        `step() moves weights on GPUs while they are served: ${transport}, ${ranks} ranks on ${gpus} GPUs and ${nodes} node(s), ${policy}`,
      ignore,
      fn: async () => {
        const experts = ranks * SLOTS - Math.min(ranks, 4);
        const shape = { layers: LAYERS, ranks, slotsPerRank: SLOTS, experts };
        const start = Placement.contiguous(shape);
        const weights = await makeWeights(start);
        const digests = await digestsOf(experts);
        const events: EplbEvent[] = [];
        const state = await EplbState.create({
          library,
          topology: Topology.uniform({ ranks, nodes }),
          policy,
          gate: false,
          stepInterval: INTERVAL,
          windowSteps: 6,
          onEvent: (event) => events.push(event),
        });
        const model = await state.addModel({
          name: "main",
          weights,
          experts,
          transport,
        });
        const outcomes = (): readonly string[] =>
          ofType(events, "cycle-ended").map(({ outcome }) => outcome);
        const moved = (): number =>
          outcomes().filter((outcome) => outcome === "committed").length;
        const random = new SeededRandom(4);
        const end = performance.now() + LIMIT;
        for (
          let step = 0;
          moved() < CYCLES && performance.now() < end;
          step++
        ) {
          const hot = Math.floor(step / INTERVAL) % 7;
          model.record(
            Float64Array.from(
              { length: LAYERS * experts },
              (_, i) => i % 7 === hot ? 1000 : random.below(50),
            ),
          );
          await assertHolds(weights, model.placement, digests);
          await breathe(2);
          await state.step();
        }
        await state.drain();
        await assertHolds(weights, model.placement, digests);
        assertEquals(state.failure, undefined);
        assert(moved() >= CYCLES, `${outcomes()}`);
        assert(!outcomes().includes("abandoned"), `${outcomes()}`);
        await state.close();
        for (const one of weights) one.close();
      },
    });
  }
}
