// SPDX-License-Identifier: Apache-2.0

/**
 * One cycle: from the load of the last steps to the last layer in place.
 *
 * @module
 */
import { Deadline, type World } from "../engine/world.ts";
import { countCases } from "../migration/plan.ts";
import { messageOf, rankOf } from "../engine/waiting.ts";
import type { Ballot, Vote } from "./ballot.ts";
import type { DecisionInput } from "./decision.ts";
import type {
  CycleEvent,
  CycleOutcome,
  CycleTrigger,
  EplbEvent,
} from "./events.ts";
import type { Model } from "./model.ts";
import type { Planned, Planner } from "./planner.ts";
import { addCounts } from "./segments.ts";
import {
  BackgroundTransfer,
  BlockingTransfer,
  type Transfer,
} from "./transfer.ts";

/** What cycles of one state share. */
export interface CycleContext {
  readonly world: World;
  readonly ballot: Ballot;
  readonly planner: Planner;
  readonly mode: "async" | "sync";
  readonly drain: boolean;
  readonly layersPerStep: number;
  readonly maxRate: number | undefined;
  readonly cycleTimeout: number;
  readonly stallTimeout: number;
  readonly stepTimeout: number;
  /** What a decision follows from beside the model and its load. */
  decisionInput(
    model: Model,
    load: Float64Array,
  ): DecisionInput;
  emit(event: EplbEvent): void;
}

/** Parts of a cycle that a process has completed, as its votes tell. */
const STAGE = { begun: 0, decided: 1 } as const;

/**
 * One cycle of one model.
 *
 * {@linkcode Cycle.advance} is called at the end of each step until the cycle has ended. What it
 * does follows from the votes of all processes alone, so that all do the same at the end of the
 * same step; what a process finds out by itself goes into its next vote.
 */
export class Cycle {
  readonly #context: CycleContext;
  readonly #started = performance.now();
  readonly #firstStep: number;
  readonly #after: Promise<void>;
  readonly model: Model;
  readonly number: number;
  #step: number;
  /** What was decided here, once it was. */
  #planned: Planned | undefined;
  #preparation: Promise<void> | undefined;
  /** What moves the weights, once all have decided. */
  #transfer: Transfer | undefined;
  /** Why this process cannot go on. */
  #fault = "";
  #lastProgress = performance.now();
  #lastReady = -1;
  #stallSeconds = 0;
  /** When the step that is ending began to do so. */
  #advanced: number | undefined;
  #failedRank: number | undefined;
  #ended = false;
  readonly #done = Promise.withResolvers<void>();
  /** Why balancing cannot go on at all, once the cycle has ended. */
  failure: Error | undefined;

  /**
   * @param context What cycles share.
   * @param of The model, the number of the cycle, the step at whose end it begins, and what has to
   * be over before it may use the engine.
   */
  constructor(
    context: CycleContext,
    of: {
      readonly model: Model;
      readonly number: number;
      readonly step: number;
      readonly after: Promise<void>;
    },
  ) {
    this.#context = context;
    this.model = of.model;
    this.number = of.number;
    this.#step = this.#firstStep = of.step;
    this.#after = of.after;
  }

  /** Whether no step need look after it any more. */
  get ended(): boolean {
    return this.#ended;
  }

  /** Resolves when the engine is free for another cycle; see {@linkcode failure} then. */
  get done(): Promise<void> {
    return this.#done.promise;
  }

