// SPDX-License-Identifier: Apache-2.0

import { checkRate } from "../_check.ts";
import { DEFAULT_TIMEOUT } from "../cluster/wait.ts";
import { planMigration } from "../migration/plan.ts";
import { lowerBoundSeconds, totalTraffic } from "../migration/traffic.ts";
import { NativeEngine } from "../native/engine.ts";
import type { TransportName } from "../native/transport.ts";
import type { Placement } from "../placement.ts";
import { compareDigests, type Digests, takeDigests } from "./canary.ts";
import { PlanMismatchError, RearrangeError } from "./errors.ts";
import { checkFit, chooseTransport, optionsFor } from "./fit.ts";
import {
  layersOf,
  type Move,
  type MoveOptions,
  type MoveSettings,
  placementAt,
  planJourney,
} from "./move.ts";
import type {
  BeginOptions,
  EngineOptions,
  RearrangeOptions,
  RearrangeResult,
} from "./options.ts";
import { Rearrangement } from "./rearrangement.ts";
import { Run, type RunParts, settle } from "./run.ts";
import { type Staging, stagingFor } from "./staging.ts";
import { abortable, messageOf, rankOf } from "./waiting.ts";
import { Deadline, World } from "./world.ts";

/** Tensors of up to this many bytes share one message, unless told otherwise. */
const SMALL_BYTES = 1 << 20;
/** Sends and receives in one group, unless told otherwise. */
const MAX_OPS_PER_GROUP = 64;
/** Milliseconds between two calls of `onProgress`. */
const PROGRESS_INTERVAL = 200;
/** The words for a rate that is none. */
const MAX_RATE = { action: "rearrange", name: "maxRate" } as const;

/**
 * Moves expert weights between ranks, in place.
 *
 * An engine joins the weights of this process' ranks with those of all others.
 * {@linkcode Engine.rearrange} plans, moves and commits batches of layers; a layer's
 * map changes only when its weights are in place on every rank, so that weights and
 * {@linkcode Engine.placement} agree at any time, also after a failure.
 *
 * @example Eight ranks in one process, on host memory
 * ```ts
 * import {
 *   Engine,
 *   ExpertLayout,
 *   ExpertWeights,
 *   NativeLibrary,
 *   Placement,
 *   Topology,
 * } from "@eplb/eplb";
 * import { assert } from "@std/assert";
 *
 * const library = NativeLibrary.open();
 * const topology = Topology.uniform({ ranks: 8, nodes: 2 });
 * const size = { layers: 2, ranks: 8, slotsPerRank: 3, experts: 16 };
 * const placement = Placement.contiguous(size);
 * const layout = new ExpertLayout([{ name: "w", dtype: "BF16", shape: [4, 4] }]);
 * const weights = await Promise.all(Array.from({ length: 8 }, () =>
 *   ExpertWeights.allocate(library, { layout, layers: 2, slots: 3 })
 * ));
 * const engine = await Engine.connect({
 *   library,
 *   topology,
 *   placement,
 *   weights,
 * });
 *
 * const next = Placement.random({ ...size, seed: 1 });
 * const result = await engine.rearrange(next, { verify: true });
 * assert(result.verified);
 * assert(engine.placement.equals(next));
 *
 * await engine.close();
 * for (const one of weights) one.close();
 * ```
 */
export class Engine implements AsyncDisposable {
  readonly #options: EngineOptions;
  readonly #native: NativeEngine;
  readonly #world: World;
  readonly #staging: Staging;
  #placement: Placement;
  #state: "ready" | "busy" | "broken" = "ready";
  /** How bytes move. */
  readonly transport: TransportName;

  private constructor(
    options: EngineOptions,
    parts: {
      native: NativeEngine;
      world: World;
      staging: Staging;
      transport: TransportName;
    },
  ) {
    this.#options = options;
    this.#native = parts.native;
    this.#world = parts.world;
    this.#staging = parts.staging;
    this.#placement = options.placement;
    this.transport = parts.transport;
  }

