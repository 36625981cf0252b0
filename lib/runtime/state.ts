// SPDX-License-Identifier: Apache-2.0

/**
 * Balancing models while they serve.
 *
 * @module
 */
import { checkInteger } from "../_check.ts";
import { Deadline, World } from "../engine/world.ts";
import type { Policy } from "../policies/policy.ts";
import { policies } from "../policies/registry.ts";
import { checkAgreement } from "./agreement.ts";
import { Ballot } from "./ballot.ts";
import { Cycle, type CycleContext } from "./cycle.ts";
import type { DecisionInput } from "./decision.ts";
import type { CycleTrigger, EplbEvent } from "./events.ts";
import { Model, type ServedModel } from "./model.ts";
import {
  checkOptions,
  type EplbStateOptions,
  type ModelOptions,
  settingsOf,
  type StateSettings,
} from "./options.ts";
import { inlinePlanner, type Planner } from "./planner.ts";
import { type Due, StepSchedule } from "./schedule.ts";
import { WorkerPlanner } from "./worker_planner.ts";

/** Milliseconds that a process waits for the others to close, too. */
const CLOSE_TIMEOUT = 5_000;
/** Pause between two looks at a cycle that is being drained, in milliseconds. */
const DRAIN_PAUSE = 1;

/** Memory that balancing takes on each rank of this process. */
export interface ReservedMemory {
  /** Name of the model. */
  readonly model: string;
  /** Staging memory of one rank, in bytes. */
  readonly stagingBytes: number;
}

/** What a step without anything to do returns: no promise is made for it. */
const NOTHING_DUE: Promise<void> = Promise.resolve();

/**
 * Balances the experts of models while they serve.
 *
 * An engine has one state per process, adds its models, maps its tokens with
 * {@linkcode ServedModel.dispatcher}, and calls {@linkcode step} after every forward pass, as
 * often on every process. The state records the load, decides, moves weights, and commits maps.
 * Whatever happens, {@linkcode ServedModel.placement} and the weights agree, and `step` does not
 * throw for it: the engine serves on, see {@linkcode failure} and the events.
 *
 * It follows the meaning of vLLM's `EplbState`: window, step interval, an early first
 * rearrangement, dummy steps that count, several models.
 *
 * @example Four ranks in one process, on host memory
 * ```ts
 * import { EplbState, ExpertLayout, ExpertWeights, NativeLibrary, Topology } from "@eplb/eplb";
 * import { assert, assertEquals } from "@std/assert";
 *
 * const library = NativeLibrary.open();
 * const layout = new ExpertLayout([{ name: "w", dtype: "BF16", shape: [8, 8] }]);
 * const size = { layout, layers: 2, slots: 3 };
 * const weights = await Promise.all(
 *   Array.from({ length: 4 }, () => ExpertWeights.allocate(library, size)),
 * );
 * await using state = await EplbState.create({
 *   library,
 *   topology: Topology.uniform({ ranks: 4, nodes: 1 }),
 *   stepInterval: 8,
 *   windowSteps: 4,
 * });
 * const model = await state.addModel({ name: "main", weights, experts: 8 });
 * const before = model.placement;
 *
 * // Every token wants expert 5, and expert 0 or 1.
 * const logical = Int32Array.from({ length: 2 * 64 }, (_, i) => i % 2 ? 5 : (i >> 1) % 2);
 * const physical = new Int32Array(logical.length);
 * for (let step = 0; step < 24; step++) {
 *   for (let rank = 0; rank < 4; rank++) {
 *     for (let layer = 0; layer < 2; layer++) {
 *       model.dispatcher(rank).dispatch(logical, physical, { layer, topK: 2, salt: step });
 *     }
 *   }
 *   // …the forward pass: tokens go to their physical experts…
 *   await new Promise((resolve) => setTimeout(resolve, 5));
 *   await state.step();
 * }
 * await state.drain();
 * assert(!model.placement.equals(before));
 * assertEquals(state.failure, undefined);
 * await state.close();
 * for (const one of weights) one.close();
 * ```
 */
