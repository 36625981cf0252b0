// SPDX-License-Identifier: Apache-2.0
// How long the default policy takes: for a first placement, and after the load of each expert has
// changed by a random factor. Run with `deno bench bench/quota_bench.ts`.
import type { PolicyInput } from "../lib/policies/policy.ts";
import { quotaPolicy } from "../lib/policies/quota.ts";
import { SeededRandom } from "../lib/random.ts";
import { Topology } from "../lib/topology.ts";

interface Shape {
  readonly layers: number;
  readonly experts: number;
  readonly ranks: number;
  readonly slotsPerRank: number;
  readonly nodes: number;
}

const MODELS: readonly Shape[] = [
  { layers: 58, experts: 256, ranks: 32, slotsPerRank: 9, nodes: 1 },
  { layers: 58, experts: 256, ranks: 32, slotsPerRank: 9, nodes: 4 },
  { layers: 61, experts: 384, ranks: 64, slotsPerRank: 7, nodes: 8 },
  { layers: 61, experts: 384, ranks: 1024, slotsPerRank: 2, nodes: 1 },
];

/** Standard deviation of the logarithm of the factor. */
const DRIFTS = [0.05, 0.2, 0.5];

/** About normal: the sum of twelve uniform numbers. */
function normal(random: SeededRandom): number {
  let sum = -6;
  for (let i = 0; i < 12; i++) sum += random.uint32() / 2 ** 32;
  return sum;
}

function drift(load: Float64Array, sigma: number, seed: number): Float64Array {
  const random = new SeededRandom(seed);
  return load.map((tokens) =>
    Math.floor(tokens * Math.exp(sigma * normal(random)))
  );
}

function jobOf(shape: Shape): PolicyInput {
  const { layers, experts, ranks, slotsPerRank, nodes } = shape;
  const even = new Float64Array(layers * experts).fill(20_000);
  const topology = Topology.uniform({ ranks, nodes });
  return { load: drift(even, 0.7, 1), experts, topology, slotsPerRank };
}

function name({ layers, experts, ranks, slotsPerRank, nodes }: Shape): string {
  const slots = ranks * slotsPerRank;
  return `${layers} x ${experts} to ${slots} slots on ${ranks} ranks, ${nodes} nodes`;
}

for (const shape of MODELS) {
  const group = name(shape);
  const job = jobOf(shape);
  Deno.bench("first placement", { group }, () => void quotaPolicy(job));
  const current = quotaPolicy(job).placement;
  for (const sigma of DRIFTS) {
    const input = { ...job, load: drift(job.load, sigma, 2), current };
    Deno.bench(
      `drift of ${sigma * 100} %`,
      { group },
      () => void quotaPolicy(input),
    );
  }
}

for (let ranks = 8; ranks <= 1024; ranks *= 2) {
  const slotsPerRank = Math.max(2, Math.ceil(384 / ranks) + 1);
  const shape = { layers: 61, experts: 384, ranks, slotsPerRank, nodes: 1 };
  const job = jobOf(shape);
  const current = quotaPolicy(job).placement;
  const input = { ...job, load: drift(job.load, 0.2, 2), current };
  Deno.bench(name(shape), { group: "growth, drift of 20 %" }, () => {
    quotaPolicy(input);
  });
}
