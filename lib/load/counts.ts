// SPDX-License-Identifier: Apache-2.0

/**
 * Counting tokens per expert.
 *
 * @module
 */
import { checkInteger } from "../_check.ts";
import type { Placement } from "../placement.ts";

/** Counts of tokens, one number per expert or slot. */
export type Counts = Int32Array | Uint32Array | Float64Array;

/** Options of {@linkcode countTokens}. */
export interface CountTokensOptions {
  /** Number of experts, or of slots if the ids are those of slots. */
  readonly experts: number;
  /**
   * Which tokens are real, [tokens]: 0 is padding or a dummy, whose experts are not counted.
   *
   * @default {all}
   */
  readonly valid?: Uint8Array;
  /**
   * Counts to add to, [experts], such as one layer of a step.
   *
   * @default {new Float64Array(experts)}
   */
  readonly into?: Float64Array;
}

/**
 * Counts how many tokens a router sent to each expert.
 *
 * @param topkIds Experts of each token, [tokens, k], row major; -1 is none, as of padding.
 * @param options Number of experts, and which tokens are real.
 * @returns Tokens per expert, [experts]: `into`, if it is given.
 * @throws {RangeError} If an id is neither an expert nor -1, also one of a token that is masked,
 * or if sizes do not fit; nothing is counted then.
 *
 * @example
 * ```ts
 * import { countTokens } from "@eplb/eplb";
 * import { assertEquals } from "@std/assert";
 *
 * // Three tokens of two experts each; the second is padding, the third has one expert only.
 * const topkIds = new Int32Array([0, 2, 0, 0, 2, -1]);
 * const valid = new Uint8Array([1, 0, 1]);
 * assertEquals([...countTokens(topkIds, { experts: 3, valid })], [1, 0, 2]);
 * ```
 */
export function countTokens(
  topkIds: Int32Array,
  options: CountTokensOptions,
): Float64Array {
  const { experts, valid } = options;
  checkInteger(experts, { action: "count tokens", name: "experts", min: 1 });
  const counts = options.into ?? new Float64Array(experts);
  if (counts.length !== experts) {
    throw new RangeError(
      `Cannot count tokens: into has ${counts.length} counts instead of ${experts}`,
    );
  }
  const perToken = idsPerToken(topkIds, valid);
  for (let i = 0; i < topkIds.length; i++) {
    if (topkIds[i]! >= -1 && topkIds[i]! < experts) continue;
    throw new RangeError(
      `Cannot count tokens: id ${i} is ${
        topkIds[i]
      }, not one of ${experts} experts or -1`,
    );
  }
  for (let i = 0; i < topkIds.length; i++) {
    const id = topkIds[i]!;
    if (id < 0 || valid?.[Math.floor(i / perToken)] === 0) continue;
    counts[id]! += 1;
  }
  return counts;
}

/** Experts of each token; 1 if nothing tells. */
function idsPerToken(
  topkIds: Int32Array,
  valid: Uint8Array | undefined,
): number {
  if (valid === undefined || topkIds.length === 0 && valid.length === 0) {
    return 1;
  }
  const perToken = topkIds.length / valid.length;
  if (!Number.isInteger(perToken)) {
    throw new RangeError(
      `Cannot count tokens: ${topkIds.length} ids do not divide among ${valid.length} tokens`,
    );
  }
  return perToken;
}

/**
 * Adds up the tokens of each logical expert over the slots that hold it.
 *
 * @param counts Tokens per slot, [layers, slots], row major.
 * @param placement What the slots held when the tokens were counted.
 * @returns Tokens per logical expert, [layers, experts], row major.
 * @throws {RangeError} If there are not as many counts as slots, or one of an empty slot is not 0.
 *
 * @example
 * ```ts
 * import { logicalCounts, Placement } from "@eplb/eplb";
 * import { assertEquals } from "@std/assert";
 *
 * const placement = Placement.from([[0, 1, 0, -1]], { ranks: 2 });
 * assertEquals([...logicalCounts(new Int32Array([5, 7, 1, 0]), placement)], [6, 7]);
 * ```
 */
export function logicalCounts(
  counts: Counts,
  placement: Placement,
): Float64Array {
  const { layers, slots, experts, physicalToLogical } = placement;
  if (counts.length !== layers * slots) {
    throw new RangeError(
      `Cannot add up counts: there must be ${layers} layers × ${slots} slots, there are ${counts.length} counts`,
    );
  }
  const sums = new Float64Array(layers * experts);
  for (let cell = 0; cell < counts.length; cell++) {
    const layer = Math.floor(cell / slots);
    const expert = physicalToLogical[cell]!;
    if (expert >= 0) {
      sums[layer * experts + expert]! += counts[cell]!;
    } else if (counts[cell] !== 0) {
      throw new RangeError(
        `Cannot add up counts: layer ${layer}, slot ${
          cell % slots
        } is empty but has ${counts[cell]} tokens`,
      );
    }
  }
  return sums;
}
