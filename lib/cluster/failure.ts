// SPDX-License-Identifier: Apache-2.0

/**
 * What ranks are told when one of them is gone.
 *
 * @module
 */

/**
 * How a rank was lost.
 *
 * | kind | what happened |
 * |---|---|
 * | `"died"` | its connection broke: the process ended or was killed |
 * | `"silent"` | no heartbeat for too long: stopped, blocked, or cut off |
 * | `"gave-up"` | it called {@linkcode StoreClient.fail} |
 * | `"absent"` | it never joined |
 * | `"left"` | it said goodbye while others waited for it in a gather |
 * | `"store"` | the store itself is gone, so no rank can be named |
 */
export type RankFailureKind =
  | "died"
  | "silent"
  | "gave-up"
  | "absent"
  | "left"
  | "store";

/** The first failure among the ranks of a store. */
export interface RankFailure {
  /** How the ranks were lost. */
  readonly kind: RankFailureKind;
  /** The lost ranks, ascending; empty when the store itself is gone. */
  readonly ranks: readonly number[];
  /** What happened, as it reads after "rank 3": "died: connection lost". */
  readonly reason: string;
}

/**
 * A gather cannot complete because a rank is gone.
 *
 * @example Naming the rank
 * ```ts
 * import { RankFailureError } from "@eplb/eplb";
 * import { assertEquals } from "@std/assert";
 *
 * const error = new RankFailureError('gather "plan"', {
 *   kind: "died",
 *   ranks: [3],
 *   reason: "died: connection lost",
 * });
 * assertEquals(
 *   error.message,
 *   'Cannot gather "plan": rank 3 died: connection lost',
 * );
 * assertEquals(error.ranks, [3]);
 * ```
 */
export class RankFailureError extends Error {
  /** The failure that this error reports. */
  readonly failure: RankFailure;

  /**
   * Makes the error for an action that the failure prevents.
   *
   * @param action What cannot be done, as it reads after "Cannot".
   * @param failure The failure that prevents it.
   */
  constructor(action: string, failure: RankFailure) {
    super(`Cannot ${action}: ${describeFailure(failure)}`);
    this.name = "RankFailureError";
    this.failure = failure;
  }

  /** The lost ranks, ascending; empty when the store itself is gone. */
  get ranks(): readonly number[] {
    return this.failure.ranks;
  }

  /** What happened to them. */
  get reason(): string {
    return this.failure.reason;
  }
}

/**
 * A gather ran out of time while some ranks had not posted.
 *
 * No rank is known to be lost: the missing ones are alive, and late.
 *
 * @example Naming the ranks that are waited for
 * ```ts
 * import { GatherTimeoutError } from "@eplb/eplb";
 * import { assertEquals } from "@std/assert";
 *
 * const error = new GatherTimeoutError("plan", [1, 2], 60_000);
 * assertEquals(
 *   error.message,
 *   'Cannot gather "plan": ranks 1 and 2 have not posted within 60.0 s',
 * );
 * ```
 */
export class GatherTimeoutError extends Error {
  /** The ranks that have not posted, ascending. */
  readonly missing: readonly number[];

  /**
   * Makes the error for one gather.
   *
   * @param gather Name of the gather.
   * @param missing The ranks that have not posted, ascending.
   * @param timeout How long was waited, in milliseconds.
   */
  constructor(gather: string, missing: readonly number[], timeout: number) {
    const have = missing.length === 1 ? "has" : "have";
    super(
      `Cannot gather "${gather}": ${describeRanks(missing)} ${have} ` +
        `not posted within ${describeSeconds(timeout)}`,
    );
    this.name = "GatherTimeoutError";
    this.missing = missing;
  }
}

/**
 * Says what happened to whom.
 *
 * @param failure The failure.
 * @returns "rank 3 died: connection lost"
 */
export function describeFailure(failure: RankFailure): string {
  const { ranks, reason } = failure;
  return ranks.length === 0 ? reason : `${describeRanks(ranks)} ${reason}`;
}

/** More ranks than this are counted, not listed: messages stay readable. */
const LISTED_RANKS = 16;

/**
 * Lists ranks in words.
 *
 * @param ranks At least one rank.
 * @returns "rank 3", "ranks 1, 2 and 5"
 */
export function describeRanks(ranks: readonly number[]): string {
  if (ranks.length === 1) return `rank ${ranks[0]}`;
  const listed = ranks.slice(0, LISTED_RANKS);
  const last = listed.length < ranks.length
    ? `${ranks.length - listed.length} more`
    : listed.pop();
  return `ranks ${listed.join(", ")} and ${last}`;
}

/**
 * Writes a duration in seconds.
 *
 * @param milliseconds The duration in milliseconds.
 * @returns "5.0 s"
 */
export function describeSeconds(milliseconds: number): string {
  return `${(milliseconds / 1000).toFixed(1)} s`;
}
