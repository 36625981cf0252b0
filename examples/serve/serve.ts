// SPDX-License-Identifier: Apache-2.0
// Serving with balancing, step by step, beside the same model without.

import {
  type EplbEvent,
  type ExpertWeights,
  openCheckpoint,
  type Placement,
} from "@eplb/eplb";
import { compare } from "./compare.ts";
import { exchange, tokensOf, type World } from "./exchange.ts";
import { type MoeModel, readModel } from "./model.ts";
import type { ServeOptions } from "./options.ts";
import { Phase } from "./phases.ts";
import { BalancedRanks } from "./ranks.ts";
import { Reference } from "./reference.ts";
import type { ServeReport } from "./report.ts";
import { ExpertServer } from "./server.ts";
import { driftingWorkloads, readWorkloads, Traffic } from "./traffic.ts";

/** Made up workloads that take turns. */
const DRIFTS = 4;

/**
 * Serves a model, and compares every token with the same model without balancing.
 *
 * @param options What is served, and how it is balanced.
 * @param world The ranks of this process.
 * @returns What happened: the same on every process.
 * @throws {DifferenceError} At the first token that differs.
 */
export async function serve(
  options: ServeOptions,
  world: World,
): Promise<ServeReport> {
  using checkpoint = await openCheckpoint(options.checkpoint);
  const model = await readModel(checkpoint);
  const traffic = new Traffic(model, {
    workloads: options.traces.length === 0
      ? driftingWorkloads(checkpoint, { count: DRIFTS, seed: options.seed })
      : await readWorkloads(options.traces, checkpoint),
    steps: options.phase,
    tokens: options.tokens,
    seed: options.seed,
  });
  const reference = await Reference.read(checkpoint, model);
  const log = new EventLog();
  await using ranks = await BalancedRanks.load(checkpoint, {
    serve: options,
    world,
    topK: model.topK,
    onEvent: (event) => log.add(event),
  });
  const run = new Run({
    options,
    world,
    model,
    traffic,
    reference,
    ranks,
    log,
  });
  const started = performance.now();
  for (let step = 1; step <= options.steps; step++) await run.step(step);
  await ranks.state.drain();
  log.check();
  const seconds = (performance.now() - started) / 1e3;
  const report = await run.report(seconds);
  await ranks.close();
  return report;
}

/** What the state has told: for the phase that is on, and over all. */
class EventLog {
  /** The phase that is on. */
  phase: Phase | undefined;
  rearrangements = 0;
  skippedCycles = 0;
  cycleSteps = 0;
  stallSeconds = 0;
  /** How a cycle went wrong, once one has. */
  #failure: string | undefined;

  add(event: EplbEvent): void {
    this.phase?.addEvent(event);
    if (event.type === "cycle-skipped") this.skippedCycles++;
    if (event.type !== "cycle-ended") return;
    this.stallSeconds += event.stallSeconds;
    if (event.outcome === "committed") {
      this.rearrangements++;
      this.cycleSteps += event.steps;
    } else if (event.outcome === "abandoned" || event.outcome === "failed") {
      this.#failure ??=
        `Cannot go on serving: cycle ${event.cycle} ${event.outcome} at step ${event.step}: ${event.reason}`;
    }
  }

  /** Throws if a cycle went wrong: the engine would serve on, but this is a test of balancing. */
  check(): void {
    if (this.#failure !== undefined) throw new Error(this.#failure);
  }
}

/** The parts of a run. */
interface RunParts {
  readonly options: ServeOptions;
  readonly world: World;
  readonly model: MoeModel;
  readonly traffic: Traffic;
  readonly reference: Reference;
  readonly ranks: BalancedRanks;
  readonly log: EventLog;
}

/** The steps of one run. */
class Run {
  readonly #parts: RunParts;
  readonly #server: ExpertServer;
  readonly #phases: Phase[] = [];
  /** Tokens of the local ranks, which stand side by side. */
  readonly #tokens: readonly [begin: number, end: number];

