// SPDX-License-Identifier: Apache-2.0

/**
 * The placement policy of deepseek-ai/EPLB, with slots kept inside ranks.
 *
 * @module
 */
import { Placement } from "../placement.ts";
import { checkInput } from "./_job.ts";
import { keepSlots } from "./_keep_slots.ts";
import { planAnew } from "./_reference.ts";
import { equalShares } from "./_shares.ts";
import type { PolicyInput, PolicyPlan } from "./policy.ts";

/**
 * Places experts like {@linkcode deepseekPolicy}, but leaves those that stay on a rank in their
 * slots, as vLLM's default policy does.
 *
 * It saves the copies inside ranks and nothing else: which rank gets which expert is decided
 * anew, so most experts still move.
 *
 * @param input What to decide from; without a current placement the result is that of
 * {@linkcode deepseekPolicy}.
 * @returns The placement, with every slot of an active rank filled in layers with tokens, and
 * equal shares.
 * @throws {RangeError} As {@linkcode deepseekPolicy} does.
 *
 * @example
 * ```ts
 * import { Placement, preservePolicy, Topology } from "@eplb/eplb";
 * import { assertEquals } from "@std/assert";
 *
 * const { placement } = preservePolicy({
 *   load: new Float64Array([10, 90, 20, 40]),
 *   experts: 4,
 *   topology: Topology.uniform({ ranks: 2, nodes: 1 }),
 *   slotsPerRank: 3,
 *   current: Placement.from([[0, 1, 2, 3, 0, 1]], { ranks: 2 }),
 * });
 * // Rank 0 gets experts 3, 1 and 0, rank 1 gets 1, 1 and 2: what was there stays in its slot.
 * assertEquals([...placement.physicalToLogical], [0, 1, 3, 1, 2, 1]);
 * ```
 */
export function preservePolicy(input: PolicyInput): PolicyPlan {
  const job = checkInput(input);
  const map = planAnew(job);
  if (job.current !== undefined) {
    const before = job.current.physicalToLogical;
    const count = job.slotsPerRank;
    for (let first = 0; first < map.length; first += count) {
      keepSlots(map, before, { first, count });
    }
  }
  const placement = Placement.from(map, job);
  return { placement, shares: equalShares(placement) };
}
