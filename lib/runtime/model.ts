// SPDX-License-Identifier: Apache-2.0

/**
 * One model of a state: its weights, its maps, its load.
 *
 * @module
 */
import type { Cluster } from "../cluster/cluster.ts";
import { buildDispatchTables } from "../dispatch/tables.ts";
import { Engine } from "../engine/engine.ts";
import type { EngineOptions } from "../engine/options.ts";
import type { Counts } from "../load/counts.ts";
import { Dispatcher } from "../native/dispatcher.ts";
import type { NativeLibrary } from "../native/library.ts";
import { Placement } from "../placement.ts";
import type { Topology } from "../topology.ts";
import type { ModelOptions } from "./options.ts";
import { addCounts, LoadSegments } from "./segments.ts";
import { equalShares } from "./shares.ts";

/** A model that is being balanced: {@linkcode EplbState.addModel} makes one. */
export interface ServedModel {
  /** Its name. */
  readonly name: string;
  /** What the next forward pass finds in the slots; a slot that is being written is empty. */
  readonly placement: Placement;
  /** Share of its expert's tokens that each slot takes, [layers, slots]. */
  readonly shares: Float64Array;
  /** Device memory that balancing takes on each rank of this process, in bytes: staging. */
  readonly stagingBytes: number;
  /**
   * The maps of one rank of this process, which map its tokens and count their load.
   *
   * @param rank The rank.
   * @throws {RangeError} If the rank is not of this process.
   */
  dispatcher(rank: number): Dispatcher;
  /**
   * Adds load that was counted elsewhere; for engines that map tokens on their own.
   *
   * @param counts Tokens of this process' ranks per logical expert, [layers, experts].
   * @throws {RangeError} If there are not as many counts as experts, or one is negative or not finite.
   */
  record(counts: Counts): void;
}

/** Replicas of one expert that maps have room for, unless told otherwise. */
const MOST_REPLICAS = 256;

/** What models of one state share. */
export interface ModelContext {
  readonly library: NativeLibrary;
  readonly topology: Topology;
  readonly ranks: readonly number[];
  readonly cluster: Cluster | undefined;
  readonly windowSteps: number;
  readonly timeout: number;
  /** Whether weights move while forward passes run. */
  readonly background: boolean;
}

/** A model, as its state sees it. */
export class Model implements ServedModel {
  readonly name: string;
  readonly options: ModelOptions;
  readonly #context: ModelContext;
  readonly #dispatchers: readonly Dispatcher[];
  readonly #segments: LoadSegments;
  #engine: Engine;
  #recorded: Float64Array | undefined;
  /** Load that is on its way from the devices. */
  #reading: Promise<void> = Promise.resolve();
  #reconnecting: Promise<void> = Promise.resolve();
  #closed = false;
  #placement: Placement;
  #shares: Float64Array;
  /** Bytes of one expert in one layer. */
  readonly expertBytes: number;

