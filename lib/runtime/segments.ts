// SPDX-License-Identifier: Apache-2.0

/**
 * The load of the last steps, in pieces.
 *
 * @module
 */

/** Load of consecutive steps. */
interface Segment {
  /** The step with which it ends. */
  readonly end: number;
  /** Tokens per logical expert, [layers, experts]; on its way from the device at first. */
  readonly counts: Promise<Float64Array>;
}

/**
 * Adds up the load of the last steps, without one array per step.
 *
 * It is known beforehand where windows begin and end, see {@linkcode StepSchedule}. Loads are
 * counted on the device and put aside at these steps only, so that a window is a sum of whole
 * segments: exact, and nothing to do in all other steps. Only the window of a rearrangement that was
 * asked for out of turn may be longer, as it takes in the whole segment in which it begins.
 */
export class LoadSegments {
  readonly #window: number;
  readonly #size: number;
  #segments: Segment[] = [];

  /**
   * Creates it empty.
   *
   * @param options Steps of the window, and number of counts: layers × experts.
   */
  constructor(options: { readonly window: number; readonly size: number }) {
    this.#window = options.window;
    this.#size = options.size;
  }

  /**
   * Puts the load since the last call aside.
   *
   * @param step The step that has ended.
   * @param counts The load; may still be on its way.
   */
  close(step: number, counts: Promise<Float64Array>): void {
    counts.catch(() => {}); // who asks for the sum gets the error
    this.#segments.push({ end: step, counts });
    this.#segments = this.#segments.filter(({ end }) =>
      end > step - this.#window
    );
  }

  /**
   * Adds up the last steps.
   *
   * @returns Tokens per logical expert, [layers, experts].
   */
  async sum(): Promise<Float64Array> {
    const total = new Float64Array(this.#size);
    const all = await Promise.all(this.#segments.map(({ counts }) => counts));
    for (const counts of all) addCounts(total, counts);
    return total;
  }
}

/** Adds counts to a sum of as many. */
export function addCounts(
  sum: Float64Array,
  counts: ArrayLike<number>,
): void {
  for (let i = 0; i < sum.length; i++) sum[i]! += counts[i]!;
}
