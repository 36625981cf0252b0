// deno-lint-ignore-file no-console -- lines are how it reports
// One rank of a job in its own process. Rearranges at random until it is told to
// stop or something fails; then checks every byte against its placement.

import { rankIdentity } from "../../lib/cluster/identity.ts";
import { StoreClient } from "../../lib/cluster/store_client.ts";
import { NativeLibrary } from "../../lib/native/library.ts";
import type { TransportName } from "../../lib/native/transport.ts";
import { ExpertWeights } from "../../lib/native/weights.ts";
import { Placement } from "../../lib/placement.ts";
import { Engine } from "../../lib/engine/engine.ts";
import { RearrangeError } from "../../lib/engine/errors.ts";
import { Topology } from "../../lib/topology.ts";
import { ExpertLayout } from "../../lib/weights/layout.ts";

/** What a rank process does, as JSON in its first argument. */
export interface RankTask {
  readonly layers: number;
  readonly slotsPerRank: number;
  readonly experts: number;
  readonly nodes: number;
  /** 32-bit words of one expert in each of its tensors. */
  readonly words: readonly number[];
  readonly steps: number;
  readonly timeout: number;
  /** GPUs that the ranks are on in turn; default: host memory. */
  readonly gpus?: number;
  readonly transport?: TransportName;
  /** This rank is given another target map in this step. */
  readonly strayFrom?: number;
}

/** What it reports, as JSON in its last line. */
export interface RankReport {
  readonly rank: number;
  readonly steps: number;
  readonly wrongWords: number;
  /** The map at the end, all ranks', as text. */
  readonly placement: string;
  readonly error?: string;
  readonly errorName?: string;
  readonly failedRank?: number;
  readonly committedLayers?: number;
  readonly seconds: number;
}

function wordOf(layer: number, expert: number, tensor: number): number {
  return ((layer * 4096 + expert) * 8 + tensor + 1) >>> 0;
}

async function runRank(task: RankTask): Promise<RankReport> {
  const identity = rankIdentity((name) => Deno.env.get(name))!;
  const { rank, worldSize: ranks } = identity;
  const { layers, slotsPerRank, experts } = task;
  const shape = { layers, ranks, slotsPerRank, experts };
  const library = NativeLibrary.open();
  const layout = new ExpertLayout(task.words.map((words, i) => (
    { name: `t${i}`, dtype: "U32", shape: [words] }
  )));
  await using cluster = await StoreClient.connect({
    host: identity.storeHost,
    port: identity.storePort,
    token: identity.token,
    rank,
    timeout: task.timeout,
  });
  const start = Placement.contiguous(shape);
  using weights = await ExpertWeights.allocate(library, {
    layout,
    layers,
    slots: slotsPerRank,
    device: task.gpus === undefined ? "host" : identity.localRank % task.gpus,
    shareable: true,
  });
  fill(weights, rank, { task, placement: start });
  await using engine = await Engine.connect({
    library,
    topology: Topology.uniform({ ranks, nodes: task.nodes }),
    placement: start,
    weights: [weights],
    ranks: [rank],
    cluster,
    timeout: task.timeout,
    transport: task.transport ?? "auto",
  });
  console.log("ready");
  let steps = 0;
  let wrongWords = 0;
  const started = performance.now();
  const end = (failure: Partial<RankReport>): RankReport => ({
    rank,
    steps,
    wrongWords: wrongWords +
      count(weights, rank, { task, placement: engine.placement }),
    placement: engine.placement.physicalToLogical.join(","),
    seconds: (performance.now() - started) / 1e3,
    ...failure,
  });
  try {
    for (; steps < task.steps; steps++) {
      const seed = steps + 1 + (task.strayFrom === steps ? rank : 0);
      const to = Placement.random({ ...shape, seed });
      await engine.rearrange(to, {
        timeout: task.timeout,
        verify: steps % 8 === 0,
        sources: steps % 2 === 0 ? "balanced" : "chunked",
      });
      // Checking all of a large memory would leave no time for moving it.
      if (task.steps <= 100) {
        wrongWords += count(weights, rank, { task, placement: to });
      }
    }
    return end({});
  } catch (error) {
    if (!(error instanceof Error)) throw error;
    const failure = { error: error.message, errorName: error.name };
    if (!(error instanceof RearrangeError)) return end(failure);
    const { failedRank, committedLayers } = error;
    return end({ ...failure, failedRank: failedRank ?? -1, committedLayers });
  }
}

interface Contents {
  readonly task: RankTask;
  readonly placement: Placement;
}

function eachTensor(
  rank: number,
  { task, placement }: Contents,
  visit: (
    at: { layer: number; slot: number; tensor: number },
    words: number,
    value: number,
  ) => void,
): void {
  const { slots, slotsPerRank, physicalToLogical } = placement;
  for (let layer = 0; layer < task.layers; layer++) {
    for (let slot = 0; slot < slotsPerRank; slot++) {
      const expert =
        physicalToLogical[layer * slots + rank * slotsPerRank + slot]!;
      task.words.forEach((words, tensor) =>
        visit({ layer, slot, tensor }, words, wordOf(layer, expert, tensor))
      );
    }
  }
}

function fill(weights: ExpertWeights, rank: number, contents: Contents): void {
  eachTensor(rank, contents, (at, words, value) => {
    const bytes = new Uint8Array(new Uint32Array(words).fill(value).buffer);
    weights.write(at, bytes);
  });
}

function count(
  weights: ExpertWeights,
  rank: number,
  contents: Contents,
): number {
  let wrong = 0;
  eachTensor(rank, contents, (at, words, value) => {
    const actual = new Uint32Array(weights.read(at).buffer);
    for (let i = 0; i < words; i++) if (actual[i] !== value) wrong++;
  });
  return wrong;
}

if (import.meta.main) {
  try {
    console.log(JSON.stringify(await runRank(JSON.parse(Deno.args[0]!))));
  } catch (error) {
    const { name, message } = error as Error;
    console.log(JSON.stringify({ errorName: name, error: message }));
  }
  // A rank whose store or peers are gone has nothing left to wait for.
  Deno.exit(0);
}
