// SPDX-License-Identifier: Apache-2.0

import type { RankFailure } from "./failure.ts";
import type { WaitOptions } from "./wait.ts";

/**
 * What an engine needs from a control plane: small collectives that end with an
 * error, never with a hang, when a process is lost.
 *
 * {@linkcode StoreClient} is one over TCP; a serving stack that has its own control
 * plane can implement these four methods instead.
 */
export interface Cluster {
  /**
   * Gives every process the payloads of all, in rank order.
   *
   * @param name What is gathered; each process' k-th gather of a name belongs together.
   * @param payload This process' part.
   * @param options Bounds of the wait.
   * @returns One payload per process.
   */
  gather(
    name: string,
    payload: Uint8Array,
    options?: WaitOptions,
  ): Promise<Uint8Array[]>;
  /**
   * The same among the processes that are still alive, after a failure.
   *
   * @param name What is gathered.
   * @param payload This process' part.
   * @param options Bounds of the wait.
   * @returns The payloads by rank.
   */
  gatherSurvivors(
    name: string,
    payload: Uint8Array,
    options?: WaitOptions,
  ): Promise<Map<number, Uint8Array>>;
  /**
   * Tells all others that this process gives up; it stays connected.
   *
   * @param reason Why.
   */
  fail(reason: string): void;
  /**
   * Calls back once when the first process is lost, at once if one is already.
   *
   * @param callback What to call.
   * @returns Ends the subscription.
   */
  onFailure(callback: (failure: RankFailure) => void): () => void;
}
