// SPDX-License-Identifier: Apache-2.0
// How long the policies take, for the shapes of large models, after a change of load: today's
// placement is deepseek-ai/EPLB's for another load. Run with `deno bench bench/policy_bench.ts`.
// Run as a program, it times the first call of a policy in a fresh process instead:
// `deno run bench/policy_bench.ts deepseek`.
import type { PolicyInput } from "../lib/policies/policy.ts";
import { policies, type PolicyName } from "../lib/policies/registry.ts";
import { SeededRandom } from "../lib/random.ts";
import { Topology } from "../lib/topology.ts";

const SHAPES = [
  { layers: 58, experts: 256, ranks: 32, slotsPerRank: 9, nodes: 4 },
  { layers: 61, experts: 384, ranks: 64, slotsPerRank: 7, nodes: 8 },
  { layers: 61, experts: 384, ranks: 1024, slotsPerRank: 2, nodes: 128 },
] as const;

const FAST = { deepseek: true, preserve: true };

/** A skewed load like those of real models: few experts take many tokens. */
function skewedLoad(
  { layers, experts }: { readonly layers: number; readonly experts: number },
  seed: number,
): Float64Array {
  const random = new SeededRandom(seed);
  return Float64Array.from(
    { length: layers * experts },
    () => Math.floor(100 / (0.01 + random.uint32() / 2 ** 32)),
  );
}

/** The job of a shape: a load, and the placement for the load before it. */
function jobOf(shape: typeof SHAPES[number]): PolicyInput {
  const { experts, ranks, slotsPerRank, nodes } = shape;
  const topology = Topology.uniform({ ranks, nodes });
  const job = { experts, topology, slotsPerRank };
  const before = skewedLoad(shape, 1);
  const after = skewedLoad(shape, 2);
  // Half of the tokens go where they went.
  const load = after.map((tokens, i) => (tokens + before[i]!) / 2);
  const current = policies.deepseek({ ...job, load: before }).placement;
  return { ...job, load, current };
}

for (const shape of import.meta.main ? [] : SHAPES) {
  const { layers, experts, ranks, slotsPerRank } = shape;
  const group = `${layers} layers, ${experts} experts in ${
    ranks * slotsPerRank
  } slots, ${ranks} ranks`;
  const input = jobOf(shape);
  for (const [name, policy] of Object.entries(policies)) {
    const baseline = name === "deepseek";
    // Policies that look for single steps take seconds on so many ranks.
    const runs = ranks < 1000 || name in FAST ? {} : { n: 2, warmup: 1 };
    Deno.bench({
      name,
      group,
      baseline,
      ...runs,
      fn: () => void policy(input),
    });
  }
  Deno.bench("deepseek, 128 groups on nodes", { group }, () => {
    policies.deepseek({ ...input, groups: 128 });
  });
}

if (import.meta.main) {
  const policy = policies[(Deno.args[0] ?? "deepseek") as PolicyName];
  const shape = SHAPES[0];
  const { experts, ranks, slotsPerRank, nodes } = shape;
  const input = {
    load: skewedLoad(shape, 2),
    experts,
    topology: Topology.uniform({ ranks, nodes }),
    slotsPerRank,
  };
  const start = performance.now();
  policy(input);
  // deno-lint-ignore no-console -- a program's result
  console.log(`${(performance.now() - start).toFixed(1)} ms`);
}
