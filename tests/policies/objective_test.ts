import { assertAlmostEquals, assertEquals, assertThrows } from "@std/assert";
import fc from "fast-check";
import {
  balancedness,
  imbalance,
  type ImbalanceOptions,
} from "../../lib/metrics.ts";
import { Placement } from "../../lib/placement.ts";
import { quotaPolicy } from "../../lib/policies/quota.ts";
import { Topology } from "../../lib/topology.ts";
import { activeRanks, imbalances, inputs } from "./_contract.ts";

/** Two ranks on two nodes; expert 0 has its primary on rank 0 and a copy on rank 1. */
const PLACEMENT = Placement.from([[0, 1, 2, 0]], { ranks: 2 });
const LOAD = new Float64Array([60, 10, 0]);

/** What the ranks cost follows from the numbers above by hand. */
const BY_HAND: readonly [string, ImbalanceOptions, readonly number[]][] = [
  ["tokens", {}, [40, 30]],
  ["costs of tokens", { objective: { tokenCost: 3 } }, [120, 90]],
  ["activated experts", { objective: { expertCost: 5 } }, [50, 35]],
  [
    "activated experts alone",
    { objective: { tokenCost: 0, expertCost: 5 } },
    [10, 5],
  ],
  [
    "activated experts, without slots that get no tokens",
    {
      objective: { expertCost: 5 },
      shares: new Float64Array([1, 1, 1, 0]),
    },
    [80, 0],
  ],
  [
    "tokens on another node",
    {
      objective: { crossNodeCost: 0.5 },
      topology: Topology.uniform({ ranks: 2, nodes: 2 }),
    },
    [40, 45],
  ],
  [
    "tokens on another rank of the node",
    {
      objective: { crossNodeCost: 0.5 },
      topology: Topology.uniform({ ranks: 2, nodes: 1 }),
    },
    [40, 30],
  ],
];

for (const [name, options, costs] of BY_HAND) {
  Deno.test(`imbalance() counts ${name}`, () => {
    const expected = Math.max(...costs) / ((costs[0]! + costs[1]!) / 2);
    const { layers, mean, max } = imbalance(LOAD, PLACEMENT, options);
    assertAlmostEquals(layers[0]!, expected, 1e-12);
    assertEquals([mean, max], [layers[0], layers[0]]);
  });
}

Deno.test("imbalance() weighs ranks by their speed", () => {
  // 40 and 30 tokens at speeds 4 and 3 take the same time.
  const speed = new Float64Array([4, 3]);
  const even = imbalance(LOAD, PLACEMENT, { objective: { speed } });
  assertAlmostEquals(even.mean, 1, 1e-12);
  // At speeds 1 and 3, 40 against (40 + 30) / 4 if spread by speed.
  speed[0] = 1;
  const uneven = imbalance(LOAD, PLACEMENT, { objective: { speed } });
  assertAlmostEquals(uneven.mean, 40 / (70 / 4), 1e-12);
});

Deno.test("imbalance() leaves inactive ranks and layers without load out of means", () => {
  const placement = Placement.from([[0, 1, -1], [0, 1, -1], [1, 0, -1]], {
    ranks: 3,
  });
  const load = new Float64Array([30, 10, 0, 0, 20, 20]);
  const { layers, mean, max } = imbalance(load, placement, { active: [0, 1] });
  assertEquals([...layers], [1.5, 1, 1]);
  assertEquals([mean, max], [1.25, 1.5]);
  const dense = imbalance(new Float64Array(6), placement);
  assertEquals([dense.mean, dense.max], [1, 1]);
});

Deno.test("imbalance() agrees with a naive model and is the inverse of balancedness", () => {
  fc.assert(fc.property(inputs, (input) => {
    const plan = quotaPolicy(input);
    const { placement, shares } = plan;
    const { layers } = imbalance(input.load, placement, {
      shares,
      active: activeRanks(input),
    });
    const expected = imbalances(input, plan);
    layers.forEach((value, layer) =>
      assertAlmostEquals(value, expected[layer]!, 1e-9)
    );
    if (input.active !== undefined) return;
    const inverse = balancedness(input.load, placement, { shares }).layers;
    layers.forEach((value, layer) =>
      assertAlmostEquals(value * inverse[layer]!, 1, 1e-9)
    );
  }));
});

Deno.test("imbalance() refuses what does not fit", () => {
  const cases: readonly [ImbalanceOptions, string][] = [
    [
      { active: [0, 2] },
      "Cannot measure imbalance: an active rank must be an integer from 0 to 1, got 2",
    ],
    [
      { topology: Topology.uniform({ ranks: 3, nodes: 1 }) },
      "Cannot measure imbalance: the topology has 3 ranks, the placement 2",
    ],
    [
      { shares: new Float64Array(3) },
      "Cannot measure imbalance: shares must have 1 layers × 4 slots, they have 3 values",
    ],
    [
      { objective: { crossNodeCost: -1 } },
      "Cannot place experts: crossNodeCost must be non-negative and finite, it is -1",
    ],
    [
      { objective: { speed: new Float64Array(2) } },
      "Cannot place experts: the speed of rank 0 must be positive and finite, it is 0",
    ],
  ];
  for (const [options, message] of cases) {
    assertThrows(
      () => imbalance(LOAD, PLACEMENT, options),
      RangeError,
      message,
    );
  }
  assertThrows(
    () => imbalance(new Float64Array(2), PLACEMENT),
    RangeError,
    "Cannot measure imbalance: load must have 1 layers × 3 experts, it has 2 values",
  );
});

Deno.test("quotaPolicy() balances by the ranks' speeds", () => {
  const speed = new Float64Array([1, 1, 1, 2]);
  const load = new Float64Array(16).map((_, expert) => 1000 * (1 + expert % 5));
  const { placement, shares } = quotaPolicy({
    load,
    experts: 16,
    topology: Topology.uniform({ ranks: 4, nodes: 1 }),
    slotsPerRank: 6,
    objective: { speed },
  });
  const { mean } = imbalance(load, placement, { shares, objective: { speed } });
  assertAlmostEquals(mean, 1, 0.0101);
});

Deno.test("quotaPolicy() balances activated experts", () => {
  // Half of the experts get tokens, all of them on the first two ranks today: 8, 8, 0 and 0.
  const load = new Float64Array(32).map((_, expert) => expert < 16 ? 1 : 0);
  const current = Placement.contiguous({
    layers: 1,
    ranks: 4,
    slotsPerRank: 8,
    experts: 32,
  });
  const objective = { tokenCost: 0, expertCost: 1 };
  const { placement, shares } = quotaPolicy({
    load,
    experts: 32,
    topology: Topology.uniform({ ranks: 4, nodes: 1 }),
    slotsPerRank: 8,
    current,
    objective,
  }, { noise: 0 });
  const { mean } = imbalance(load, placement, { shares, objective });
  assertEquals(mean, 1);
});

Deno.test("quotaPolicy() moves tokens to other nodes only if that pays", () => {
  const job = {
    load: new Float64Array([90, 30]),
    experts: 2,
    topology: Topology.uniform({ ranks: 2, nodes: 2 }),
    slotsPerRank: 2,
    current: Placement.from([[0, -1, 1, -1]], { ranks: 2 }),
  };
  for (const [crossNodeCost, share] of [[0, 30], [0.5, 24], [2, 15]] as const) {
    const { shares } = quotaPolicy(
      { ...job, objective: { crossNodeCost } },
      { noise: 0, tolerance: 0 },
    );
    // 90 − x = 30 + (1 + cost) · x.
    assertAlmostEquals(shares[3]!, share / 90, 1e-6);
  }
});