  /**
   * Joins this process' ranks with all others of the job.
   *
   * @param options Weights, topology, current placement, transport.
   * @returns The engine.
   * @throws {RangeError} If weights, placement and topology do not fit each other.
   * @throws {EplbError} If the transport cannot work here, or ranks differ in their sizes.
   * @throws {RankFailureError} If a rank does not come, or dies.
   */
  static async connect(options: EngineOptions): Promise<Engine> {
    const { topology, weights } = options;
    const ranks = options.ranks ?? weights.map((_, rank) => rank);
    checkFit(options, ranks);
    const transport = chooseTransport(options);
    const staging = stagingFor(weights[0]!, options.staging);
    const deadline = new Deadline(
      options.timeout ?? DEFAULT_TIMEOUT,
      options.signal,
    );
    const world = await World.join(ranks, {
      size: topology.ranks,
      cluster: options.cluster,
      deadline,
    });
    const native = new NativeEngine(options.library, {
      world: topology.ranks,
      ranks,
      nodes: ranks.map((rank) => topology.nodeOf[rank]!),
      weights,
      transport,
      stagingCells: staging.cells,
      stagingSets: staging.sets,
      maxCtas: options.maxCtas ?? 0,
      smallBytes: options.smallBytes ?? SMALL_BYTES,
      copyEngineOnly: options.copyEngineOnly ?? false,
    });
    try {
      const local = ranks.map((_, index) => native.exportBlob(index));
      const blobs = await world.gather("bootstrap blobs", local, deadline);
      await abortable(
        native,
        { world, deadline },
        () => native.connect(blobs, deadline.remaining),
      );
      await world.gather(
        "connected",
        ranks.map(() => new Uint8Array(0)),
        deadline,
      );
      native.seal();
    } catch (error) {
      world.fail(`cannot connect: ${messageOf(error)}`);
      await native.close();
      throw error;
    }
    return new Engine(options, { native, world, staging, transport });
  }

  /** What the weights hold now; they agree for every layer, also after a failure. */
  get placement(): Placement {
    return this.#placement;
  }

  /** Staging memory of each local rank, in bytes. */
  get stagingBytes(): number {
    return this.#native.describe().stagingBytes;
  }

  /**
   * Moves the weights so that every slot holds what `to` says, and commits it.
   *
   * All processes of a job call this with the same arguments; a digest of the plan
   * is compared before the first byte moves. Nobody may use the weights meanwhile.
   *
   * @param to The new placement.
   * @param options Source choice, verification, rate, timeout, abort signal.
   * @returns What was moved, and how fast.
   * @throws {RangeError} If `to` does not fit the weights, or staging is too small for a layer, or
   * `maxRate` is no rate.
   * @throws {PlanMismatchError} If processes were given different plans; nothing has moved.
   * @throws {RearrangeError} If the move failed; says which layers are committed.
   */
  async rearrange(
    to: Placement,
    options: RearrangeOptions = {},
  ): Promise<RearrangeResult> {
    this.#enter();
    try {
      const start = performance.now();
      const moves = this.#plan(to, options);
      const planSeconds = (performance.now() - start) / 1e3;
      return await this.#carryOut(moves, { ...options, planSeconds });
    } finally {
      if (this.#state === "busy") this.#state = "ready";
    }
  }

  /**
   * All that {@linkcode planMove} needs to plan a rearrangement from {@linkcode Engine.placement},
   * also in another thread; nothing moves yet. What the transport cannot do is left out.
   *
   * @param options Source choice, and how layers are put together.
   * @returns The settings, which are plain data.
   */
  moveSettings(options: MoveOptions = {}): MoveSettings {
    const { topology, weights, smallBytes, maxOpsPerGroup } = this.#options;
    return {
      topology,
      locals: this.#world.locals,
      tensorBytes: weights[0]!.tensorBytes,
      smallBytes: smallBytes ?? SMALL_BYTES,
      maxOpsPerGroup: maxOpsPerGroup ?? MAX_OPS_PER_GROUP,
      stagingCells: this.#staging.cells,
      ...optionsFor(this.transport, options),
    };
  }

  /**
   * Begins a rearrangement in the background, while others read the weights.
   *
   * Layers change when {@linkcode Rearrangement.commit} says so, and only then; but slots that
   * the move's `drained` placement has emptied are written at once.
   *
   * @param move What {@linkcode planMove} has planned, with these settings, from today's placement;
   * its digest must be the same on all processes.
   * @param options Limits of the whole move.
   * @returns The rearrangement in progress.
   * @throws {RangeError} If `maxRate` is no rate.
   */
  begin(move: Move, options: BeginOptions = {}): Rearrangement {
    const { maxRate } = options;
    checkRate(maxRate, MAX_RATE);
    this.#enter();
    if (!move.from.equals(this.#placement)) {
      this.#state = "ready";
      throw new TypeError(
        "Cannot rearrange: the move was planned from another placement",
      );
    }
    this.#placement = move.drained;
    const run = this.#start(move, {
      deadline: new Deadline(
        options.timeout ?? DEFAULT_TIMEOUT,
        options.signal,
      ),
      held: true,
      maxRate,
    });
    return new Rearrangement({ ...this.#parts, move, run }, {
      place: (placement) => this.#placement = placement,
      end: (state) => this.#state = state,
    });
  }

