// SPDX-License-Identifier: Apache-2.0
// One run of the native engine, from its start to what all processes know about its end.

import type { NativeEngine } from "../native/engine.ts";
import { layersOf, type Move } from "./move.ts";
import { abortable } from "./waiting.ts";
import { Deadline, type World } from "./world.ts";

/** Milliseconds that ranks wait for each other after a failure. */
const SETTLE_TIMEOUT = 5_000;

/** What a run needs, and what it is bounded by. */
export interface RunParts {
  readonly native: NativeEngine;
  readonly world: World;
  readonly move: Move;
  readonly deadline: Deadline;
  /** Whether batches wait for {@linkcode Run.commit}. */
  readonly held: boolean;
  /** The most bytes per second that each rank gathers; undefined: no bound. */
  readonly maxRate: number | undefined;
}

/** One move, on its way. */
export class Run {
  readonly #parts: RunParts;
  readonly #ended: Promise<void>;
  /** Batches committed when the native run ended; undefined before. */
  #committed: number | undefined;
  /** The rank that the native run blames. */
  #failedRank: number | undefined;
  /** Seconds that the slowest rank took; rejects if the run fails. */
  readonly finished: Promise<number>;

  constructor(parts: RunParts) {
    this.#parts = parts;
    const run = this.#execute();
    this.#ended = run.then(() => {}, () => {});
    this.finished = run.then((seconds) => this.#compare(seconds));
    // Who runs it in the background looks at it later, if ever.
    this.finished.catch(() => {});
  }

  /** The rank to blame, once the run has failed; undefined if none is known. */
  get failedRank(): number | undefined {
    return this.#failedRank;
  }

  /** Layers that every rank has staged, as far as this process knows. */
  get agreedLayers(): number {
    return this.#layers(({ agreed }) => agreed);
  }

  /** Layers in place on this process' ranks. */
  get committedLayers(): number {
    return this.#layers(({ committed }) => committed);
  }

  #layers(
    pick: (progress: { committed: number; agreed: number }) => number,
  ): number {
    const { native, move } = this.#parts;
    return layersOf(move, pick(native.progress()));
  }

  /** Puts the layers below `layers` in place, and returns when they are. */
  async commit(layers: number, deadline: Deadline): Promise<void> {
    const { native, world, move } = this.#parts;
    let batches = 0;
    while (
      batches < move.program.batchCount && layersOf(move, batches) < layers
    ) batches++;
    await abortable(
      native,
      { world, deadline },
      () => native.commit(batches, deadline.remaining),
    );
  }

  /** Ends the run early; it fails then. */
  abort(reason: string): void {
    this.#parts.native.abort(-1, reason);
  }

  /** Batches committed here, once the run has ended; undefined if it never began. */
  async committedBatches(): Promise<number | undefined> {
    await this.#ended;
    return this.#committed;
  }

  async #execute(): Promise<number> {
    const { native, world, move, deadline, held, maxRate } = this.#parts;
    const run = await abortable(
      native,
      { world, deadline },
      () =>
        native.run(move.program.words, {
          timeoutMs: deadline.remaining,
          held,
          ...(maxRate !== undefined && { bytesPerSecond: Math.floor(maxRate) }),
        }),
    );
    this.#committed = run.committedBatches;
    if (run.failedRank >= 0) this.#failedRank = run.failedRank;
    run.check();
    return run.seconds;
  }

  async #compare(seconds: number): Promise<number> {
    const { world, deadline } = this.#parts;
    return Math.max(...await world.gatherNumbers("moved", seconds, deadline));
  }
}

/**
 * Agrees on what is committed, after a run has failed.
 *
 * Ranks may have seen different last fences. Who has committed a batch proves that all others have
 * staged it: they follow.
 *
 * @param parts The engine of the run, and the other processes.
 * @param options Batches committed here, undefined if the run never began; and whether all
 * processes are alive and do the same, else those that survive do.
 * @returns Batches that are committed everywhere.
 */
export async function settle(
  { native, world }: { readonly native: NativeEngine; readonly world: World },
  options: {
    readonly committed: number | undefined;
    readonly together: boolean;
  },
): Promise<number> {
  const { committed, together } = options;
  const own = committed ?? 0;
  if (!world.distributed) return own;
  const deadline = new Deadline(SETTLE_TIMEOUT);
  try {
    const all = together
      ? await world.gatherNumbers("settle together", own, deadline)
      : await world.gatherSurvivors("settle", own, deadline);
    // Who never began has staged nothing, and no rank has passed a fence.
    if (committed === undefined) return 0;
    return await native.settle(Math.max(...all));
  } catch {
    // The store is lost with its host: nobody is left to agree with, and what
    // is committed here stays the truth for this process' ranks.
    return own;
  }
}
