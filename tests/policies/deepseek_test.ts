import { assert, assertEquals } from "@std/assert";
import fc from "fast-check";
import { Placement } from "../../lib/placement.ts";
import { deepseekPolicy } from "../../lib/policies/deepseek.ts";
import type { PolicyInput } from "../../lib/policies/policy.ts";
import { Topology } from "../../lib/topology.ts";
import { inputs, testContract } from "./_contract.ts";
import { golden, jobOf } from "./_golden.ts";
import { naiveDeepseek } from "./_naive_deepseek.ts";

testContract("deepseekPolicy", deepseekPolicy);

for (const [index, expected] of golden.entries()) {
  const name = `${expected.load.length}x${
    expected.load[0]!.length
  } to ${expected.num_replicas}`;
  Deno.test(`deepseekPolicy() gives the reference's map, case ${index}: ${name}`, () => {
    const { placement } = deepseekPolicy(jobOf(expected, expected.load));
    assertEquals(
      [...placement.physicalToLogical],
      expected.physical_to_logical_map.flat(),
    );
    assertEquals(
      [...placement.logicalReplicaCount],
      expected.replica_count.flat(),
    );
  });
}

const README_LOAD = new Float64Array([
  ...[90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86],
  ...[20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27],
]);
const README_MAP = [
  [5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1],
  [7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1],
];

Deno.test("deepseekPolicy() gives the map in the reference's README", () => {
  const { placement } = deepseekPolicy({
    load: README_LOAD,
    experts: 12,
    topology: Topology.uniform({ ranks: 8, nodes: 2 }),
    slotsPerRank: 2,
    groups: 4,
  });
  assertEquals([...placement.physicalToLogical], README_MAP.flat());
});

Deno.test("deepseekPolicy() plans for the active ranks as if there were no others", () => {
  // The same job on 8 of 11 ranks, whose nodes are mixed: node 5 has ranks 0, 2, 3, 9.
  const nodeOf = [5, 7, 5, 5, 6, 7, 6, 7, 7, 5, 7];
  const active = [0, 1, 2, 3, 5, 7, 8, 9];
  const { placement } = deepseekPolicy({
    load: README_LOAD,
    experts: 12,
    topology: Topology.fromNodes(nodeOf),
    slotsPerRank: 2,
    groups: 4,
    active,
  });
  const inOrder = [0, 2, 3, 9, 1, 5, 7, 8];
  for (let layer = 0; layer < 2; layer++) {
    const row = placement.physicalToLogical.subarray(22 * layer);
    assertEquals(
      inOrder.flatMap((rank) => [...row.subarray(2 * rank, 2 * rank + 2)]),
      README_MAP[layer],
    );
    for (const rank of [4, 6, 10]) {
      assertEquals([...row.subarray(2 * rank, 2 * rank + 2)], [-1, -1]);
    }
  }
});

Deno.test("deepseekPolicy() ignores nodes that are not equally populated", () => {
  const job = { load: README_LOAD, experts: 12, slotsPerRank: 2, groups: 4 };
  const uneven = deepseekPolicy({
    ...job,
    topology: Topology.fromNodes([0, 0, 0, 0, 0, 1, 1, 1]),
  });
  // Three nodes do not divide the groups; neither plan knows of nodes then.
  const undivided = deepseekPolicy({
    ...job,
    groups: 1,
    topology: Topology.fromNodes([0, 0, 0, 0, 1, 1, 1, 1]),
  });
  assert(uneven.placement.equals(undivided.placement));
});

Deno.test("deepseekPolicy() breaks ties toward the lowest index", () => {
  // All alike: the extra copies go to experts 0 and 1; the heaviest items are then
  // 2 and 3 (a whole load each), which go to ranks 0 and 1, and so on.
  const { placement } = deepseekPolicy({
    load: new Float64Array([6, 6, 6, 6]),
    experts: 4,
    topology: Topology.uniform({ ranks: 2, nodes: 1 }),
    slotsPerRank: 3,
  });
  assertEquals([...placement.logicalReplicaCount], [2, 2, 1, 1]);
  assertEquals([...placement.physicalToLogical], [2, 0, 0, 3, 1, 1]);
});

Deno.test("deepseekPolicy() takes -0 for 0", () => {
  const job = {
    experts: 4,
    topology: Topology.uniform({ ranks: 2, nodes: 1 }),
    slotsPerRank: 3,
  };
  const plans = [0, -0].map((none) =>
    deepseekPolicy({ ...job, load: new Float64Array([none, 6, none, 2]) })
  );
  assert(plans[0]!.placement.equals(plans[1]!.placement));
});