  /**
   * Takes over a placement for which no byte has to move: some slots have become empty.
   *
   * @param move A move whose program is empty, from today's placement.
   * @throws {RangeError} If something has to move.
   */
  adopt(move: Move): void {
    if (move.program.batchCount > 0) {
      throw new RangeError("Cannot adopt placement: weights have to move");
    }
    this.#placement = move.to;
  }

  /** Ends a rearrangement in progress and frees the engine; the weights stay. */
  async close(): Promise<void> {
    await this.#native.close();
  }

  /** Same as {@linkcode Engine.close}. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  #enter(): void {
    if (this.#native.closed) {
      throw new TypeError("Cannot rearrange: engine is closed");
    }
    if (this.#state === "busy") {
      throw new TypeError("Cannot rearrange: a rearrangement is in progress");
    }
    if (this.#state === "broken") {
      throw new TypeError(
        "Cannot rearrange: an earlier rearrangement failed; close this engine " +
          "and connect a new one with the same weights and its placement",
      );
    }
    this.#state = "busy";
  }

  #plan(to: Placement, options: RearrangeOptions): readonly Move[] {
    try {
      const { sources, direct, relay, maxRate } = options;
      checkRate(maxRate, MAX_RATE);
      const settings = this.moveSettings({ sources, direct });
      return planJourney(this.#placement, to, { ...settings, relay });
    } catch (error) {
      this.#world.fail(messageOf(error));
      throw error;
    }
  }

  get #parts(): { readonly native: NativeEngine; readonly world: World } {
    return { native: this.#native, world: this.#world };
  }

  #start(
    move: Move,
    bounds: Pick<RunParts, "deadline" | "held" | "maxRate">,
  ): Run {
    return new Run({ ...this.#parts, move, ...bounds });
  }

  async #carryOut(
    moves: readonly Move[],
    options: RearrangeOptions & { readonly planSeconds: number },
  ): Promise<RearrangeResult> {
    const deadline = new Deadline(
      options.timeout ?? DEFAULT_TIMEOUT,
      options.signal,
    );
    let [hop, moveSeconds]: [Move, number] = [moves[0]!, 0];
    let run: Run | undefined;
    try {
      await this.#agree(moves, deadline);
      const before = await this.#digests("before", options, deadline);
      for (hop of moves) {
        this.#placement = hop.drained;
        const { maxRate } = options;
        run = this.#start(hop, { deadline, held: false, maxRate });
        moveSeconds += await watched(run, {
          hop: moves.indexOf(hop),
          hops: moves.length,
          layers: hop.to.layers,
          onProgress: options.onProgress,
        });
        this.#placement = hop.to;
      }
      const after = await this.#digests("after", options, deadline);
      return this.#report(moves, {
        planSeconds: options.planSeconds,
        moveSeconds,
        digests: before && after && { before, after },
      });
    } catch (error) {
      if (error instanceof PlanMismatchError) throw error;
      throw await this.#recover(hop, {
        cause: error,
        run,
        to: moves.at(-1)!.to,
      });
    }
  }

  /** Refuses to start unless every process has the same plan. */
  async #agree(moves: readonly Move[], deadline: Deadline): Promise<void> {
    if (!this.#world.distributed) return;
    const digest = moves.map((move) => move.digest).join(" ");
    const bytes = new TextEncoder().encode(digest);
    const local = this.#world.locals.map(() => bytes);
    const digests = (await this.#world.gather("plan digest", local, deadline))
      .map((bytes) => new TextDecoder().decode(bytes));
    if (digests.some((one) => one !== digests[0])) {
      throw new PlanMismatchError(digests);
    }
  }

  async #digests(
    when: string,
    options: RearrangeOptions,
    deadline: Deadline,
  ): Promise<Digests | undefined> {
    if (!options.verify) return undefined;
    return await takeDigests(`digests ${when}`, this.#options.weights, {
      world: this.#world,
      deadline,
    });
  }

  /** Agrees with the survivors on what is committed, and makes the error that says so. */
  async #recover(
    hop: Move,
    failure: {
      readonly cause: unknown;
      readonly run: Run | undefined;
      readonly to: Placement;
    },
  ): Promise<RearrangeError> {
    const { cause, run, to } = failure;
    this.#state = "broken";
    this.#world.fail(messageOf(cause));
    const committed = await run?.committedBatches();
    const batches = await settle(this.#parts, { committed, together: false });
    if (run !== undefined) {
      this.#placement = placementAt(hop, layersOf(hop, batches));
    }
    const layers = this.#placement.layersInCommon(to);
    return new RearrangeError(
      `Cannot complete the rearrangement: ${messageOf(cause)}; ` +
        `${layers} of ${to.layers} layers are committed`,
      {
        failedRank: run?.failedRank ?? rankOf(cause, this.#world),
        committedLayers: layers,
        placement: this.#placement,
      },
      { cause },
    );
  }

  #report(
    moves: readonly Move[],
    run: {
      readonly planSeconds: number;
      readonly moveSeconds: number;
      readonly digests: { before: Digests; after: Digests } | undefined;
    },
  ): RearrangeResult {
    const { topology, weights } = this.#options;
    const { layout } = weights[0]!;
    const plans = moves.map(({ plan }) => plan);
    const [from, to] = [moves[0]!.from, moves.at(-1)!.to];
    const bytes = totalTraffic(plans, { expertBytes: layout.expertBytes });
    const busiest = Math.max(...bytes.bytesReceived);
    const mismatches = run.digests
      ? compareDigests(run.digests.before, run.digests.after, {
        from,
        to,
        tensors: layout.moved.map(({ name }) => name),
      })
      : [];
    return {
      plans,
      moves: (plans.length === 1 ? plans[0]! : planMigration(from, to, {
        topology,
      })).counts,
      traffic: bytes,
      planSeconds: run.planSeconds,
      moveSeconds: run.moveSeconds,
      lowerBoundSeconds: lowerBoundSeconds(bytes, topology),
      gigabytesPerSecond: busiest === 0 ? 0 : busiest / run.moveSeconds / 1e9,
      verified: run.digests ? mismatches.length === 0 : undefined,
      mismatches,
    };
  }
}

/** Waits for a run, and says a few times a second how far it is. */
async function watched(
  run: Run,
  options: {
    readonly hop: number;
    readonly hops: number;
    readonly layers: number;
    readonly onProgress: RearrangeOptions["onProgress"];
  },
): Promise<number> {
  const { hop, hops, layers, onProgress } = options;
  const report = (committed: number): void =>
    onProgress?.(Math.floor((hop * layers + committed) / hops), layers);
  const timer = onProgress &&
    setInterval(() => report(run.committedLayers), PROGRESS_INTERVAL);
  try {
    const seconds = await run.finished;
    report(layers);
    return seconds;
  } finally {
    clearInterval(timer);
  }
}
