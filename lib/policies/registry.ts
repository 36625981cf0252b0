// SPDX-License-Identifier: Apache-2.0

/**
 * The placement policies by name.
 *
 * @module
 */
import { deepseekPolicy } from "./deepseek.ts";
import type { Policy } from "./policy.ts";
import { preservePolicy } from "./preserve.ts";
import { quotaPolicy } from "./quota.ts";
import { swapPolicy } from "./swap.ts";

/**
 * Name of a placement policy:
 *
 * | name | what it does |
 * | --- | --- |
 * | `quota` | keeps primary copies, splits tokens unevenly over copies, and moves redundant ones |
 * | `deepseek` | deepseek-ai/EPLB: plans anew, nearly everything moves |
 * | `preserve` | the same, but what stays on a rank keeps its slot, as in vLLM |
 * | `swap` | improves today's placement by exchanges with the busiest rank |
 */
export type PolicyName = "quota" | "deepseek" | "preserve" | "swap";

/**
 * The placement policies by name.
 *
 * @example
 * ```ts
 * import { policies, Topology } from "@eplb/eplb";
 * import { assertEquals } from "@std/assert";
 *
 * const { placement } = policies.swap({
 *   load: new Float64Array([3, 1]),
 *   experts: 2,
 *   topology: Topology.uniform({ ranks: 2, nodes: 1 }),
 *   slotsPerRank: 1,
 * });
 * assertEquals(placement.experts, 2);
 * ```
 */
export const policies: Readonly<Record<PolicyName, Policy>> = Object.freeze({
  quota: quotaPolicy,
  deepseek: deepseekPolicy,
  preserve: preservePolicy,
  swap: swapPolicy,
});
