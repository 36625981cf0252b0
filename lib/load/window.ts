// SPDX-License-Identifier: Apache-2.0

/**
 * The load of the last steps.
 *
 * @module
 */
import { checkInteger, show } from "../_check.ts";
import { shapeOf } from "../_physical_map.ts";
import type { Placement } from "../placement.ts";
import { type Counts, logicalCounts } from "./counts.ts";

/** Counts above this are no longer exact. */
const MOST_TOKENS = Number.MAX_SAFE_INTEGER;

/** Options of {@linkcode LoadWindow}. */
export interface LoadWindowOptions {
  /** Number of layers. */
  readonly layers: number;
  /** Number of logical experts. */
  readonly experts: number;
  /**
   * Number of last steps that count; older ones are forgotten. All of them are held in memory,
   * 4 bytes per layer and expert each.
   *
   * @default {Infinity: all steps, of which only the sum is held}
   */
  readonly steps?: number;
  /**
   * What a step's tokens are multiplied by with each later step, above 0 and at most 1.
   *
   * @default {1}
   */
  readonly decay?: number;
}

/**
 * Adds up the tokens per logical expert over the last steps, newer steps weighing more if so
 * wanted.
 *
 * Every rank has its own window and records what it counted itself. To plan, ranks exchange
 * {@linkcode toReduce}, and each {@linkcode merge}s what the others sent: steps are added up
 * first and ranks second, so the ranks exchange one sum instead of one array per step. What ranks
 * exchange are whole numbers, which have the same sum in any order: all ranks plan from equal
 * bits.
 *
 * Sums are float64, and refused where they would stop being exact.
 *
 * @example Usage
 * ```ts
 * import { LoadWindow, Placement } from "@eplb/eplb";
 * import { assertEquals } from "@std/assert";
 *
 * const window = new LoadWindow({ layers: 1, experts: 2, steps: 2 });
 * window.record(new Int32Array([100, 100]));
 * window.record(new Int32Array([3, 4]));
 * // Counted per slot, under the second map.
 * window.addMap(1, Placement.from([[0, 1, 1]], { ranks: 1 }));
 * window.recordPhysical(new Int32Array([10, 1, 1]), 1);
 *
 * assertEquals([...window.load()], [13, 6]);
 * ```
 */
export class LoadWindow {
  /** Number of layers. */
  readonly layers: number;
  /** Number of logical experts. */
  readonly experts: number;
  /** Number of last steps that count. */
  readonly steps: number;
  /** What a step's tokens are multiplied by with each later step. */
  readonly decay: number;
  /** The last steps, [layers, experts] each, if not all count; the oldest is at `#next`. */
  readonly #ring: (Uint32Array | Float64Array)[] = [];
  #next = 0;
  /** Decayed sum of all steps if all count, [layers, experts]. */
  #sum: Float64Array;
  #recorded = 0;
  readonly #maps = new Map<number, Placement>();

  /**
   * Creates an empty window.
   *
   * @param options Sizes, and which steps count how much.
   * @throws {RangeError} If a size is below 1, or `decay` is not above 0 and at most 1.
   */
  constructor(options: LoadWindowOptions) {
    const { layers, experts, steps = Infinity, decay = 1 } = options;
    const action = "create load window";
    checkInteger(layers, { action, name: "layers", min: 1 });
    checkInteger(experts, { action, name: "experts", min: 1 });
    if (steps !== Infinity) {
      checkInteger(steps, { action, name: "steps", min: 1 });
    }
    if (!(decay > 0 && decay <= 1)) {
      throw new RangeError(
        `Cannot ${action}: decay must be above 0 and at most 1, got ${
          show(decay)
        }`,
      );
    }
    this.layers = layers;
    this.experts = experts;
    this.steps = steps;
    this.decay = decay;
    this.#sum = new Float64Array(layers * experts);
  }

