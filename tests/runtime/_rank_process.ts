// deno-lint-ignore-file no-console -- lines are how it reports
// One rank of a served model in its own process: balances while it serves, and checks all of its
// bytes, and that all ranks have one map, in every step.

import { rankIdentity } from "../../lib/cluster/identity.ts";
import { StoreClient } from "../../lib/cluster/store_client.ts";
import { NativeLibrary } from "../../lib/native/library.ts";
import { ExpertWeights } from "../../lib/native/weights.ts";
import { Placement } from "../../lib/placement.ts";
import type { PolicyName } from "../../lib/policies/registry.ts";
import { SeededRandom } from "../../lib/random.ts";
import type { EplbEvent } from "../../lib/runtime/events.ts";
import { EplbState } from "../../lib/runtime/state.ts";
import { Topology } from "../../lib/topology.ts";
import { ExpertLayout } from "../../lib/weights/layout.ts";

/** What a rank process does, as JSON in its first argument. */
export interface ServeTask {
  readonly layers: number;
  readonly slotsPerRank: number;
  readonly experts: number;
  /** 32-bit words of one expert. */
  readonly words: number;
  readonly mode: "async" | "sync";
  readonly policy: PolicyName;
  readonly layersPerStep?: number;
  readonly nodes?: number;
  /** Staging memory of a rank, in bytes. */
  readonly staging?: number;
  readonly steps: number;
  readonly stepInterval: number;
  readonly timeout: number;
  /** Pause of each forward pass, in milliseconds. */
  readonly pause?: number;
  /** A rank that balances no more from a step on. */
  readonly stopAt?: { readonly rank: number; readonly step: number };
  /** All ranks but these are active from this step on. */
  readonly leave?: { readonly step: number; readonly ranks: readonly number[] };
  /** This rank has another interval. */
  readonly strayInterval?: number;
  /** Print a line when this step is reached. */
  readonly announce?: number;
}

/** What it reports, as JSON in its last line. */
export interface ServeReport {
  readonly rank: number;
  readonly steps: number;
  readonly wrongWords: number;
  /** Steps in which this rank and another one had different maps. */
  readonly differentMaps: number;
  readonly placement: string;
  readonly outcomes: readonly string[];
  readonly reasons: readonly string[];
  readonly failedRanks: readonly (number | null)[];
  readonly failure: string | null;
  readonly error?: string;
  /** The longest step in which something was given up, in seconds. */
  readonly failureSeconds: number;
}

function wordOf(layer: number, expert: number): number {
  return (layer * 4096 + expert + 1) >>> 0;
}

