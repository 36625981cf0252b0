// SPDX-License-Identifier: Apache-2.0

/**
 * Splitting tokens anew over the copies that are there.
 *
 * @module
 */
import type { Placement } from "../placement.ts";
import { carryActive } from "./_carry.ts";
import { checkInput } from "./_job.ts";
import { rankObjective } from "./_rank_cost.ts";
import { lostExpert } from "./_restore.ts";
import { Splitter } from "./_splitter.ts";
import type { PolicyInput } from "./policy.ts";

/** What {@linkcode resplit} decides from. */
export interface ResplitInput extends PolicyInput {
  /** Where the experts are. */
  readonly current: Placement;
}

/**
 * Splits each expert's tokens over its copies so that the busiest rank costs as little as they
 * allow; no slot moves.
 *
 * It is the first step of `quotaPolicy`, and what is left to do at once when ranks have gone.
 *
 * @param input The load, and where the experts are. Slots of ranks that are not active get nothing.
 * @returns Share of its expert's tokens that each slot takes, [layers, slots], row major.
 * @throws {RangeError} If the sizes do not fit together, a load is negative or not finite, the
 * objective is out of range, or an expert is on no active rank.
 *
 * @example
 * ```ts
 * import { Placement, resplit, Topology } from "@eplb/eplb";
 * import { assertEquals } from "@std/assert";
 *
 * const shares = resplit({
 *   load: new Float64Array([60, 10, 30]),
 *   experts: 3,
 *   topology: Topology.uniform({ ranks: 2, nodes: 1 }),
 *   slotsPerRank: 2,
 *   current: Placement.from([[0, 1, 0, 2]], { ranks: 2 }),
 * });
 * // 40 + 10 tokens on rank 0, 20 + 30 on rank 1.
 * assertEquals([...shares], [40 / 60, 1, 20 / 60, 1]);
 * ```
 */
export function resplit(input: ResplitInput): Float64Array {
  const job = checkInput(input);
  const { layers, slots, experts, active, ranks } = job;
  const splitter = new Splitter(
    job,
    rankObjective(input.objective ?? {}, ranks),
  );
  const shares = new Float64Array(layers * slots);
  for (let layer = 0; layer < layers; layer++) {
    const row = new Int32Array(slots).fill(-1);
    carryActive(row, job, layer);
    if (active.length < ranks) checkHeld(row, { layer, experts });
    splitter.split(row, layer);
    splitter.share(shares.subarray(layer * slots, (layer + 1) * slots));
  }
  return shares;
}

function checkHeld(
  row: Int32Array,
  { layer, experts }: { readonly layer: number; readonly experts: number },
): void {
  const lost = lostExpert(row, experts);
  if (lost < 0) return;
  throw new RangeError(
    `Cannot split tokens: expert ${lost} of layer ${layer} is on no active rank`,
  );
}