Deno.test("deepseekPolicy() keeps a layer that had no tokens where it is", () => {
  const current = Placement.from([[3, 2, 1, 0], [3, 2, 1, 0]], { ranks: 2 });
  const { placement } = deepseekPolicy({
    load: new Float64Array([0, 0, 0, 0, 9, 1, 5, 7]),
    experts: 4,
    topology: Topology.uniform({ ranks: 2, nodes: 1 }),
    slotsPerRank: 2,
    current,
  });
  // Heaviest first, 9, 7, 5, 1: rank 0 takes 9, rank 1 takes 7 and 5, rank 0 has room for 1.
  assertEquals([...placement.physicalToLogical], [3, 2, 1, 0, 0, 1, 3, 2]);
});

/** Equally populated nodes that divide the groups. */
const grouped: fc.Arbitrary<PolicyInput> = fc.record({
  nodes: fc.integer({ min: 1, max: 3 }),
  ranksPerNode: fc.integer({ min: 1, max: 4 }),
  groupsPerNode: fc.integer({ min: 1, max: 3 }),
  groupSize: fc.integer({ min: 1, max: 5 }),
  spare: fc.integer({ min: 0, max: 3 }),
  layers: fc.integer({ min: 1, max: 3 }),
}).chain((sizes) => {
  const groups = sizes.nodes * sizes.groupsPerNode;
  const experts = groups * sizes.groupSize;
  const ranks = sizes.nodes * sizes.ranksPerNode;
  const length = sizes.layers * experts;
  return fc.array(fc.nat(100_000), { minLength: length, maxLength: length })
    .map((load) => ({
      load: new Float64Array(load),
      experts,
      topology: Topology.uniform({ ranks, nodes: sizes.nodes }),
      slotsPerRank: Math.ceil(experts / ranks) + sizes.spare,
      groups,
    }));
});

Deno.test("deepseekPolicy() plans like the plainest model, ties included", () => {
  const tied = grouped.chain((input) =>
    fc.constantFrom(1, 2, 3, 100_000).map((values): PolicyInput => ({
      ...input,
      load: input.load.map((tokens) => tokens % values),
    }))
  );
  fc.assert(
    fc.property(tied, (input) => {
      const { experts, slotsPerRank, groups = 1, topology } = input;
      const { ranks, nodes } = topology;
      const { physicalToLogical, layers, slots } =
        deepseekPolicy(input).placement;
      for (let layer = 0; layer < layers; layer++) {
        if (isDense(input, layer)) continue;
        const row = input.load.slice(layer * experts, (layer + 1) * experts);
        assertEquals(
          [...physicalToLogical.slice(layer * slots, (layer + 1) * slots)],
          naiveDeepseek([...row], { ranks, slotsPerRank, nodes, groups }),
        );
      }
    }),
    { numRuns: 500 },
  );
});

Deno.test("deepseekPolicy() keeps a group on one node", () => {
  fc.assert(fc.property(grouped, (input) => {
    const { groups = 1, topology: { nodes } } = input;
    const { physicalToLogical, slots, experts } =
      deepseekPolicy(input).placement;
    const nodeOf = new Map<string, number>();
    for (const [index, expert] of physicalToLogical.entries()) {
      const layer = Math.floor(index / slots);
      if (isDense(input, layer)) continue;
      const group = Math.floor(expert / (experts / groups));
      const node = Math.floor(index % slots / (slots / nodes));
      const key = `${layer} ${group}`;
      assertEquals(nodeOf.get(key) ?? node, node);
      nodeOf.set(key, node);
    }
  }));
});

Deno.test("deepseekPolicy() fills every active slot of layers with tokens", () => {
  fc.assert(fc.property(inputs, (input) => {
    const { physicalToLogical, slots, slotsPerRank } =
      deepseekPolicy(input).placement;
    const active = input.active ?? [...Array(input.topology.ranks).keys()];
    for (const [cell, expert] of physicalToLogical.entries()) {
      if (isDense(input, Math.floor(cell / slots))) continue;
      const rank = Math.floor(cell % slots / slotsPerRank);
      assertEquals(expert >= 0, active.includes(rank));
    }
  }));
});

Deno.test("deepseekPolicy() never lets one more copy be worth more elsewhere", () => {
  // Greedy replication: no expert's load per copy exceeds what another expert's
  // would be with one copy less.
  fc.assert(fc.property(grouped, (drawn) => {
    const input = { ...drawn, groups: 1 };
    const { load, experts, topology } = input;
    if (topology.nodes === 1) return;
    const { layers, logicalReplicaCount } = deepseekPolicy(input).placement;
    for (let layer = 0; layer < layers; layer++) {
      if (isDense(input, layer)) continue;
      const row = [...Array(experts).keys()].map((e) => layer * experts + e);
      const perCopy = row.map((i) => load[i]! / logicalReplicaCount[i]!);
      const most = Math.max(...perCopy);
      for (const i of row.filter((i) => logicalReplicaCount[i]! > 1)) {
        const before = load[i]! / (logicalReplicaCount[i]! - 1);
        assertEquals(before >= most * (1 - 1e-6), true);
      }
    }
  }));
});

function isDense({ load, experts }: PolicyInput, layer: number): boolean {
  return load.subarray(layer * experts, (layer + 1) * experts)
    .every((tokens) => tokens === 0);
}