  constructor(parts: RunParts) {
    const { options: { tokens }, model, world, ranks } = parts;
    this.#parts = parts;
    const { locals } = world;
    const sizes = { ranks: world.ranks, tokens };
    this.#tokens = [
      tokensOf(locals[0]!, sizes)[0],
      tokensOf(locals.at(-1)!, sizes)[1],
    ];
    this.#server = new ExpertServer({
      model,
      world,
      ranks: ranks.locals,
      layout: ranks.locals[0]!.weights.layout,
      slotsPerRank: ranks.start.slotsPerRank,
    });
  }

  /** One forward pass of both models, and what balancing does at its end. */
  async step(step: number): Promise<void> {
    const { options, model, traffic, reference, ranks, log } = this.#parts;
    const biases = traffic.biases(step);
    const hidden = traffic.hidden(step);
    const served = await this.#server.forward(hidden, { step, biases });
    const [begin, end] = this.#tokens;
    const own = hidden.subarray(begin * model.hidden, end * model.hidden);
    compare(served, await reference.forward(own, biases), {
      step,
      firstToken: begin,
      topK: model.topK,
      slotsPerRank: ranks.start.slotsPerRank,
    });
    const phase = this.#phaseOf(step);
    phase.equalTokens += end - begin;
    phase.addStep(served, model.topK);
    await ranks.state.step();
    log.check();
    if (step === options.corrupt) await this.#corrupt();
    // An engine that waits for its GPU lets the event loop turn, too.
    await new Promise((resolve) => setTimeout(resolve, 0));
  }

  /** What happened, summed over all processes. */
  async report(seconds: number): Promise<ServeReport> {
    const { options, world, model, ranks, log } = this.#parts;
    const equal = Int32Array.from(
      this.#phases,
      ({ equalTokens }) => equalTokens,
    );
    const all = (await exchange(world, "equal", equal))
      .map((bytes) => new Int32Array(bytes));
    const phases = this.#phases.map((phase, index) =>
      phase.report(all.reduce((sum, counts) => sum + counts[index]!, 0))
    );
    return {
      options,
      model: model.name,
      layers: ranks.start.layers,
      experts: model.experts,
      topK: model.topK,
      slots: ranks.start.slots,
      device: ranks.locals[0]!.weights.device === "host" ? "host" : "cuda",
      processes: all.length,
      phases,
      rearrangements: log.rearrangements,
      skippedCycles: log.skippedCycles,
      cycleSteps: log.cycleSteps,
      stallSeconds: log.stallSeconds,
      tokens: phases.reduce((sum, { tokens }) => sum + tokens, 0),
      equalTokens: phases.reduce((sum, one) => sum + one.equalTokens, 0),
      seconds,
    };
  }

  #phaseOf(step: number): Phase {
    const { options: { interval }, traffic, ranks, log } = this.#parts;
    const index = traffic.phase(step);
    log.phase = this.#phases[index] ??= new Phase(
      traffic.workload(step).name,
      { placement: ranks.start, interval },
    );
    return log.phase;
  }

  /** Flips the sign of a weight of the first expert of rank 0, as wrong bytes would. */
  async #corrupt(): Promise<void> {
    const { world: { locals }, ranks } = this.#parts;
    // Weights that are being moved are the library's alone.
    await ranks.state.drain();
    if (locals[0] === 0) {
      flipBit(ranks.locals[0]!.weights, ranks.model.placement);
    }
  }
}

function flipBit(weights: ExpertWeights, placement: Placement): void {
  const row = placement.physicalToLogical.subarray(0, weights.slots);
  const slot = row.findIndex((expert) => expert >= 0);
  // The last byte of a little-endian element has its sign.
  const offset = weights.layout.moved[0]!.dtype === "BF16" ? 1 : 3;
  const position = { layer: 0, slot, tensor: 0, offset };
  const byte = weights.read(position, new Uint8Array(1));
  byte[0]! ^= 0x80;
  weights.write(position, byte);
}
