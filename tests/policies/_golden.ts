// Cases that deepseek-ai/EPLB's own code was run on, and vLLM's default policy after it.

import type { PolicyInput } from "../../lib/policies/policy.ts";
import { Topology } from "../../lib/topology.ts";

/** One case; the second load was planned for with the first map as today's. */
export interface GoldenCase {
  readonly num_replicas: number;
  readonly num_groups: number;
  readonly num_nodes: number;
  readonly num_gpus: number;
  readonly load: number[][];
  readonly physical_to_logical_map: number[][];
  readonly replica_count: number[][];
  readonly next_load: number[][];
  readonly next_preserving_slots: number[][];
}

/** All cases. */
export const golden: GoldenCase[] = JSON.parse(
  await Deno.readTextFile(
    new URL("../fixtures/golden_deepseek_eplb.json", import.meta.url),
  ),
);

/** The input of a policy for a case. */
export function jobOf(sizes: GoldenCase, load: number[][]): PolicyInput {
  const { num_gpus: ranks, num_nodes: nodes } = sizes;
  return {
    load: new Float64Array(load.flat()),
    experts: load[0]!.length,
    topology: Topology.uniform({ ranks, nodes }),
    slotsPerRank: sizes.num_replicas / ranks,
    groups: sizes.num_groups,
  };
}