async function run(task: ServeTask): Promise<ServeReport> {
  const identity = rankIdentity((name) => Deno.env.get(name))!;
  const { rank, worldSize: ranks } = identity;
  const { layers, slotsPerRank, experts } = task;
  const shape = { layers, ranks, slotsPerRank, experts };
  const library = NativeLibrary.open();
  const layout = new ExpertLayout([{
    name: "w",
    dtype: "U32",
    shape: [task.words],
  }]);
  await using cluster = await StoreClient.connect({
    host: identity.storeHost,
    port: identity.storePort,
    token: identity.token,
    rank,
    timeout: task.timeout,
  });
  using weights = await ExpertWeights.allocate(library, {
    layout,
    layers,
    slots: slotsPerRank,
    shareable: true,
  });
  const start = Placement.contiguous(shape);
  eachSlot(start, rank, (layer, slot, expert) => {
    const words = new Uint32Array(task.words).fill(wordOf(layer, expert));
    weights.write({ layer, slot, tensor: 0 }, new Uint8Array(words.buffer));
  });
  const events: EplbEvent[] = [];
  await using state = await EplbState.create({
    library,
    topology: Topology.uniform({ ranks, nodes: task.nodes ?? 1 }),
    ranks: [rank],
    cluster,
    mode: task.mode,
    policy: task.policy,
    gate: false,
    stepInterval: task.stepInterval + (task.strayInterval === rank ? 1 : 0),
    windowSteps: task.stepInterval,
    ...(task.layersPerStep && { layersPerStep: task.layersPerStep }),
    stepTimeout: task.timeout,
    cycleTimeout: task.timeout,
    onEvent: (event) => events.push(event),
  });
  let [steps, wrongWords, differentMaps, failureSeconds] = [0, 0, 0, 0];
  const report = (placement: Placement, error?: string): ServeReport => {
    const ended = events.filter((event) => event.type === "cycle-ended");
    return {
      rank,
      steps,
      wrongWords,
      differentMaps,
      placement: placement.physicalToLogical.join(),
      outcomes: ended.map(({ outcome }) => outcome),
      reasons: ended.map(({ reason }) => reason ?? ""),
      failedRanks: ended.map(({ failedRank }) => failedRank ?? null),
      failure: state.failure?.message ?? null,
      failureSeconds,
      ...(error !== undefined && { error }),
    };
  };
  let model;
  try {
    model = await state.addModel({
      name: "main",
      weights: [weights],
      experts,
      ...(task.staging && { staging: { bytes: task.staging } }),
    });
  } catch (error) {
    return report(start, (error as Error).message);
  }
  const random = new SeededRandom(rank + 1);
  const logical = new Int32Array(32);
  const physical = new Int32Array(32);
  console.log("ready");
  for (; steps < task.steps; steps++) {
    if (task.announce === steps) console.log("announced");
    if (rank === task.stopAt?.rank && steps === task.stopAt.step) {
      state.stop("told to stop");
    }
    if (steps === task.leave?.step) {
      const all = [...Array(ranks).keys()];
      state.setActive(all.filter((one) => !task.leave!.ranks.includes(one)));
    }
    const hot = Math.floor(steps / 40);
    for (let layer = 0; layer < layers; layer++) {
      for (let i = 0; i < logical.length; i++) {
        logical[i] = random.below(2)
          ? (hot + layer) % experts
          : random.below(experts);
      }
      model.dispatcher(rank).dispatch(logical, physical, { layer, topK: 2 });
      for (const [i, slot] of physical.entries()) {
        const there = model.placement
          .physicalToLogical[layer * ranks * slotsPerRank + slot];
        if (there !== logical[i]) wrongWords++;
      }
    }
    wrongWords += countWrong(weights, rank, {
      task,
      placement: model.placement,
    });
    differentMaps += await exchangeTokens(cluster, model.placement, state);
    if (task.pause) {
      await new Promise((resolve) => setTimeout(resolve, task.pause));
    }
    const before = performance.now();
    const failures = events.length;
    await state.step();
    wrongWords += countWrong(weights, rank, {
      task,
      placement: model.placement,
    });
    if (
      events.slice(failures).some((one) =>
        one.type === "cycle-ended" && one.outcome === "failed"
      )
    ) {
      failureSeconds = (performance.now() - before) / 1e3;
    }
  }
  if (state.failure === undefined) await state.drain();
  wrongWords += countWrong(weights, rank, { task, placement: model.placement });
  return report(model.placement);
}

/**
 * What the ranks of a forward pass send each other: here, which map each one uses. Once a rank is
 * lost there is nobody to talk to, and the others serve what they can alone.
 */
async function exchangeTokens(
  cluster: StoreClient,
  placement: Placement,
  state: EplbState,
): Promise<number> {
  if (state.failure !== undefined) return 0;
  const own = placement.physicalToLogical.join();
  try {
    const all = await cluster.gather("forward", new TextEncoder().encode(own));
    return all.filter((bytes) => new TextDecoder().decode(bytes) !== own)
      .length;
  } catch {
    return 0;
  }
}

function eachSlot(
  placement: Placement,
  rank: number,
  visit: (layer: number, slot: number, expert: number) => void,
): void {
  const { layers, slots, slotsPerRank, physicalToLogical } = placement;
  for (let layer = 0; layer < layers; layer++) {
    for (let slot = 0; slot < slotsPerRank; slot++) {
      const expert =
        physicalToLogical[layer * slots + rank * slotsPerRank + slot]!;
      if (expert >= 0) visit(layer, slot, expert);
    }
  }
}

function countWrong(
  weights: ExpertWeights,
  rank: number,
  { task, placement }: {
    readonly task: ServeTask;
    readonly placement: Placement;
  },
): number {
  let wrong = 0;
  const bytes = new Uint8Array(4 * task.words);
  eachSlot(placement, rank, (layer, slot, expert) => {
    const words = new Uint32Array(
      weights.read({ layer, slot, tensor: 0 }, bytes).buffer,
    );
    const expected = wordOf(layer, expert);
    for (const word of words) if (word !== expected) wrong++;
  });
  return wrong;
}

if (import.meta.main) {
  try {
    console.log(JSON.stringify(await run(JSON.parse(Deno.args[0]!))));
  } catch (error) {
    console.log(JSON.stringify({ error: (error as Error).message }));
  }
  // A rank whose store or peers are gone has nothing left to wait for.
  Deno.exit(0);
}