  private constructor(
    context: ModelContext,
    options: ModelOptions,
    parts: { engine: Engine; dispatchers: readonly Dispatcher[] },
  ) {
    const { placement } = parts.engine;
    this.name = options.name;
    this.options = options;
    this.#context = context;
    this.#engine = parts.engine;
    this.#dispatchers = parts.dispatchers;
    this.#placement = placement;
    this.#shares = equalShares(placement);
    this.#segments = new LoadSegments({
      window: context.windowSteps,
      size: placement.layers * placement.experts,
    });
    this.expertBytes = options.weights[0]!.layout.expertBytes;
  }

  /** Joins the weights of all ranks, and makes their maps. */
  static async connect(
    context: ModelContext,
    options: ModelOptions,
  ): Promise<Model> {
    const engine = await Engine.connect(
      engineOptions(context, options, initialPlacement(context, options)),
    );
    const dispatchers: Dispatcher[] = [];
    try {
      for (const { device } of options.weights) {
        dispatchers.push(
          Dispatcher.create(context.library, {
            layers: engine.placement.layers,
            experts: engine.placement.experts,
            maxReplicas: mostReplicas(engine.placement, options),
            device,
          }),
        );
      }
      const model = new Model(context, options, { engine, dispatchers });
      model.serve(engine.placement, model.#shares);
      return model;
    } catch (error) {
      for (const one of dispatchers) one.close();
      await engine.close();
      throw error;
    }
  }

  get placement(): Placement {
    return this.#placement;
  }

  get shares(): Float64Array {
    return this.#shares;
  }

  get stagingBytes(): number {
    return this.#engine.stagingBytes;
  }

  /** What moves the weights. */
  get engine(): Engine {
    return this.#engine;
  }

  dispatcher(rank: number): Dispatcher {
    const found = this.#dispatchers[this.#context.ranks.indexOf(rank)];
    if (found !== undefined) return found;
    throw new RangeError(
      `Cannot dispatch tokens: rank ${rank} is not of this process, which has ${this.#context.ranks}`,
    );
  }

  record(counts: Counts): void {
    const { layers, experts } = this.#placement;
    if (counts.length !== layers * experts) {
      throw new RangeError(
        `Cannot record load: there must be ${layers} layers × ${experts} experts, there are ${counts.length} counts`,
      );
    }
    const bad = counts.findIndex((tokens) =>
      !(tokens >= 0 && tokens < 2 ** 53)
    );
    if (bad >= 0) {
      throw new RangeError(
        `Cannot record load: layer ${Math.floor(bad / experts)}, expert ${
          bad % experts
        } has ${counts[bad]} tokens`,
      );
    }
    const sum = this.#recorded ??= new Float64Array(counts.length);
    addCounts(sum, counts);
  }

  /** Lets tokens go by a placement and shares from now on, in some layers. */
  serve(
    placement: Placement,
    shares: Float64Array,
    range: { readonly first: number; readonly end: number } = {
      first: 0,
      end: placement.layers,
    },
  ): void {
    const { topology, ranks } = this.#context;
    const { replicas = "shares", nearest = false } = this.options.dispatch ??
      {};
    const build = (rank: number) =>
      buildDispatchTables(placement, {
        shares,
        rank,
        topology,
        replicas,
        nearest,
        maxReplicas: mostReplicas(placement, this.options),
        firstLayer: range.first,
        layers: range.end - range.first,
      });
    // What does not depend on where tokens are is the same for all ranks.
    const common = nearest || replicas === "static"
      ? undefined
      : build(ranks[0]!);
    for (const [i, dispatcher] of this.#dispatchers.entries()) {
      dispatcher.update(common ?? build(ranks[i]!), this.#stream(i));
    }
    this.#placement = placement;
    this.#shares = shares;
  }

  /** Refuses a placement with more replicas of an expert than the maps have room for. */
  checkReplicas({ maxReplicas }: Placement): void {
    const most = mostReplicas(this.#placement, this.options);
    if (maxReplicas <= most) return;
    throw new RangeError(
      `Cannot serve placement: an expert has ${maxReplicas} replicas, the maps have room for ${most}: set dispatch.maxReplicas`,
    );
  }

  /**
   * Puts the load since the last call aside, at the end of a step; waits for what is left of the last
   * call, which is nothing unless both come without a forward pass between them.
   */
  async closeSegment(step: number): Promise<void> {
    await this.#reading;
    const recorded = this.#recorded;
    this.#recorded = undefined;
    const counted = this.#dispatchers.map((dispatcher, i) => {
      dispatcher.snapshot(this.#stream(i));
      return dispatcher.read();
    });
    const counts = addUp(recorded, counted, this.#placement);
    this.#reading = counts.then(() => {}, () => {});
    this.#segments.close(step, counts);
  }

  /** What orders the maps of a rank with its launches. */
  #stream(index: number): { readonly stream?: bigint } {
    const stream = this.options.streams?.[index];
    return stream === undefined ? {} : { stream };
  }

  /** Load of this process' ranks in the window, [layers, experts]. */
  windowLoad(): Promise<Float64Array> {
    return this.#segments.sum();
  }

  /** A new engine on the same weights, after a move was abandoned. All processes do this together. */
  async reconnect(): Promise<void> {
    if (this.#closed) return;
    await (this.#reconnecting = this.#replaceEngine());
  }

  async #replaceEngine(): Promise<void> {
    await this.#engine.close();
    this.#engine = await Engine.connect(
      engineOptions(this.#context, this.options, this.#engine.placement),
    );
  }

  async close(): Promise<void> {
    this.#closed = true;
    await this.#reconnecting.catch(() => {}); // told to who asked for it
    await this.#engine.close();
    await this.#reading;
    for (const one of this.#dispatchers) one.close();
  }
}

async function addUp(
  recorded: Float64Array | undefined,
  counted: readonly Promise<Float64Array>[],
  { layers, experts }: Placement,
): Promise<Float64Array> {
  const sum = recorded ?? new Float64Array(layers * experts);
  for (const counts of await Promise.all(counted)) addCounts(sum, counts);
  return sum;
}

/** The engine of a model that now has this placement. */
export function engineOptions(
  context: ModelContext,
  options: ModelOptions,
  placement: Placement,
): EngineOptions {
  const { library, topology, ranks, cluster, timeout, background } = context;
  const { weights, transport, staging, copyEngineOnly = background } = options;
  return {
    library,
    topology,
    placement,
    weights,
    ranks,
    timeout,
    copyEngineOnly,
    ...(cluster && { cluster }),
    ...(transport && { transport }),
    ...(staging && { staging }),
  };
}

function initialPlacement(
  { topology }: ModelContext,
  { weights, experts, placement, name }: ModelOptions,
): Placement {
  if (weights.length === 0) {
    throw new RangeError(`Cannot add model "${name}": weights is empty`);
  }
  if (placement !== undefined && placement.experts !== experts) {
    throw new RangeError(
      `Cannot add model "${name}": it has ${experts} experts, the placement ${placement.experts}`,
    );
  }
  return placement ?? Placement.contiguous({
    layers: weights[0]!.layers,
    ranks: topology.ranks,
    slotsPerRank: weights[0]!.slots,
    experts,
  });
}

/** Replicas of one expert that the maps have room for. */
function mostReplicas(placement: Placement, options: ModelOptions): number {
  const { slots, experts } = placement;
  return options.dispatch?.maxReplicas ??
    Math.min(slots - experts + 1, MOST_REPLICAS);
}
