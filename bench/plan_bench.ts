// SPDX-License-Identifier: Apache-2.0
// How long planning takes, for the shapes of large models: random to random placements, so that
// nearly every slot changes. Run with `deno bench bench/plan_bench.ts`.
import { compileProgram } from "../lib/migration/program.ts";
import { planDigest } from "../lib/migration/digest.ts";
import { planMigration } from "../lib/migration/plan.ts";
import { Placement } from "../lib/placement.ts";
import { Topology } from "../lib/topology.ts";

const SHAPES = [
  { layers: 58, experts: 256, ranks: 32, slotsPerRank: 9, nodes: 4 },
  { layers: 61, experts: 384, ranks: 64, slotsPerRank: 7, nodes: 8 },
  { layers: 94, experts: 128, ranks: 32, slotsPerRank: 5, nodes: 4 },
] as const;

for (const { nodes, ...shape } of SHAPES) {
  const { layers, experts, ranks, slotsPerRank } = shape;
  const slots = ranks * slotsPerRank;
  const group =
    `${layers} layers, ${experts} experts in ${slots} slots, ${ranks} ranks`;
  const from = Placement.random({ ...shape, seed: 1 });
  const to = Placement.random({ ...shape, seed: 2 });
  const topology = Topology.uniform({ ranks, nodes });
  const stagingCells = slotsPerRank;

  Deno.bench("plan, chunked", { group, baseline: true }, () => {
    planMigration(from, to, { topology, sources: "chunked" });
  });
  Deno.bench("plan, balanced", { group }, () => {
    planMigration(from, to, { topology });
  });
  Deno.bench("plan, balanced, and programs of all ranks", { group }, () => {
    compileProgram(planMigration(from, to, { topology }), { stagingCells });
  });
  Deno.bench("plan, balanced, and program of one rank", { group }, () => {
    const plan = planMigration(from, to, { topology });
    compileProgram(plan, { stagingCells, ranks: [0] });
  });
  Deno.bench("digest", { group }, () => {
    planDigest({ from, to, topology, tensorBytes: [44_040_192] });
  });
}
