// SPDX-License-Identifier: Apache-2.0

/**
 * Waits that end: every timer made here is cleared when its wait is over.
 *
 * @module
 */

/** How long a wait lasts unless its caller says otherwise, in milliseconds. */
export const DEFAULT_TIMEOUT = 60_000;

/** `setTimeout` fires at once above this. */
const LONGEST_TIMER = 2 ** 31 - 1;

/**
 * Refuses durations that a timer cannot keep.
 *
 * @param name Name of the option.
 * @param milliseconds Its value.
 * @throws {RangeError} If the value is not between 1 and 2147483647.
 */
export function checkDuration(name: string, milliseconds: number): void {
  if (milliseconds >= 1 && milliseconds <= LONGEST_TIMER) return;
  throw new RangeError(
    `Cannot wait: "${name}" must be 1 to ${LONGEST_TIMER} milliseconds: ` +
      `current value is ${milliseconds}`,
  );
}

/** How long to wait for other ranks. */
export interface WaitOptions {
  /** Milliseconds until the wait is given up. @default {60_000} */
  readonly timeout?: number | undefined;
  /** Gives the wait up early, with the signal's reason. */
  readonly signal?: AbortSignal | undefined;
}

/**
 * Makes a promise that somebody else settles, with a deadline and a signal.
 *
 * @param options Timeout and signal.
 * @param onTimeout Called once when the time is up; it decides what happens.
 * @returns The promise, and the functions that settle it.
 * @throws {RangeError} If the timeout is not a duration.
 */
export function openWait<T>(
  options: WaitOptions,
  onTimeout: (timeout: number) => void,
): PromiseWithResolvers<T> {
  const { timeout = DEFAULT_TIMEOUT, signal } = options;
  checkDuration("timeout", timeout);
  signal?.throwIfAborted();
  const { promise, resolve, reject } = Promise.withResolvers<T>();
  const abort = (): void => reject(signal?.reason);
  const timer = setTimeout(() => onTimeout(timeout), timeout);
  signal?.addEventListener("abort", abort);
  const cleared = promise.finally(() => {
    clearTimeout(timer);
    signal?.removeEventListener("abort", abort);
  });
  return { promise: cleared, resolve, reject };
}

/**
 * Waits for a promise, but not longer than a duration.
 *
 * @param promise What is waited for.
 * @param milliseconds How long at most.
 * @returns Whether the promise settled in time.
 */
export function settledWithin(
  promise: Promise<unknown>,
  milliseconds: number,
): Promise<boolean> {
  return new Promise((resolve) => {
    const timer = setTimeout(() => resolve(false), milliseconds);
    const settled = (): void => {
      clearTimeout(timer);
      resolve(true);
    };
    promise.then(settled, settled);
  });
}

/**
 * Pauses until a duration has passed or a signal is aborted.
 *
 * @param milliseconds How long.
 * @param signal Ends the pause early.
 */
export function pause(
  milliseconds: number,
  signal: AbortSignal,
): Promise<void> {
  if (signal.aborted) return Promise.resolve();
  return new Promise((resolve) => {
    const end = (): void => {
      clearTimeout(timer);
      signal.removeEventListener("abort", end);
      resolve();
    };
    const timer = setTimeout(end, milliseconds);
    signal.addEventListener("abort", end);
  });
}
