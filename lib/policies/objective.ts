// SPDX-License-Identifier: Apache-2.0

/**
 * What policies balance: the cost of a rank's work in one layer.
 *
 * @module
 */

/**
 * How the work of a rank in one layer is measured.
 *
 * cost(rank) = (tokens · tokenCost + activated experts · expertCost) ÷ speed(rank)
 *
 * Prefill is bound by arithmetic, so tokens count; decode with few tokens per expert
 * is bound by reading each activated expert's weights, so activated experts count.
 */
export interface Objective {
  /**
   * Cost of one token.
   *
   * @default {1}
   */
  readonly tokenCost?: number;
  /**
   * Cost of each slot that gets any tokens, in the same unit.
   *
   * @default {0}
   */
  readonly expertCost?: number;
  /**
   * Relative speed of each rank, [ranks], positive.
   *
   * @default {1 for every rank}
   */
  readonly speed?: Float64Array;
  /**
   * What a token costs on top when its expert is served by a slot on another node
   * than the expert's primary, as a part of the token's cost.
   *
   * @default {0}
   */
  readonly crossNodeCost?: number;
}
