// SPDX-License-Identifier: Apache-2.0

/**
 * The placement policy of deepseek-ai/EPLB.
 *
 * @module
 */
import { Placement } from "../placement.ts";
import { checkInput } from "./_job.ts";
import { planAnew } from "./_reference.ts";
import { equalShares } from "./_shares.ts";
import type { PolicyInput, PolicyPlan } from "./policy.ts";

/**
 * Places experts anew as deepseek-ai/EPLB's `rebalance_experts` does.
 *
 * Groups are packed onto nodes, the hottest experts of each node get its redundant slots, and
 * the slots are packed onto ranks; each step is greedy, and ties go to the lowest index. If the
 * active ranks are not spread evenly over their nodes, or the groups are not, all ranks are
 * planned for as one node. Arithmetic is in float32 like the original's. Where the experts of a
 * layer with tokens are today is not looked at, so most slots move; layers without tokens are
 * kept. Only tokens are balanced: the objective is not looked at.
 *
 * @param input What to decide from.
 * @returns The placement, with every slot of an active rank filled in layers with tokens, and
 * equal shares.
 * @throws {RangeError} If the sizes do not fit together, a load is negative, not finite or too
 * large for float32, or the active ranks have fewer slots than there are experts.
 *
 * @example
 * ```ts
 * import { deepseekPolicy, Topology } from "@eplb/eplb";
 * import { assertEquals } from "@std/assert";
 *
 * const { placement, shares } = deepseekPolicy({
 *   load: new Float64Array([10, 90, 20, 40]),
 *   experts: 4,
 *   topology: Topology.uniform({ ranks: 2, nodes: 1 }),
 *   slotsPerRank: 3,
 * });
 * assertEquals([...placement.physicalToLogical], [3, 1, 0, 1, 1, 2]);
 * assertEquals([...shares], [1, 1 / 3, 1, 1 / 3, 1 / 3, 1]);
 * ```
 */
export function deepseekPolicy(input: PolicyInput): PolicyPlan {
  const job = checkInput(input);
  const placement = Placement.from(planAnew(job), job);
  return { placement, shares: equalShares(placement) };
}
