// SPDX-License-Identifier: Apache-2.0

/**
 * Getting weights where a decision wants them, between forward passes.
 *
 * @module
 */
import { RearrangeError } from "../engine/errors.ts";
import { messageOf } from "../engine/waiting.ts";
import type { Rearrangement } from "../engine/rearrangement.ts";
import { Placement } from "../placement.ts";
import type { Model } from "./model.ts";
import type { Planned } from "./planner.ts";
import { sharesNow } from "./shares.ts";

/** Bounds of a transfer. */
export interface TransferOptions {
  /** The most layers that change between two forward passes. */
  readonly layersPerStep: number;
  /** The most bytes per second that each rank gathers; undefined: no bound. */
  readonly maxRate: number | undefined;
  /** Limit of one commit, in milliseconds. */
  readonly stepTimeout: number;
  /** Limit of the whole transfer, in milliseconds. */
  readonly timeout: number;
}

/** Layers `first … end - 1`. */
export interface LayerRange {
  readonly first: number;
  readonly end: number;
}

const NO_LAYERS: LayerRange = { first: 0, end: 0 };

/** Weights on their way, seen from the ends of steps. All processes call the same at the same ends. */
export interface Transfer {
  /** How far this process could go; grows, and means the same on all processes. */
  readonly ready: number;
  /** Layers, from the first, that are as decided. */
  readonly committed: number;
  /** Whether all layers are, everywhere. */
  readonly done: boolean;
  /** Why this process cannot go on; empty if it can. */
  readonly fault: string;
  /** The rank to blame for that, if one is known. */
  readonly failedRank: number | undefined;
  /** Seconds from the first byte to the last commit, once all layers are committed everywhere. */
  readonly finished: Promise<number>;
  /** Begins; tells whether anything can be committed at once. */
  open(): Promise<"moving" | "draining">;
  /** Goes on as far as all processes could; returns the layers that have changed. */
  advance(ready: number): Promise<LayerRange>;
  /**
   * Gives up. Maps and weights agree when it returns.
   *
   * @returns What makes the engine fit for the next move; undefined if it is.
   */
  abandon(
    reason: string,
    options: { readonly together: boolean },
  ): Promise<(() => Promise<void>) | undefined>;
}

/** What both kinds have in common: what the model serves with while weights are on their way. */
abstract class BaseTransfer {
  protected readonly model: Model;
  protected readonly planned: Planned;
  protected readonly options: TransferOptions;
  readonly #from: Placement;
  readonly #before: Float64Array;

  constructor(model: Model, planned: Planned, options: TransferOptions) {
    this.model = model;
    this.planned = planned;
    this.options = options;
    this.#from = planned.moves[0]!.from;
    this.#before = model.shares;
  }

  /** Layers, from the first, that are as decided. */
  get committed(): number {
    const { decision } = this.planned;
    return this.model.engine.placement.layersInCommon(decision.placement);
  }

  /** Serves with a placement on the way to the decided one. */
  protected serve(
    placement: Placement,
    range?: LayerRange,
  ): void {
    const { decision } = this.planned;
    const shares = sharesNow({
      placement,
      from: this.#from,
      before: this.#before,
      to: decision.placement,
      after: decision.shares,
      ...(range === undefined
        ? {}
        : { last: { shares: this.model.shares, ...range } }),
    });
    this.model.serve(placement, shares, range);
  }
}

/**
 * Weights move in the background; layers change at the ends of steps.
 *
 * Slots that are to be written without staging are emptied first: one forward pass later no rank
 * sends tokens there any more, and the move begins. A way of several moves takes one after the
 * other; the next one begins when the one before has ended on all processes.
 */
export class BackgroundTransfer extends BaseTransfer implements Transfer {
  /** Index of the move that is on. */
  #hop = 0;
  #rearrangement: Rearrangement | undefined;
  /** Whether it has ended here, of all its layers. */
  #ended = false;
  #seconds = 0;
  #fault = "";

  /** The moves before count with all their layers and their end, each. */
  get ready(): number {
    const { layers } = this.model.placement;
    const here = this.#ended
      ? layers + 1
      : this.#rearrangement?.agreedLayers ?? 0;
    return this.#hop * (layers + 1) + here;
  }

  get done(): boolean {
    return this.#hop === this.planned.moves.length - 1 && this.#hopCommitted;
  }