export class EplbState implements AsyncDisposable {
  readonly #options: EplbStateOptions;
  readonly #world: World;
  readonly #settings: StateSettings;
  readonly #policy: Policy;
  readonly #schedule: StepSchedule;
  readonly #context: CycleContext;
  readonly #planner: Planner;
  readonly #models: Model[] = [];
  /** Models that wait for their cycle. */
  #queue: Model[] = [];
  #trigger: CycleTrigger = "interval";
  #cycle: Cycle | undefined;
  #cycles = 0;
  #requested: CycleTrigger | undefined;
  #active: readonly number[] | undefined;
  #giveUp: string | undefined;
  #stopped: string | undefined;
  #failure: Error | undefined;
  #stepping = false;
  #closed = false;
  readonly #onAbort = (): void =>
    this.stop(String(this.#options.signal?.reason));

  private constructor(options: EplbStateOptions, world: World) {
    this.#options = options;
    this.#world = world;
    this.#settings = settingsOf(options);
    const { policy, mode, stepInterval, windowSteps } = this.#settings;
    this.#policy = typeof policy === "string" ? policies[policy] : policy;
    this.#schedule = new StepSchedule({
      interval: stepInterval,
      window: windowSteps,
    });
    // A function cannot go to another thread, and who waits for a step may as well plan in it.
    this.#planner = mode === "async" && typeof policy === "string"
      ? new WorkerPlanner(policy)
      : inlinePlanner;
    this.#context = {
      ...this.#settings,
      world,
      ballot: new Ballot(world),
      planner: this.#planner,
      decisionInput: (model, load) => this.#decisionInput(model, load),
      emit: (event) => this.#emit(event),
    };
    options.signal?.addEventListener("abort", this.#onAbort, { once: true });
    if (options.signal?.aborted) this.#onAbort();
  }

  /**
   * Joins the processes of a job.
   *
   * @param options Topology, policy, intervals, limits.
   * @returns The state, without models.
   * @throws {RangeError} If an option is out of range, or the ranks are not all there exactly once.
   * @throws {TypeError} If there is no policy of that name.
   * @throws {RankFailureError} If a process does not come, or dies.
   */
  static async create(options: EplbStateOptions): Promise<EplbState> {
    checkOptions(options);
    const { topology, cluster } = options;
    const ranks = options.ranks ??
      Array.from({ length: topology.ranks }, (_, i) => i);
    const world = await World.join(ranks, {
      size: topology.ranks,
      cluster,
      deadline: new Deadline(settingsOf(options).stepTimeout, options.signal),
    });
    return new EplbState(options, world);
  }

  /** Steps so far. */
  get steps(): number {
    return this.#schedule.steps;
  }

  /** Models, in the order in which they were added. */
  get models(): readonly ServedModel[] {
    return this.#models;
  }

  /** Why this state balances no more: a rank was lost. It serves on with the maps it has. */
  get failure(): Error | undefined {
    return this.#failure;
  }

  /** Whether weights are being moved, or about to be. */
  get busy(): boolean {
    return this.#cycle !== undefined;
  }

  /**
   * Adds a model; all processes add the same models in the same order. Allowed at any time between
   * steps; a cycle in progress goes on without it.
   *
   * @param options Name, weights, what they hold now, how tokens find a replica.
   * @returns The model.
   * @throws {TypeError} If there is a model of that name.
   * @throws {RangeError} If weights, placement and topology do not fit each other, or the
   * processes do not agree about the model.
   * @throws {EplbError} If the transport cannot work here.
   * @throws {RankFailureError} If a process does not come, or dies.
   */
  async addModel(options: ModelOptions): Promise<ServedModel> {
    this.#checkOpen("add model");
    if (this.#models.some(({ name }) => name === options.name)) {
      throw new TypeError(
        `Cannot add model "${options.name}": there is one of that name`,
      );
    }
    const { library, topology, cluster } = this.#options;
    const { stepTimeout } = this.#context;
    const model = await Model.connect({
      library,
      topology,
      cluster,
      ranks: this.#world.locals,
      windowSteps: this.#schedule.window,
      timeout: stepTimeout,
      background: this.#settings.mode === "async",
    }, options);
    try {
      await this.#checkAgreement(model);
    } catch (error) {
      await model.close();
      throw error;
    }
    this.#models.push(model);
    return model;
  }

