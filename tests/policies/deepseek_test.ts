import { assertEquals, assertThrows } from "@std/assert";
import fc from "fast-check";
import {
  deepseekPolicy,
  type DeepseekPolicyOptions,
} from "../../lib/policies/deepseek.ts";

/** A case that deepseek-ai/EPLB's own code was run on. */
interface GoldenCase {
  readonly num_replicas: number;
  readonly num_groups: number;
  readonly num_nodes: number;
  readonly num_gpus: number;
  readonly load: number[][];
  readonly physical_to_logical_map: number[][];
  readonly replica_count: number[][];
}

const golden: GoldenCase[] = JSON.parse(
  await Deno.readTextFile(
    new URL("../fixtures/golden_deepseek_eplb.json", import.meta.url),
  ),
);

for (const [index, expected] of golden.entries()) {
  const experts = expected.load[0]!.length;
  const name = `${expected.load.length}x${experts} to ${expected.num_replicas}`;
  Deno.test(`deepseekPolicy() gives the reference's map, case ${index}: ${name}`, () => {
    const placement = deepseekPolicy(
      new Float64Array(expected.load.flat()),
      {
        experts,
        ranks: expected.num_gpus,
        slotsPerRank: expected.num_replicas / expected.num_gpus,
        nodes: expected.num_nodes,
        groups: expected.num_groups,
      },
    );
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

Deno.test("deepseekPolicy() gives the map in the reference's README", () => {
  const load = new Float64Array([
    ...[90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86],
    ...[20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27],
  ]);
  const placement = deepseekPolicy(load, {
    experts: 12,
    ranks: 8,
    slotsPerRank: 2,
    nodes: 2,
    groups: 4,
  });
  assertEquals([...placement.physicalToLogical], [
    ...[5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1],
    ...[7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1],
  ]);
});

Deno.test("deepseekPolicy() breaks ties toward the lowest index", () => {
  // All alike: the extra copies go to experts 0 and 1; the heaviest items are then
  // 2 and 3 (a whole load each), which go to ranks 0 and 1, and so on.
  const placement = deepseekPolicy(new Float64Array([6, 6, 6, 6]), {
    experts: 4,
    ranks: 2,
    slotsPerRank: 3,
  });
  assertEquals([...placement.logicalReplicaCount], [2, 2, 1, 1]);
  assertEquals([...placement.physicalToLogical], [2, 0, 0, 3, 1, 1]);
});

Deno.test("deepseekPolicy() places a layer that had no tokens", () => {
  const placement = deepseekPolicy(new Float64Array(8), {
    experts: 4,
    ranks: 2,
    slotsPerRank: 2,
  });
  assertEquals([...placement.physicalToLogical], [0, 1, 2, 3, 0, 1, 2, 3]);
});

/** Sizes that fit, and a load for them. */
const jobs = fc.record({
  nodes: fc.integer({ min: 1, max: 3 }),
  ranksPerNode: fc.integer({ min: 1, max: 4 }),
  groupsPerNode: fc.integer({ min: 1, max: 3 }),
  groupSize: fc.integer({ min: 1, max: 5 }),
  spare: fc.integer({ min: 0, max: 3 }),
  layers: fc.integer({ min: 1, max: 3 }),
}).chain((sizes) => {
  const experts = sizes.nodes * sizes.groupsPerNode * sizes.groupSize;
  const ranks = sizes.nodes * sizes.ranksPerNode;
  const options = {
    experts,
    ranks,
    slotsPerRank: Math.ceil(experts / ranks) + sizes.spare,
    nodes: sizes.nodes,
    groups: sizes.nodes * sizes.groupsPerNode,
  };
  const length = sizes.layers * experts;
  return fc.record({
    options: fc.constant(options),
    load: fc.array(fc.nat(100_000), { minLength: length, maxLength: length }),
  });
});

Deno.test("deepseekPolicy() fills every slot and gives every expert a copy", () => {
  fc.assert(fc.property(jobs, ({ load, options }) => {
    const placement = deepseekPolicy(new Float64Array(load), options);
    const { physicalToLogical, slots, experts, layers } = placement;
    assertEquals(slots, options.ranks * options.slotsPerRank);
    for (let layer = 0; layer < layers; layer++) {
      const row = physicalToLogical.subarray(
        layer * slots,
        (layer + 1) * slots,
      );
      assertEquals(row.every((expert) => expert >= 0), true);
      assertEquals(new Set(row).size, experts);
    }
  }));
});

Deno.test("deepseekPolicy() keeps a group on one node", () => {
  fc.assert(fc.property(jobs, ({ load, options }) => {
    const placement = deepseekPolicy(new Float64Array(load), options);
    const { physicalToLogical, slots } = placement;
    const nodeOf = new Map<string, number>();
    for (const [index, expert] of physicalToLogical.entries()) {
      const layer = Math.floor(index / slots);
      const group = Math.floor(expert / (options.experts / options.groups));
      const node = Math.floor(index % slots / (slots / options.nodes));
      const key = `${layer} ${group}`;
      assertEquals(nodeOf.get(key) ?? node, node);
      nodeOf.set(key, node);
    }
  }));
});

Deno.test("deepseekPolicy() never lets one more copy be worth more elsewhere", () => {
  // Greedy replication: no expert's load per copy exceeds what another expert's
  // would be with one copy less.
  fc.assert(fc.property(jobs, ({ load, options }) => {
    const { experts } = options;
    const flat = { ...options, nodes: 1, groups: 1 };
    const placement = deepseekPolicy(new Float64Array(load), flat);
    const counts = placement.logicalReplicaCount;
    for (let layer = 0; layer < placement.layers; layer++) {
      const row = [...Array(experts).keys()].map((e) => layer * experts + e);
      const most = Math.max(...row.map((i) => load[i]! / counts[i]!));
      for (const i of row.filter((i) => counts[i]! > 1)) {
        const before = load[i]! / (counts[i]! - 1);
        assertEquals(before >= most * (1 - 1e-6), true);
      }
    }
  }));
});

const FITTING: DeepseekPolicyOptions = {
  experts: 4,
  ranks: 2,
  slotsPerRank: 2,
};

Deno.test("deepseekPolicy() refuses loads that are no loads", () => {
  for (const bad of [-1, NaN, Infinity, 1e39]) {
    const load = new Float64Array(8);
    load[6] = bad;
    assertThrows(
      () => deepseekPolicy(load, FITTING),
      RangeError,
      `Cannot place experts: load of layer 1, expert 2 must be a non-negative finite float32, it is ${bad}`,
    );
  }
});

Deno.test("deepseekPolicy() refuses sizes that do not fit", () => {
  const cases: [number, DeepseekPolicyOptions, string][] = [
    [6, FITTING, "load must hold whole layers of 4 experts, it has 6 values"],
    [0, FITTING, "load must hold whole layers of 4 experts, it has 0 values"],
    [
      4,
      { ...FITTING, slotsPerRank: 1 },
      "2 ranks of 1 slots are fewer than 4 experts",
    ],
    [
      4,
      { ...FITTING, groups: 3 },
      "4 experts do not form 3 equal groups",
    ],
    [
      4,
      { ...FITTING, ranks: 3, nodes: 2, groups: 2 },
      "3 ranks do not divide over 2 nodes",
    ],
    [4, { ...FITTING, ranks: 0 }, "ranks must be an integer from 1"],
    [4, { ...FITTING, nodes: 1.5 }, "nodes must be an integer from 1"],
  ];
  for (const [length, options, message] of cases) {
    assertThrows(
      () => deepseekPolicy(new Float64Array(length), options),
      RangeError,
      `Cannot place experts: ${message}`,
    );
  }
});
