// SPDX-License-Identifier: Apache-2.0
// What a step loop notices of a rearrangement: in the background, and while it waits.

import { compareDigests, type Digests } from "../../engine/canary.ts";
import { ExpertWeights } from "../../native/weights.ts";
import type { Placement } from "../../placement.ts";
import { Flags } from "../flags.ts";
import { rearrange } from "../rearrange.ts";
import type { Job } from "../rearrange/job.ts";
import { setUp } from "../rearrange/setup.ts";
import type { Terminal } from "../terminal.ts";
import type { Model, Mover } from "./cases.ts";
import { DECODE_PRODUCT, type Forward, makeForward } from "./forward.ts";
import { mean, median } from "./median.ts";
import { type Reshuffle, StepLoop } from "./step_loop.ts";

/** Steps with nothing in progress that those of a rearrangement are held against. */
const IDLE_STEPS = 100;
const WARM_UP_STEPS = 10;

/** Steps beside a rearrangement, held against steps without. */
export interface Beside {
  /** Steps of the rearrangement. */
  readonly steps: number;
  /** Median and mean seconds of a step with nothing in progress. */
  readonly idleSeconds: number;
  readonly idleMeanSeconds: number;
  /** The longest of those ÷ their median. */
  readonly idleLongest: number;
  /** Seconds of a step of the rearrangement. */
  readonly meanSeconds: number;
  readonly medianSeconds: number;
  readonly longestSeconds: number;
  /** Seconds that as many steps take without ÷ with the rearrangement. */
  readonly speedKept: number;
  /** Longest step ÷ median step with nothing in progress. */
  readonly longest: number;
}

/** What one rearrangement moved. */
export interface Moved {
  /** A `step()`, in seconds, on average. */
  readonly meanPauseSeconds: number;
  /** The longest: for sync, that which decides and moves all layers. */
  readonly pauseSeconds: number;
  /** Slots that got another expert ÷ all slots. */
  readonly moved: number;
  /** Bytes from other ranks into the rank that got most. */
  readonly busiestBytes: number;
  readonly moveSeconds: number;
  readonly bytesPerSecond: number;
}

/** Medians of one kind of rearrangement, and all repetitions. */
export interface Repeated<T> {
  readonly median: T;
  readonly runs: readonly T[];
}

/** One line of the table. */
export interface ServingCase {
  readonly model: string;
  readonly transport: string;
  readonly ranks: number;
  readonly layers: number;
  /** Bytes of one expert. */
  readonly expertBytes: number;
  /** Products of one step on each GPU; null if a timer stands for them. */
  readonly products: number | null;
  /** Layers change between steps, one at a time. */
  readonly async: Repeated<Beside & Moved>;
  /** One step waits for all layers. */
  readonly sync: Repeated<Moved>;
  /** Tensors with wrong bytes at the end. */
  readonly wrong: number;
}

/** The part of `bench --json` about serving. */
export interface Serving {
  readonly product: typeof DECODE_PRODUCT;
  /** Seconds that a forward pass was to take. */
  readonly stepSeconds: number;
  readonly idleSteps: number;
  /** The bound on what each rank gathers in the background, in bytes per second; null without. */
  readonly maxRate: number | null;
  /** All ranks are in one process. */
  readonly processes: 1;
  readonly cases: readonly ServingCase[];
}

/** Options of {@linkcode measureServing}. */
export interface ServingOptions {
  readonly ranks: number;
  readonly device: "host" | "cuda";
  /** Rearrangements of each mode that count. */
  readonly repeat: number;
  /** Seconds of a forward pass. */
  readonly stepSeconds: number;
  /** The most bytes per second that each rank gathers in the background; undefined: no bound. */
  readonly maxRate: number | undefined;
  readonly terminal: Terminal;
}

/** Measures every pair of models and movers. */
export async function measureServing(
  pairs: readonly { readonly model: Model; readonly mover: Mover }[],
  options: ServingOptions,
): Promise<Serving> {
  const cases: ServingCase[] = [];
  for (const { model, mover } of pairs) {
    options.terminal.note(`${model.name}, ${mover.name}, serving …`);
    cases.push(await measureCase(model, mover, options));
  }
  return {
    product: DECODE_PRODUCT,
    stepSeconds: options.stepSeconds,
    idleSteps: IDLE_STEPS,
    maxRate: options.maxRate ?? null,
    processes: 1,
    cases,
  };
}

