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
  /** Limit of one commit, in milliseconds. */
  readonly stepTimeout: number;
  /** Limit of the whole transfer, in milliseconds. */
  readonly timeout: number;
}

/** Weights on their way, seen from the ends of steps. All processes call the same at the same ends. */
export interface Transfer {
  /** Layers that this process could commit. */
  readonly ready: number;
  /** Layers that are as decided. */
  readonly committed: number;
  /** Why this process cannot go on; empty if it can. */
  readonly fault: string;
  /** The rank to blame for that, if one is known. */
  readonly failedRank: number | undefined;
  /** Seconds from the first byte to the last commit, once all layers are committed everywhere. */
  readonly finished: Promise<number>;
  /** Begins; tells whether anything can be committed at once. */
  open(): Promise<"moving" | "draining">;
  /** Commits layers that all processes have ready. */
  advance(ready: number): Promise<void>;
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
  readonly #before: Float64Array;

  constructor(model: Model, planned: Planned, options: TransferOptions) {
    this.model = model;
    this.planned = planned;
    this.options = options;
    this.#before = model.shares;
  }

  /** Serves with a placement on the way to the decided one. */
  protected serve(
    placement: Placement,
    range?: { readonly first: number; readonly end: number },
  ): void {
    const { decision } = this.planned;
    const shares = sharesNow({
      placement,
      before: this.#before,
      to: decision.placement,
      after: decision.shares,
    });
    this.model.serve(placement, shares, range);
  }
}

/**
 * Weights move in the background; layers change at the ends of steps.
 *
 * Slots that are to be written without staging are emptied first: one forward pass later no rank
 * sends tokens there any more, and the move begins.
 */
export class BackgroundTransfer extends BaseTransfer implements Transfer {
  #rearrangement: Rearrangement | undefined;
  #fault = "";

  get ready(): number {
    return this.#rearrangement?.agreedLayers ?? 0;
  }

  get committed(): number {
    return this.#rearrangement?.committedLayers ?? 0;
  }

  get fault(): string {
    return this.#fault;
  }

  get failedRank(): number | undefined {
    return this.#rearrangement?.failedRank;
  }

  get finished(): Promise<number> {
    return this.#rearrangement!.finished;
  }

  // deno-lint-ignore require-await -- the other kind has to wait
  async open(): Promise<"moving" | "draining"> {
    const { move } = this.planned;
    this.serve(move.drained);
    if (move.drained !== move.from) return "draining";
    this.#begin();
    return "moving";
  }

  #begin(): void {
    const { timeout } = this.options;
    this.#rearrangement = this.model.engine.begin(this.planned.move, {
      timeout,
    });
    this.#rearrangement.finished.catch((error) => {
      this.#fault = messageOf(error);
    });
  }

  async advance(ready: number): Promise<void> {
    if (this.#rearrangement === undefined) return this.#begin();
    const first = this.committed;
    const end = this.#rearrangement.layersWithin(
      ready,
      this.options.layersPerStep,
    );
    if (end <= first) return;
    await this.#rearrangement.commit(end, {
      timeout: this.options.stepTimeout,
    });
    this.serve(this.model.engine.placement, { first, end });
  }

  async abandon(
    reason: string,
    options: { readonly together: boolean },
  ): Promise<(() => Promise<void>) | undefined> {
    await this.#rearrangement?.abandon(reason, options);
    this.serve(this.model.engine.placement);
    if (this.#rearrangement === undefined) return undefined;
    return () => this.model.reconnect();
  }
}

/** Steps wait while weights move, all layers at once or some in each step. */
export class BlockingTransfer extends BaseTransfer implements Transfer {
  readonly #from = this.model.placement;
  #committed = 0;
  #seconds = 0;
  #broken = false;
  #failedRank: number | undefined;

  readonly fault = "";

  get ready(): number {
    return this.model.placement.layers;
  }

  get committed(): number {
    return this.#committed;
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

  async advance(): Promise<void> {
    const { decision } = this.planned;
    const { engine } = this.model;
    const end = this.#nextEnd();
    const to = Placement.mix(this.#from, decision.placement, end);
    try {
      const result = await engine.rearrange(to, {
        timeout: this.options.timeout,
      });
      this.#seconds += result.moveSeconds;
      this.#committed = end;
    } catch (error) {
      if (error instanceof RearrangeError) {
        this.#broken = true;
        this.#failedRank = error.failedRank;
        const layers = Math.min(error.committedLayers, end);
        this.#committed = Math.max(this.#committed, layers);
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
    const { layers, slots, physicalToLogical } = this.#from;
    const target = this.planned.decision.placement.physicalToLogical;
    let [end, changed] = [this.#committed, 0];
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
