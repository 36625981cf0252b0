// SPDX-License-Identifier: Apache-2.0

/**
 * In which steps something is due.
 *
 * @module
 */
import { checkInteger } from "../_check.ts";

/** Options of {@linkcode StepSchedule}. */
export interface ScheduleOptions {
  /** Steps from one rearrangement to the next. */
  readonly interval: number;
  /** Last steps whose load counts. */
  readonly window: number;
}

/** What is due at the end of a step. */
export interface Due {
  /** The load since the last boundary is to be put aside: a window begins or ends here. */
  readonly boundary: boolean;
  /** A rearrangement is due. */
  readonly rearrange: boolean;
}

const NOTHING: Due = Object.freeze({ boundary: false, rearrange: false });

/**
 * Counts steps.
 *
 * The counter starts at three quarters of the interval, as in vLLM: the first rearrangement comes
 * early, since nothing is known about the load at first. All ranks count alike, whatever they have
 * computed in a step, so that they agree on what is due without a message.
 */
export class StepSchedule {
  readonly interval: number;
  readonly window: number;
  #steps = 0;
  #progress: number;
  readonly #opens: number;

  /**
   * Creates the schedule.
   *
   * @param options Interval and window, in steps.
   * @throws {RangeError} If one is not an integer from 1.
   */
  constructor(options: ScheduleOptions) {
    const { interval, window } = options;
    const action = "schedule rearrangements";
    checkInteger(interval, { action, name: "stepInterval", min: 1 });
    checkInteger(window, { action, name: "windowSteps", min: 1 });
    this.interval = interval;
    this.window = window;
    this.#progress = interval - Math.ceil(interval / 4);
    // Progress at which some later window opens; 0 if windows open where intervals end.
    this.#opens = (interval - window % interval) % interval;
  }

  /** Steps so far. */
  get steps(): number {
    return this.#steps;
  }

  /** Counts a step, and tells what is due at its end. */
  advance(): Due {
    this.#steps++;
    this.#progress++;
    if (this.#progress < this.interval) {
      return this.#progress === this.#opens
        ? { boundary: true, rearrange: false }
        : NOTHING;
    }
    this.#progress = 0;
    return { boundary: true, rearrange: true };
  }

  /** Begins the interval anew, because a rearrangement was asked for. */
  restart(): void {
    this.#progress = 0;
  }
}