async function measureCase(
  model: Model,
  mover: Mover,
  options: ServingOptions,
): Promise<ServingCase> {
  const { ranks, device, stepSeconds, terminal } = options;
  using job = await setUp(Flags.parse([
    ...["--ranks", String(ranks), "--device", device],
    ...model.args(ranks),
    ...mover.args,
  ], rearrange));
  using owned = new DisposableStack();
  const weights = await allocate(job, owned);
  const { library, devices, source: { layout } } = job;
  const forward = owned.use(
    await makeForward(library, { devices, seconds: stepSeconds }),
  );
  const before = await digestsOf(weights);
  const parts = { weights, forward, repeat: options.repeat, terminal };
  const async = await serve(job, {
    ...parts,
    mode: "async",
    placement: job.from,
    maxRate: options.maxRate,
    idleSteps: IDLE_STEPS,
  });
  const sync = await serve(job, {
    ...parts,
    mode: "sync",
    placement: async.placement,
    maxRate: undefined,
    idleSteps: WARM_UP_STEPS,
  });
  const mismatches = compareDigests(before, await digestsOf(weights), {
    from: job.from,
    to: sync.placement,
    tensors: layout.moved.map(({ name }) => name),
  });
  return {
    model: model.name,
    transport: mover.name,
    ranks,
    layers: job.shape.layers,
    expertBytes: layout.expertBytes,
    products: forward.products,
    async: repeated(async.runs.map(({ idle, reshuffle }) => ({
      ...heldAgainst(idle, reshuffle.steps.map(({ seconds }) => seconds)),
      ...movedIn(reshuffle),
    }))),
    sync: repeated(sync.runs.map(({ reshuffle }) => movedIn(reshuffle))),
    wrong: mismatches.length,
  };
}

async function allocate(
  job: Job,
  owned: DisposableStack,
): Promise<ExpertWeights[]> {
  const { library, shape, source, from: placement } = job;
  const all: ExpertWeights[] = [];
  for (const [rank, device] of job.devices.entries()) {
    const weights = owned.use(
      await ExpertWeights.allocate(library, {
        layout: source.layout,
        layers: shape.layers,
        slots: shape.slotsPerRank,
        device,
      }),
    );
    await source.fill(weights, { placement, rank });
    all.push(weights);
  }
  return all;
}

/** One rank after the other: each keeps all of its memory busy. */
async function digestsOf(weights: readonly ExpertWeights[]): Promise<Digests> {
  const digests: Uint32Array[] = [];
  for (const one of weights) digests.push(await one.digest());
  return digests;
}

/** Serves through a chain of rearrangements; the first warms up and does not count. */
async function serve(job: Job, options: {
  readonly mode: "async" | "sync";
  readonly weights: readonly ExpertWeights[];
  readonly placement: Placement;
  readonly forward: Forward;
  readonly maxRate: number | undefined;
  readonly idleSteps: number;
  readonly repeat: number;
  readonly terminal: Terminal;
}): Promise<{
  readonly runs: readonly {
    readonly idle: readonly number[];
    readonly reshuffle: Reshuffle;
  }[];
  readonly placement: Placement;
}> {
  const { mode, idleSteps, repeat, terminal } = options;
  await using loop = await StepLoop.start(job, options);
  await loop.idle(WARM_UP_STEPS);
  // Each mode has loads of its own: what it finds is never what it wants.
  const seed = mode === "async" ? 1 : repeat + 2;
  await loop.reshuffle(seed);
  const runs: { idle: number[]; reshuffle: Reshuffle }[] = [];
  for (let i = 1; i <= repeat; i++) {
    terminal.progress(`${mode}: rearrangement ${i} of ${repeat}`);
    const idle = await loop.idle(idleSteps);
    runs.push({ idle, reshuffle: await loop.reshuffle(seed + i) });
  }
  return { runs, placement: loop.placement };
}

/** Holds steps of a rearrangement against steps with nothing in progress, all in seconds. */
export function heldAgainst(
  idle: readonly number[],
  steps: readonly number[],
): Beside {
  const idleSeconds = median(idle);
  const idleMeanSeconds = mean(idle);
  const meanSeconds = mean(steps);
  const longestSeconds = Math.max(...steps);
  return {
    steps: steps.length,
    idleSeconds,
    idleMeanSeconds,
    idleLongest: Math.max(...idle) / idleSeconds,
    meanSeconds,
    medianSeconds: median(steps),
    longestSeconds,
    speedKept: idleMeanSeconds / meanSeconds,
    longest: longestSeconds / idleSeconds,
  };
}

function movedIn(
  { steps, moved, busiestBytes, moveSeconds }: Reshuffle,
): Moved {
  const pauses = steps.map(({ pause }) => pause);
  return {
    meanPauseSeconds: mean(pauses),
    pauseSeconds: Math.max(...pauses),
    moved,
    busiestBytes,
    moveSeconds,
    bytesPerSecond: busiestBytes / moveSeconds,
  };
}

/** The median of each number over the repetitions. */
export function repeated<T extends { readonly [K in keyof T]: number }>(
  runs: readonly T[],
): Repeated<T> {
  const medians = Object.keys(runs[0]!).map((name) =>
    [name, median(runs.map((run) => run[name as keyof T]))] as const
  );
  return { median: Object.fromEntries(medians) as T, runs };
}