  /** Begins, at the end of a step. */
  async begin(trigger: CycleTrigger): Promise<void> {
    this.#emit({ type: "cycle-started", trigger });
    const preparation = this.#prepare().catch((error) => {
      this.#fault ||= messageOf(error);
    });
    this.#preparation = preparation;
    if (this.#context.mode === "sync") await this.advance(this.#step);
    else this.#cast();
  }

  /** Makes this process refuse to go on, from its next vote. */
  refuse(reason: string): void {
    this.#fault ||= reason;
  }

  /** The end of a step. */
  async advance(step: number): Promise<void> {
    this.#advanced = performance.now();
    this.#step = step;
    if (this.#context.mode === "sync") {
      await this.#preparation;
      this.#cast();
    }
    try {
      await this.#act(await this.#context.ballot.collect());
    } catch (error) {
      await this.#fail(error);
    }
    this.#stallSeconds += this.#stalling;
    this.#advanced = undefined;
    if (!this.#ended && this.#context.mode === "async") this.#cast();
  }

  /** Gives up, at the end of a step at which all processes do. */
  async giveUp(reason: string): Promise<void> {
    if (this.#ended) return;
    await this.#context.ballot.collect().catch(() => {});
    await this.#abandon(reason);
  }

  /** Reduces the load over all ranks, decides, and plans the way. */
  async #prepare(): Promise<void> {
    const { world, planner, cycleTimeout, layersPerStep } = this.#context;
    const { model } = this;
    // The window ends with this step, whenever the engine is free.
    const window = model.windowLoad();
    await this.#after;
    const start = performance.now();
    const own = await window;
    const all = await world.exchange(
      "load",
      new Uint8Array(own.buffer),
      new Deadline(cycleTimeout),
    );
    const load = addUp(all, own.length);
    const loadSeconds = (performance.now() - start) / 1e3;
    const planned = await planner.plan({
      input: this.#context.decisionInput(model, load),
      settings: model.engine.moveSettings({
        direct: this.#context.mode === "async" && this.#context.drain,
        maxLayersPerBatch: layersPerStep,
      }),
    });
    for (const { to } of planned.moves) model.checkReplicas(to);
    this.#planned = planned;
    this.#emitDecided(loadSeconds);
  }

  #cast(): void {
    this.#lookForFaults();
    const planned = this.#planned;
    const ready = this.#transfer?.ready ?? 0;
    this.#context.ballot.cast({
      stage: planned === undefined ? STAGE.begun : STAGE.decided,
      ready,
      digest: planned?.moves.map(({ digest }) => digest).join(" ") ?? "",
      fault: this.#fault,
    }, this.#context.stepTimeout);
  }

  #lookForFaults(): void {
    this.#fault ||= this.#transfer?.fault ?? "";
    const { mode, stallTimeout } = this.#context;
    const idle = performance.now() - this.#lastProgress;
    if (mode === "async" && idle > stallTimeout) {
      this.#fault ||= `no progress for ${Math.round(idle)} ms`;
    }
  }

  /** Draws the conclusion that all processes draw from the same votes. */
  async #act(votes: readonly Vote[]): Promise<void> {
    const fault = describeFaults(votes, this.#context.world);
    if (fault !== undefined) return await this.#abandon(fault);
    const stage = Math.min(...votes.map((vote) => vote.stage));
    if (stage < STAGE.decided) return;
    if (this.#transfer === undefined) {
      const mismatch = describeMismatch(votes, this.#context.world);
      if (mismatch !== undefined) return await this.#abandon(mismatch);
      return await this.#open();
    }
    await this.#move(Math.min(...votes.map(({ ready }) => ready)));
  }

  /** All have decided the same. */
  async #open(): Promise<void> {
    this.#progress();
    const { model } = this;
    const { decision, moves: [move, ...others] } = this.#planned!;
    if (move!.program.batchCount === 0 && others.length === 0) {
      // Slots may have become empty, and tokens may be split anew.
      const resplit = decision.shares.some((share, cell) =>
        share !== model.shares[cell]
      );
      model.engine.adopt(move!);
      model.serve(decision.placement, decision.shares);
      return this.#end(resplit ? "resplit" : "unchanged", undefined);
    }
    const { mode, cycleTimeout, layersPerStep, maxRate, stepTimeout } =
      this.#context;
    const Kind = mode === "async" ? BackgroundTransfer : BlockingTransfer;
    this.#transfer = new Kind(model, this.#planned!, {
      layersPerStep,
      maxRate,
      stepTimeout,
      timeout: this.#remaining(cycleTimeout),
    });
    if (await this.#transfer.open() === "moving") await this.#move(0);
  }

  /** Lets layers change that all processes can commit. */
  async #move(ready: number): Promise<void> {
    const transfer = this.#transfer!;
    if (ready > this.#lastReady) this.#progress();
    this.#lastReady = Math.max(ready, this.#lastReady);
    const start = performance.now();
    const { first, end } = await transfer.advance(ready);
    if (end > first) {
      this.#progress();
      const now = performance.now();
      this.#emit({
        type: "layers-committed",
        firstLayer: first,
        layers: end - first,
        commitSeconds: (now - start) / 1e3,
        stallSeconds: this.#stalling,
      });
    }
    if (!transfer.done) return;
    // What is left needs no step: that the other ranks say they are done, too.
    this.#ended = true;
    transfer.finished.then(
      (seconds) => this.#end("committed", undefined, seconds),
      (error) => this.#fail(error),
    );
  }

  /** All processes give up together. */
  async #abandon(reason: string): Promise<void> {
    const mend = await this.#transfer?.abandon(reason, { together: true });
    this.#end("abandoned", reason, undefined, mend);
  }

  /** A process is lost: those that survive agree on what they have. */
  async #fail(error: unknown): Promise<void> {
    const { world } = this.#context;
    const reason = messageOf(error);
    // Alone, nobody is lost: a new engine goes on.
    if (!world.distributed) return await this.#abandon(reason);
    this.failure = error instanceof Error ? error : new Error(reason);
    this.#failedRank = rankOf(error, world);
    world.fail(reason);
    await this.#transfer?.abandon(reason, { together: false });
    this.#failedRank ??= this.#transfer?.failedRank;
    this.#end("failed", reason);
  }

  #progress(): void {
    this.#lastProgress = performance.now();
  }

  /** Seconds for which the step that is ending has been held up so far. */
  get #stalling(): number {
    if (this.#advanced === undefined) return 0;
    return (performance.now() - this.#advanced) / 1e3;
  }

  #remaining(timeout: number): number {
    return Math.max(1, timeout - (performance.now() - this.#started));
  }

  #end(
    outcome: CycleOutcome,
    reason: string | undefined,
    moveSeconds = 0,
    mend?: () => Promise<void>,
  ): void {
    this.#ended = true;
    const { model } = this;
    const { layers, slots } = model.placement;
    const nothingMoves = outcome === "unchanged" || outcome === "resplit";
    const committedLayers = nothingMoves
      ? layers
      : this.#transfer?.committed ?? 0;
    const moves = countCases(
      this.#planned?.cases.subarray(0, committedLayers * slots) ??
        new Uint8Array(0),
    );
    this.#emit({
      type: "cycle-ended",
      outcome,
      reason,
      failedRank: this.#failedRank,
      committedLayers,
      layers,
      moves,
      bytes: {
        sameRank: (moves.sameRank + moves.duplicate) * model.expertBytes,
        sameNode: moves.sameNode * model.expertBytes,
        crossNode: moves.crossNode * model.expertBytes,
      },
      steps: this.#step - this.#firstStep,
      moveSeconds,
      stallSeconds: this.#stallSeconds + this.#stalling,
      seconds: (performance.now() - this.#started) / 1e3,
    });
    // An engine that has given up a move is replaced while the model serves on.
    this.#after.then(mend)
      .catch((error) => this.failure = error)
      .finally(() => this.#done.resolve());
  }

  #emitDecided(loadSeconds: number): void {
    const { decision } = this.#planned!;
    this.#emit({
      type: "cycle-decided",
      tokens: decision.tokens,
      rankTokens: decision.rankTokens,
      balancednessBefore: decision.balancednessBefore,
      balancednessAfter: decision.balancednessAfter,
      decisions: decision.decisions,
      movedSlots: decision.movedSlots,
      loadSeconds,
      planSeconds: decision.planSeconds,
    });
  }

  #emit(event: EventBody): void {
    const head: CycleEvent = {
      model: this.model.name,
      cycle: this.number,
      step: this.#step,
    };
    this.#context.emit({ ...head, ...event } as EplbEvent);
  }
}

