// SPDX-License-Identifier: Apache-2.0

/**
 * Those who look on at the store's gathers without taking part.
 *
 * @module
 */

import {
  GatherTimeoutError,
  type RankFailure,
  RankFailureError,
} from "./failure.ts";
import { openWait, type WaitOptions } from "./wait.ts";

interface Observer extends PromiseWithResolvers<Uint8Array[]> {
  readonly name: string;
}

/** Observers of gathers that have not completed. */
export class Observers {
  readonly #waiting = new Set<Observer>();

  /**
   * Waits for the next gather of a name.
   *
   * @param gather Its name, and who tells which ranks have not posted.
   * @param options Timeout and signal.
   * @returns The payloads of all ranks, in rank order; need not be awaited.
   */
  add(
    gather: { readonly name: string; readonly missing: () => number[] },
    options: WaitOptions,
  ): Promise<Uint8Array[]> {
    const { name, missing } = gather;
    const wait = openWait<Uint8Array[]>(options, (timeout) => {
      wait.reject(new GatherTimeoutError(name, missing(), timeout));
    });
    const observer = { ...wait, name };
    this.#waiting.add(observer);
    const forget = (): void => {
      this.#waiting.delete(observer);
    };
    // Also marks the promise as handled: a failure while the caller still waits
    // for something else must not end the process.
    wait.promise.then(forget, forget);
    return wait.promise;
  }

  /**
   * Shows a gather to those who wait for its name.
   *
   * @param name Its name.
   * @param payloads The payloads of all ranks, in rank order.
   */
  show(name: string, payloads: Uint8Array[]): void {
    for (const observer of this.#waiting) {
      if (observer.name === name) observer.resolve(payloads);
    }
  }

  /**
   * Sends everyone away.
   *
   * @param failure Why nothing more will be gathered; the end of the store if
   * there is none.
   */
  dismiss(failure?: RankFailure): void {
    for (const { name, reject } of this.#waiting) {
      const action = `gather "${name}"`;
      reject(
        failure === undefined
          ? new Error(`Cannot ${action}: store is closed`)
          : new RankFailureError(action, failure),
      );
    }
  }
}
