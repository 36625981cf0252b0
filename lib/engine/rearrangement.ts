// SPDX-License-Identifier: Apache-2.0

/**
 * A rearrangement in the background.
 *
 * @module
 */
import type { WaitOptions } from "../cluster/wait.ts";
import { DEFAULT_TIMEOUT } from "../cluster/wait.ts";
import { movingLayers } from "../migration/plan.ts";
import type { NativeEngine } from "../native/engine.ts";
import type { Placement } from "../placement.ts";
import { layersOf, type Move, placementAt } from "./move.ts";
import { type Run, settle } from "./run.ts";
import { Deadline, type World } from "./world.ts";

/** What a rearrangement tells its engine. */
interface EngineHooks {
  /** What the weights hold now. */
  place(placement: Placement): void;
  /** It is over. */
  end(state: "ready" | "broken"): void;
}

/**
 * Weights on their way while the model serves: {@linkcode Engine.begin} makes one.
 *
 * Layers are staged in the background, as far as staging memory goes, and change in the moment that
 * {@linkcode commit} is called. All processes must commit the same layers between the same two
 * forward passes, as tokens go from rank to rank by one map. {@linkcode EplbState} does that.
 *
 * @example Layer by layer, between forward passes
 * ```ts
 * import { Engine, ExpertLayout, ExpertWeights, NativeLibrary, Placement, planMove, Topology } from "@eplb/eplb";
 * import { assert } from "@std/assert";
 *
 * const library = NativeLibrary.open();
 * const layout = new ExpertLayout([{ name: "w", dtype: "BF16", shape: [4, 4] }]);
 * const weights = await Promise.all(Array.from({ length: 4 }, () =>
 *   ExpertWeights.allocate(library, { layout, layers: 3, slots: 2 })
 * ));
 * const size = { layers: 3, ranks: 4, slotsPerRank: 2, experts: 8 };
 * const engine = await Engine.connect({
 *   library,
 *   topology: Topology.uniform({ ranks: 4, nodes: 1 }),
 *   placement: Placement.contiguous(size),
 *   weights,
 * });
 * const to = Placement.random({ ...size, seed: 1 });
 * const settings = engine.moveSettings({ maxLayersPerBatch: 1 });
 * const moving = engine.begin(planMove(engine.placement, to, settings));
 * while (moving.committedLayers < 3) {
 *   // …a forward pass, which may read all weights…
 *   await moving.commit(moving.committedLayers + 1);
 * }
 * await moving.finished;
 * assert(engine.placement.equals(to));
 *
 * await engine.close();
 * for (const one of weights) one.close();
 * ```
 */
export class Rearrangement {
  readonly #native: NativeEngine;
  readonly #world: World;
  readonly #run: Run;
  readonly #hooks: EngineHooks;
  /** Layers below each one in which something moves, [layers + 1]. */
  readonly #changes: Int32Array;
  #committed = 0;
  /** What was planned. */
  readonly move: Move;
  /**
   * Seconds from the first byte to the last commit, of the slowest rank. It rejects if the move
   * fails; then call {@linkcode abandon}.
   */
  readonly finished: Promise<number>;

  /**
   * Wraps a run that has begun.
   *
   * @param parts The run, and what it runs on.
   * @param hooks Called as the weights change.
   */
  constructor(
    parts: {
      readonly native: NativeEngine;
      readonly world: World;
      readonly move: Move;
      readonly run: Run;
    },
    hooks: EngineHooks,
  ) {
    this.#native = parts.native;
    this.#world = parts.world;
    this.#run = parts.run;
    this.#hooks = hooks;
    this.move = parts.move;
    const moving = movingLayers(parts.move.plan);
    this.#changes = new Int32Array(moving.length + 1);
    moving.forEach((flag, layer) =>
      this.#changes[layer + 1] = this.#changes[layer]! + flag
    );
    this.finished = parts.run.finished.then((seconds) => {
      hooks.end("ready");
      return seconds;
    });
    // Who abandons it does not look at how it finished.
    this.finished.catch(() => {});
  }

  /** Layers that can be committed now, as far as this process knows. */
  get agreedLayers(): number {
    return this.#run.agreedLayers;
  }

  /** Layers that are committed on this process' ranks. */
  get committedLayers(): number {
    return this.#committed;
  }

  /** The rank to blame once it has failed; undefined if none is known. */
  get failedRank(): number | undefined {
    return this.#run.failedRank;
  }

  /**
   * The layers that a commit brings which changes at most so many of them.
   *
   * @param ready Layers that every process can commit.
   * @param limit The most layers that may change.
   * @returns Layers committed then: those of one batch at least, if `ready` has them.
   */
  layersWithin(ready: number, limit: number): number {
    const { batchCount } = this.move.program;
    if (batchCount === 0) return ready;
    let layers = this.#committed;
    for (let batch = 1; batch <= batchCount; batch++) {
      const end = layersOf(this.move, batch);
      if (end <= this.#committed) continue;
      const changed = this.#changes[end]! - this.#changes[this.#committed]!;
      if (end > ready || (layers > this.#committed && changed > limit)) break;
      layers = end;
    }
    return layers;
  }

  /**
   * Puts layers in place; nobody may use the weights of layers that change until it returns.
   *
   * @param layers Layers below this one are committed; waits for those that are not staged yet.
   * @param options Limit of the wait, and a signal that ends it early.
   * @throws {EplbError} If the move has failed; then call {@linkcode abandon}.
   */
  async commit(layers: number, options: WaitOptions = {}): Promise<void> {
    if (layers <= this.#committed) return;
    await this.#run.commit(
      layers,
      new Deadline(options.timeout ?? DEFAULT_TIMEOUT, options.signal),
    );
    this.#committed = layers;
    this.#hooks.place(placementAt(this.move, layers));
  }

  /**
   * Ends the move where it is, and agrees on which layers are committed. Nobody may use the weights
   * until it returns. The engine can move no more.
   *
   * @param reason Why.
   * @param options `together`: all processes are alive and do the same between the same two
   * forward passes; else those that survive do.
   * @returns Layers that are committed everywhere.
   */
  async abandon(
    reason: string,
    { together }: { readonly together: boolean },
  ): Promise<number> {
    this.#hooks.end("broken");
    this.#run.abort(reason);
    const committed = await this.#run.committedBatches();
    const batches = await settle(
      { native: this.#native, world: this.#world },
      { committed, together },
    );
    this.#committed = layersOf(this.move, batches);
    this.#hooks.place(placementAt(this.move, this.#committed));
    return this.#committed;
  }
}