/** An event of a cycle without what all have. */
type EventBody = EplbEvent extends infer One
  ? One extends CycleEvent ? Omit<One, keyof CycleEvent> : never
  : never;

function addUp(all: readonly Uint8Array[], length: number): Float64Array {
  const sum = new Float64Array(length);
  for (const bytes of all) {
    const counts = new Float64Array(bytes.slice().buffer);
    if (counts.length !== length) {
      throw new RangeError(
        `Cannot add up load: a process sent ${counts.length} counts, not ${length}`,
      );
    }
    addCounts(sum, counts);
  }
  return sum;
}

function describeFaults(
  votes: readonly Vote[],
  world: World,
): string | undefined {
  const faults = votes.flatMap(({ fault }, member) =>
    fault === "" ? [] : [`rank ${world.firstRankOf(member)}: ${fault}`]
  );
  return faults.length === 0 ? undefined : faults.join("; ");
}

function describeMismatch(
  votes: readonly Vote[],
  world: World,
): string | undefined {
  const first = votes[0]!.digest;
  const other = votes.findIndex(({ digest }) => digest !== first);
  if (other < 0) return undefined;
  return `decisions differ: rank ${world.firstRankOf(0)} has ${first}, rank ${
    world.firstRankOf(other)
  } has ${votes[other]!.digest}`;
}