  /** Whether all layers of the move that is on are committed here. */
  get #hopCommitted(): boolean {
    const { layers } = this.model.placement;
    return this.#rearrangement?.committedLayers === layers;
  }

  get fault(): string {
    return this.#fault;
  }

  get failedRank(): number | undefined {
    return this.#rearrangement?.failedRank;
  }

  get finished(): Promise<number> {
    return this.#rearrangement!.finished
      .then((seconds) => this.#seconds + seconds);
  }

  // deno-lint-ignore require-await -- the other kind has to wait
  async open(): Promise<"moving" | "draining"> {
    const { from, drained } = this.planned.moves[this.#hop]!;
    this.serve(drained);
    if (drained !== from) return "draining";
    this.#begin();
    return "moving";
  }

  #begin(): void {
    const { timeout, maxRate } = this.options;
    const move = this.planned.moves[this.#hop]!;
    const rearrangement = this.model.engine.begin(move, { timeout, maxRate });
    this.#rearrangement = rearrangement;
    rearrangement.finished.then(
      () => this.#ended = true,
      (error) => this.#fault = messageOf(error),
    );
  }

  async advance(ready: number): Promise<LayerRange> {
    const { layers } = this.model.placement;
    const here = ready - this.#hop * (layers + 1);
    if (this.#rearrangement === undefined) this.#begin();
    else if (!this.#hopCommitted) return await this.#commit(here);
    else if (here > layers) await this.#goOn();
    return NO_LAYERS;
  }

  async #commit(ready: number): Promise<LayerRange> {
    const rearrangement = this.#rearrangement!;
    const first = rearrangement.committedLayers;
    const { layersPerStep, stepTimeout } = this.options;
    const end = rearrangement.layersWithin(
      Math.min(ready, this.model.placement.layers),
      layersPerStep,
    );
    if (end <= first) return NO_LAYERS;
    await rearrangement.commit(end, { timeout: stepTimeout });
    this.serve(this.model.engine.placement, { first, end });
    return { first, end };
  }

  /** The next move, once the last one has ended everywhere. */
  async #goOn(): Promise<void> {
    this.#seconds += await this.#rearrangement!.finished;
    this.#rearrangement = undefined;
    this.#ended = false;
    this.#hop++;
    await this.open();
  }

  async abandon(
    reason: string,
    options: { readonly together: boolean },
  ): Promise<(() => Promise<void>) | undefined> {
    // What has ended has nothing to give up, but others may not know that it has.
    await this.#rearrangement?.abandon(reason, options);
    this.serve(this.model.engine.placement);
    if (this.#rearrangement === undefined) return undefined;
    return () => this.model.reconnect();
  }
}

/** Steps wait while weights move, all layers at once or some in each step. */
export class BlockingTransfer extends BaseTransfer implements Transfer {
  readonly #start = this.model.placement;
  #moved = 0;
  #seconds = 0;
  #broken = false;
  #failedRank: number | undefined;

  readonly fault = "";
  readonly ready = 0;

  get done(): boolean {
    return this.#moved === this.#start.layers;
  }

  get failedRank(): number | undefined {
    return this.#failedRank;
  }

  get finished(): Promise<number> {
    return Promise.resolve(this.#seconds);
  }

  open(): Promise<"moving"> {
    return Promise.resolve("moving");
  }

  async advance(): Promise<LayerRange> {
    const { decision } = this.planned;
    const { engine } = this.model;
    const { timeout, maxRate } = this.options;
    const [first, end] = [this.#moved, this.#nextEnd()];
    const to = Placement.mix(this.#start, decision.placement, end);
    try {
      const result = await engine.rearrange(to, { timeout, maxRate });
      this.#seconds += result.moveSeconds;
      this.#moved = end;
      return { first, end };
    } catch (error) {
      if (error instanceof RearrangeError) {
        this.#broken = true;
        this.#failedRank = error.failedRank;
      }
      throw error;
    } finally {
      this.serve(engine.placement);
    }
  }

  // deno-lint-ignore require-await -- the other kind has to wait
  async abandon(): Promise<(() => Promise<void>) | undefined> {
    this.serve(this.model.engine.placement);
    return this.#broken ? () => this.model.reconnect() : undefined;
  }

  /** One past the last layer of the next step's part. */
  #nextEnd(): number {
    const { layers, slots, physicalToLogical } = this.#start;
    const target = this.planned.decision.placement.physicalToLogical;
    let [end, changed] = [this.#moved, 0];
    for (; end < layers; end++) {
      const [first, last] = [end * slots, (end + 1) * slots];
      const row = target.subarray(first, last);
      const changes = physicalToLogical.subarray(first, last)
        .some((expert, slot) => expert !== row[slot]);
      if (changes && ++changed > this.options.layersPerStep) break;
    }
    return end;
  }
}