  /**
   * The end of a forward pass: to be called when nothing uses the weights, as often on every process.
   *
   * It returns at once, unless layers change now, or the mode is `sync` and a rearrangement is due.
   * Let the event loop turn between steps: messages of other processes arrive there.
   *
   * A forward pass without real tokens, which a rank makes because others have some, ends a step like
   * any other one; dispatch its tokens with `record: false`.
   *
   * @returns Resolves when the next forward pass may begin.
   * @throws {TypeError} If the state is closed, or the step before has not ended.
   */
  step(): Promise<void> {
    if (this.#closed || this.#stepping) this.#checkOpen("end step");
    const due = this.#schedule.advance();
    if (
      this.#cycle === undefined && !due.boundary &&
      this.#requested === undefined
    ) return NOTHING_DUE;
    return this.#balance(due);
  }

  /**
   * Asks for a rearrangement at the end of the next step, with the load so far. All processes ask
   * between the same two steps.
   */
  request(): void {
    this.#checkOpen("request a rearrangement");
    this.#requested ??= "request";
  }

  /**
   * Says which ranks may hold experts from now on: those that leave are emptied by the next
   * cycle, which is due at once. A cycle in progress is abandoned, as it was planned for other ranks.
   * All processes say so between the same two steps; all ranks stay until they are empty.
   *
   * @param active The ranks, ascending.
   * @throws {RangeError} If one is not a rank, or they are not ascending.
   */
  setActive(active: readonly number[]): void {
    this.#checkOpen("change active ranks");
    active.forEach((rank, i) => {
      checkInteger(rank, {
        action: "change active ranks",
        name: "a rank",
        min: i === 0 ? 0 : active[i - 1]! + 1,
        max: this.#world.size - 1,
      });
    });
    this.#active = [...active];
    this.#requested = "active-ranks";
    this.#giveUp = "other ranks are active";
  }

  /**
   * Makes this process balance no more. The cycle in progress is abandoned by all, and so is each
   * later one that others begin. Nothing is lost, and the model serves on.
   *
   * @param reason Why, for the events of all processes.
   */
  stop(reason = "stopped"): void {
    this.#stopped ??= reason;
    this.#cycle?.refuse(this.#stopped);
  }

  /**
   * Completes the cycle in progress, and those of models that wait; begins no other. All processes
   * call it between the same two steps.
   *
   * @returns Resolves when nothing moves any more.
   */
  async drain(): Promise<void> {
    this.#checkOpen("drain");
    this.#stepping = true;
    try {
      while (
        this.#queue.length > 0 ||
        (this.#cycle !== undefined && !this.#cycle.ended)
      ) {
        await this.#advance();
        await new Promise((resolve) => setTimeout(resolve, DRAIN_PAUSE));
      }
      await this.#cycle?.done;
    } finally {
      this.#stepping = false;
    }
  }

  /**
   * Makes sure, before the model serves, that a rearrangement has all the memory that it can ever
   * need, on all ranks; moves nothing. All processes call it.
   *
   * @returns What is reserved for each model.
   * @throws {RearrangeError} If a rank cannot take part.
   */
  async profile(): Promise<readonly ReservedMemory[]> {
    this.#checkOpen("profile");
    for (const { engine } of this.#models) {
      await engine.rearrange(engine.placement, {
        timeout: this.#context.stepTimeout,
      });
    }
    return this.#models.map(({ name, stagingBytes }) => ({
      model: name,
      stagingBytes,
    }));
  }

  /**
   * Abandons what is in progress and frees everything but the weights; may be called twice.
   *
   * It waits up to five seconds for the other processes to do the same: weights that
   * other GPUs have mapped must not be freed before.
   */
  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    this.#options.signal?.removeEventListener("abort", this.#onAbort);
    this.#planner.close();
    await Promise.all(this.#models.map((model) => model.close()));
    if (this.#failure !== undefined || !this.#world.distributed) return;
    const deadline = new Deadline(CLOSE_TIMEOUT);
    await this.#world.exchange("closed", new Uint8Array(0), deadline)
      .catch(() => {}); // others serve on, or are gone
  }

  /** Same as {@linkcode EplbState.close}. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  #checkOpen(verb: string): void {
    if (this.#closed) throw new TypeError(`Cannot ${verb}: state is closed`);
    if (this.#stepping) {
      throw new TypeError(`Cannot ${verb}: a step is ending; wait for it`);
    }
  }

  async #closeSegments(): Promise<void> {
    for (const model of this.#models) await model.closeSegment(this.steps);
  }

  /** What is to be done at the end of a step, if anything. */
  async #balance(due: Due): Promise<void> {
    this.#stepping = true;
    try {
      if (due.boundary) await this.#closeSegments();
      if (this.#giveUp !== undefined) await this.#abandonAll(this.#giveUp);
      else if (this.#cycle !== undefined) await this.#advance();
      await this.#start(due.rearrange);
    } finally {
      this.#stepping = false;
    }
  }

  /** Begins cycles that are due, unless some are in progress. */
  async #start(due: boolean): Promise<void> {
    const trigger = this.#requested ?? (due ? "interval" : undefined);
    if (trigger === undefined || this.#models.length === 0) return;
    this.#requested = undefined;
    if (this.#failure !== undefined) return;
    if (this.#cycle !== undefined && !this.#cycle.ended) {
      return this.#emit({
        type: "cycle-skipped",
        step: this.steps,
        cycle: this.#cycle.number,
      });
    }
    if (!due) {
      this.#schedule.restart();
      await this.#closeSegments();
    }
    this.#trigger = trigger;
    this.#queue.push(...this.#models);
    await this.#next();
  }

  /** The cycle in progress goes on; once it has ended, that of the next model begins. */
  async #advance(): Promise<void> {
    const cycle = this.#cycle!;
    if (!cycle.ended) await cycle.advance(this.steps);
    if (cycle.ended && this.#queue.length > 0) await this.#next();
  }

  async #next(): Promise<void> {
    const model = this.#queue.shift()!;
    const cycle = new Cycle(this.#context, {
      model,
      number: ++this.#cycles,
      step: this.steps,
      // Other ranks say a moment later that they, too, have committed all layers.
      after: this.#cycle?.done ?? Promise.resolve(),
    });
    this.#cycle = cycle;
    void cycle.done.then(() => this.#release(cycle));
    if (this.#stopped !== undefined) cycle.refuse(this.#stopped);
    await cycle.begin(this.#trigger);
  }

  #release(cycle: Cycle): void {
    if (cycle.failure !== undefined) {
      this.#failure ??= cycle.failure;
      this.#queue = [];
    }
    if (this.#cycle === cycle && this.#queue.length === 0) {
      this.#cycle = undefined;
    }
  }

  async #abandonAll(reason: string): Promise<void> {
    this.#giveUp = undefined;
    this.#queue = [];
    await this.#cycle?.giveUp(reason);
  }

  #decisionInput(model: Model, load: Float64Array): DecisionInput {
    const { gate } = this.#settings;
    const { topology } = this.#options;
    return {
      load,
      windowSteps: Math.min(this.steps, this.#schedule.window),
      placement: model.engine.placement,
      shares: model.shares,
      topology,
      active: this.#active,
      policy: this.#policy,
      gate: gate === false ? undefined : gate,
      objective: model.options.objective,
      groups: model.options.groups,
      horizonSteps: this.#schedule.interval,
      expertBytes: model.expertBytes,
    };
  }

  /** All processes must mean the same model, or they would decide differently later. */
  async #checkAgreement(model: Model): Promise<void> {
    const { policy, gate, mode, drain, layersPerStep, stepTimeout } =
      this.#settings;
    await checkAgreement(model, {
      world: this.#world,
      deadline: new Deadline(stepTimeout),
      topology: this.#options.topology,
      settings: {
        mode,
        drain: String(drain),
        layersPerStep,
        policy: typeof policy === "string" ? policy : "own",
        gate: JSON.stringify(gate),
        interval: this.#schedule.interval,
        window: this.#schedule.window,
        steps: this.steps,
      },
    });
  }

  #emit(event: EplbEvent): void {
    try {
      this.#options.onEvent?.(event);
    } catch {
      // Who listens must not stop who serves.
    }
  }
}
