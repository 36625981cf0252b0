// SPDX-License-Identifier: Apache-2.0

/**
 * What the processes tell each other at the end of a step.
 *
 * @module
 */
import { Deadline, type World } from "../engine/world.ts";

/** How far a process is with a cycle. */
export interface Vote {
  /** The part of the cycle that it has completed. */
  readonly stage: number;
  /** Layers that it could commit. */
  readonly ready: number;
  /** Digest of what it has decided; empty before. */
  readonly digest: string;
  /** Why it cannot go on; empty if it can. */
  readonly fault: string;
}

/**
 * Votes of all processes, one step late.
 *
 * A process casts its vote at the end of a step and reads all votes at the end of the next one. The
 * forward pass in between takes part on every rank, so the votes are there by then: no step waits
 * for a message, and yet all processes see the same votes at the end of the same step, and draw
 * the same conclusions.
 */
export class Ballot {
  readonly #world: World;
  #open: Promise<Vote[]> | undefined;

  /** @param world The processes that vote. */
  constructor(world: World) {
    this.#world = world;
  }

  /** Casts this process' vote; does not wait. */
  cast(vote: Vote, timeout: number): void {
    if (!this.#world.distributed) {
      this.#open = Promise.resolve([vote]);
      return;
    }
    const payload = new TextEncoder().encode(JSON.stringify(vote));
    this.#open = this.#world
      .exchange("vote", payload, new Deadline(timeout))
      .then((all) =>
        all.map((bytes) => JSON.parse(new TextDecoder().decode(bytes)))
      );
    this.#open.catch(() => {}); // who collects gets the error
  }

  /**
   * Reads the votes that were cast last.
   *
   * @returns One vote of each process.
   * @throws {RankFailureError} If a process is lost.
   * @throws {GatherTimeoutError} If a process has not voted in time.
   */
  async collect(): Promise<Vote[]> {
    const open = this.#open;
    this.#open = undefined;
    return await open ?? [];
  }
}
