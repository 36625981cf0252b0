// SPDX-License-Identifier: Apache-2.0
// The main job for the ranks of one process: weights in, rearrange, weights out.

import { join } from "@std/path";
import type { Cluster } from "../../cluster/cluster.ts";
import type { NativeLibrary } from "../../native/library.ts";
import type { TransportName } from "../../native/transport.ts";
import { ExpertWeights } from "../../native/weights.ts";
import type { Placement, PlacementShape } from "../../placement.ts";
import { saveExperts } from "../../engine/checkpoint.ts";
import { Engine } from "../../engine/engine.ts";
import type { RearrangeResult } from "../../engine/options.ts";
import type { StagingOptions } from "../../engine/staging.ts";
import type { Topology } from "../../topology.ts";
import { fromOptions } from "../command.ts";
import type { Terminal } from "../terminal.ts";
import { meanBalancedness } from "./load.ts";
import type { WeightsSource } from "./source.ts";

/** Everything that one process needs to know to take part. */
export interface Job extends Disposable {
  readonly library: NativeLibrary;
  readonly topology: Topology;
  readonly shape: PlacementShape;
  readonly source: WeightsSource;
  readonly from: Placement;
  /** Where to go in the first rearrangement, and in repetitions of it. */
  readonly to: (repetition: number) => Placement;
  readonly load: Float64Array | undefined;
  /** Ranks of this process, ascending. */
  readonly locals: readonly number[];
  /** Device of each of `locals`. */
  readonly devices: readonly (number | "host")[];
  readonly transport: TransportName | "auto";
  readonly sources: "balanced" | "chunked";
  readonly staging: StagingOptions;
  readonly maxOpsPerGroup: number | undefined;
  readonly maxCtas: number | undefined;
  readonly smallBytes: number | undefined;
  readonly copyEngineOnly: boolean;
  /** Bytes per second. */
  readonly maxRate: number | undefined;
  readonly verify: boolean;
  readonly relay: boolean;
  readonly repeat: number;
  /** Milliseconds. */
  readonly timeout: number;
  readonly save: string | undefined;
  readonly cluster: Cluster | undefined;
}

/** One rearrangement of a job, and how balanced its placements are. */
export interface JobRun {
  readonly result: RearrangeResult;
  readonly before: number | undefined;
  readonly after: number | undefined;
}

/** What a job did. */
export interface JobOutcome {
  readonly transport: TransportName;
  readonly stagingBytes: number;
  /** One entry per repetition, at least one. */
  readonly runs: readonly JobRun[];
}

/** Allocates, connects, fills, rearranges, saves. */
export async function runJob(
  job: Job,
  terminal: Terminal,
): Promise<JobOutcome> {
  await using owned = new AsyncDisposableStack();
  const weights: ExpertWeights[] = [];
  for (const device of job.devices) {
    weights.push(owned.use(await allocate(job, device)));
  }
  // Before the slow work of filling, so that what cannot work fails at once.
  terminal.progress("connecting ranks");
  const engine = owned.use(await connect(job, weights));
  for (const [i, rank] of job.locals.entries()) {
    terminal.progress(`filling the slots of rank ${rank}`);
    await job.source.fill(weights[i]!, { placement: job.from, rank });
  }
  const runs: JobRun[] = [];
  for (let repetition = 0; repetition < job.repeat; repetition++) {
    runs.push(await rearrangeOnce(job, { engine, repetition, terminal }));
  }
  if (job.save !== undefined) {
    terminal.progress("saving");
    await save(job, { folder: job.save, weights, engine });
  }
  terminal.progress("");
  return {
    transport: engine.transport,
    stagingBytes: engine.stagingBytes,
    runs,
  };
}

async function allocate(
  job: Job,
  device: number | "host",
): Promise<ExpertWeights> {
  return await ExpertWeights.allocate(job.library, {
    layout: job.source.layout,
    layers: job.shape.layers,
    slots: job.shape.slotsPerRank,
    device,
    shareable: job.cluster !== undefined,
  });
}

async function connect(
  job: Job,
  weights: readonly ExpertWeights[],
): Promise<Engine> {
  const { cluster, maxOpsPerGroup, maxCtas, smallBytes, copyEngineOnly } = job;
  return await fromOptions(() =>
    Engine.connect({
      library: job.library,
      topology: job.topology,
      placement: job.from,
      weights,
      ranks: job.locals,
      transport: job.transport,
      staging: job.staging,
      timeout: job.timeout,
      copyEngineOnly,
      ...(maxOpsPerGroup === undefined ? {} : { maxOpsPerGroup }),
      ...(maxCtas === undefined ? {} : { maxCtas }),
      ...(smallBytes === undefined ? {} : { smallBytes }),
      ...(cluster === undefined ? {} : { cluster }),
    })
  );
}

async function rearrangeOnce(
  job: Job,
  options: {
    readonly engine: Engine;
    readonly repetition: number;
    readonly terminal: Terminal;
  },
): Promise<JobRun> {
  const { engine, repetition, terminal } = options;
  const { load } = job;
  const to = job.to(repetition);
  const before = meanBalancedness(load, engine.placement);
  terminal.progress(job.verify ? "taking digests" : "rearranging");
  const result = await fromOptions(() =>
    engine.rearrange(to, {
      sources: job.sources,
      verify: job.verify,
      relay: job.relay,
      maxRate: job.maxRate,
      timeout: job.timeout,
      onProgress: (done, all) =>
        terminal.progress(`rearranging: ${done} of ${all} layers`),
    })
  );
  return { result, before, after: meanBalancedness(load, to) };
}

/** Writes the ranks' weights; the process of rank 0 adds the map they follow. */
async function save(
  job: Job,
  options: {
    readonly folder: string;
    readonly weights: readonly ExpertWeights[];
    readonly engine: Engine;
  },
): Promise<void> {
  const { folder, weights, engine: { placement } } = options;
  await Deno.mkdir(folder, { recursive: true });
  for (const [i, rank] of job.locals.entries()) {
    const name = `rank-${String(rank).padStart(5, "0")}.safetensors`;
    await saveExperts(join(folder, name), weights[i]!, { placement, rank });
  }
  if (job.locals[0] === 0) {
    const map = join(folder, "placement.json");
    await Deno.writeTextFile(map, `${JSON.stringify(placement)}\n`);
  }
}