  /** Number of steps recorded that count. */
  get recorded(): number {
    return Math.min(this.#recorded, this.steps);
  }

  /**
   * Records the tokens of one step. A step without tokens counts as well.
   *
   * @param counts Tokens per logical expert, [layers, experts], row major.
   * @throws {RangeError} If there are not as many counts as experts, one is not a whole number
   * from 0 to 2⁵³ − 1, or a sum would be larger; nothing is recorded then.
   */
  record(counts: Counts): void {
    this.#check(counts, "record counts");
    if (this.steps === Infinity) {
      const sum = this.#sum.slice();
      this.#addLater(sum, counts);
      this.#checkExact(sum, "record counts");
      this.#sum = sum;
    } else {
      this.#ring[this.#next] = compact(counts);
      this.#next = (this.#next + 1) % this.steps;
    }
    this.#recorded++;
  }

  /**
   * Makes a map known that tokens may be counted under.
   *
   * @param epoch Number of the map: a new one for each placement that is committed.
   * @param placement What the slots hold.
   * @throws {RangeError} If the epoch is not an integer from 0, is that of another placement, or
   * the placement has other layers or experts than the window.
   */
  addMap(epoch: number, placement: Placement): void {
    const action = "add map";
    checkInteger(epoch, {
      action,
      name: "the epoch",
      min: 0,
      max: MOST_TOKENS,
    });
    if (
      placement.layers !== this.layers || placement.experts !== this.experts
    ) {
      throw new RangeError(
        `Cannot ${action}: the placement has ${
          shapeOf(placement)
        }, the window ${this.layers} layers of ${this.experts} experts`,
      );
    }
    if (this.#maps.get(epoch)?.equals(placement) === false) {
      throw new RangeError(
        `Cannot ${action}: epoch ${epoch} is that of another placement`,
      );
    }
    this.#maps.set(epoch, placement);
  }

  /**
   * Forgets a map that no more counts will come for.
   *
   * @param epoch Number of the map.
   * @returns True if it was known.
   */
  removeMap(epoch: number): boolean {
    return this.#maps.delete(epoch);
  }

  /**
   * Records the tokens of one step that were counted per slot.
   *
   * @param counts Tokens per slot, [layers, slots], row major.
   * @param epoch Number of the map they were counted under.
   * @throws {RangeError} If the epoch is not known, there are not as many counts as slots, one is
   * not a whole number from 0 to 2⁵³ − 1, a sum would be larger, or an empty slot has tokens;
   * nothing is recorded then.
   */
  recordPhysical(counts: Counts, epoch: number): void {
    const placement = this.#maps.get(epoch);
    if (placement === undefined) {
      const known = [...this.#maps.keys()].join(", ") || "none";
      throw new RangeError(
        `Cannot record counts: the map of epoch ${epoch} is not known, known are ${known}`,
      );
    }
    checkWhole(counts, {
      action: "record counts",
      columns: placement.slots,
      column: "slot",
    });
    this.record(logicalCounts(counts, placement));
  }

  /**
   * Adds up what was recorded here.
   *
   * @returns Tokens per logical expert, [layers, experts], row major: each step's counts times
   * `decay` to the power of the number of later steps.
   * @throws {RangeError} If a sum is above 2⁵³ − 1.
   */
  load(): Float64Array {
    const { length } = this.#ring;
    const sum = this.#sum.slice();
    const oldest = this.#recorded > length ? this.#next : 0;
    for (let i = 0; i < length; i++) {
      this.#addLater(sum, this.#ring[(oldest + i) % length]!);
    }
    this.#checkExact(sum, "add up load");
    return sum;
  }

  /**
   * Adds up what was recorded here, as other ranks want it.
   *
   * @returns {@linkcode load}, rounded to whole tokens, [layers, experts].
   * @throws {RangeError} If a sum is above 2⁵³ − 1.
   */
  toReduce(): Float64Array {
    return this.load().map(Math.round);
  }

  /**
   * Adds what other ranks recorded to what was recorded here. The window stays as it is.
   *
   * @param others {@linkcode toReduce} of each other rank, in any order.
   * @returns Tokens per logical expert over all ranks, [layers, experts]: the same on each rank.
   * @throws {RangeError} If the sums of a rank are not of this window's size, not whole numbers
   * from 0, or the total of an expert is above 2⁵³ − 1.
   */
  merge(others: Iterable<Float64Array>): Float64Array {
    const total = this.toReduce();
    for (const other of others) {
      this.#check(other, "merge loads");
      for (let i = 0; i < total.length; i++) total[i]! += other[i]!;
      this.#checkExact(total, "merge loads");
    }
    return total;
  }

  /** Forgets all steps; the maps stay known. */
  clear(): void {
    this.#ring.length = 0;
    this.#next = 0;
    this.#sum.fill(0);
    this.#recorded = 0;
  }

  #check(counts: Counts, action: string): void {
    const { layers, experts } = this;
    if (counts.length !== layers * experts) {
      throw new RangeError(
        `Cannot ${action}: there must be ${layers} layers × ${experts} experts, there are ${counts.length} counts`,
      );
    }
    checkWhole(counts, { action, columns: experts, column: "expert" });
  }

  /** Adds the counts of a later step to a sum. */
  #addLater(sum: Float64Array, counts: Counts): void {
    for (let i = 0; i < sum.length; i++) {
      sum[i] = sum[i]! * this.decay + counts[i]!;
    }
  }

  #checkExact(sum: Float64Array, action: string): void {
    for (let i = 0; i < sum.length; i++) {
      if (sum[i]! <= MOST_TOKENS) continue;
      throw new RangeError(
        `Cannot ${action}: layer ${Math.floor(i / this.experts)}, expert ${
          i % this.experts
        } has ${sum[i]} tokens, more than ${MOST_TOKENS} are not exact`,
      );
    }
  }
}

/** Refuses counts that are no numbers of tokens. */
function checkWhole(
  counts: Counts,
  options: {
    readonly action: string;
    readonly columns: number;
    readonly column: string;
  },
): void {
  const { action, columns, column } = options;
  for (let i = 0; i < counts.length; i++) {
    if (Number.isSafeInteger(counts[i]!) && counts[i]! >= 0) continue;
    throw new RangeError(
      `Cannot ${action}: layer ${Math.floor(i / columns)}, ${column} ${
        i % columns
      } must have a whole number of tokens from 0 to ${MOST_TOKENS}, it has ${
        counts[i]
      }`,
    );
  }
}

/** Copies counts into half the memory, where they fit. */
function compact(counts: Counts): Uint32Array | Float64Array {
  const small = Uint32Array.from(counts);
  return small.every((count, i) => count === counts[i])
    ? small
    : Float64Array.from(counts);
}
