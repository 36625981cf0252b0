// EplbState on GPUs: weights and maps there, in one process.

import { assert, assertEquals } from "@std/assert";
import type { TransportName } from "../../lib/native/engine.ts";
import { ExpertWeights } from "../../lib/native/weights.ts";
import { Placement } from "../../lib/placement.ts";
import { SeededRandom } from "../../lib/random.ts";
import type { EplbEvent } from "../../lib/runtime/events.ts";
import { EplbState } from "../../lib/runtime/state.ts";
import { Topology } from "../../lib/topology.ts";
import { ExpertLayout } from "../../lib/weights/layout.ts";
import { columnsOf } from "../_columns.ts";
import { library } from "../_native.ts";
import { breathe, ofType } from "./_serving.ts";

const gpus = library.devices().devices.length;
const layout = new ExpertLayout([
  { name: "odd", dtype: "U8", shape: [1003] },
  { name: "large", dtype: "U8", shape: [3_000_000] },
]);
const LAYERS = 6;
const SLOTS = 5;

/** Ranks on GPUs in turn, each slot filled as the map says. */
async function makeWeights(
  placement: Placement,
  device: (rank: number) => number | "host",
): Promise<ExpertWeights[]> {
  const { ranks } = placement;
  return await Promise.all(Array.from({ length: ranks }, async (_, rank) => {
    const weights = await ExpertWeights.allocate(library, {
      layout,
      layers: LAYERS,
      slots: SLOTS,
      device: device(rank),
    });
    await weights.fill(columnsOf(placement, rank), { seed: 3 });
    return weights;
  }));
}

/** Every slot has the digest of the expert that the map puts there; emptied slots have any. */
async function assertHolds(
  weights: readonly ExpertWeights[],
  placement: Placement,
): Promise<void> {
  const expected = await makeWeights(placement, () => "host");
  const words = 2 * layout.moved.length;
  for (const [rank, one] of weights.entries()) {
    const [found, right] = [await one.digest(), await expected[rank]!.digest()];
    const experts = columnsOf(placement, rank);
    for (let at = 0; at < found.length; at++) {
      if (experts[Math.floor(at / words)]! >= 0) {
        assertEquals(found[at], right[at]);
      }
    }
    expected[rank]!.close();
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
        const weights = await makeWeights(start, (rank) => rank % gpus);
        const events: EplbEvent[] = [];
        const state = await EplbState.create({
          library,
          topology: Topology.uniform({ ranks, nodes }),
          policy,
          gate: false,
          stepInterval: 12,
          windowSteps: 6,
          onEvent: (event) => events.push(event),
        });
        const model = await state.addModel({
          name: "main",
          weights,
          experts,
          transport,
        });
        const random = new SeededRandom(4);
        for (let step = 0; step < 60; step++) {
          const hot = Math.floor(step / 12);
          model.record(
            Float64Array.from(
              { length: LAYERS * experts },
              (_, i) => i % 7 === hot ? 1000 : random.below(50),
            ),
          );
          await assertHolds(weights, model.placement);
          await breathe(2);
          await state.step();
        }
        await state.drain();
        await assertHolds(weights, model.placement);
        assertEquals(state.failure, undefined);
        const outcomes = ofType(events, "cycle-ended").map((e) => e.outcome);
        assert(outcomes.includes("committed"), `${outcomes}`);
        assert(!outcomes.includes("abandoned"), `${outcomes}`);
        await state.close();
        for (const one of weights) one.close();
      },
    });
  }
}
