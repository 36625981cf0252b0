import {
  assert,
  assertAlmostEquals,
  assertEquals,
  assertThrows,
} from "@std/assert";
import fc from "fast-check";
import { Placement } from "../../lib/placement.ts";
import type { PolicyInput, PolicyPlan } from "../../lib/policies/policy.ts";
import { quotaPolicy } from "../../lib/policies/quota.ts";
import { SeededRandom } from "../../lib/random.ts";
import { Topology } from "../../lib/topology.ts";
import { bestSplit } from "./_best_split.ts";
import {
  activeRanks,
  assertPlan,
  imbalances,
  inputs,
  movedSlots,
  rankLoads,
  renumber,
  testContract,
} from "./_contract.ts";

testContract("quotaPolicy", quotaPolicy);

/** Jobs whose ranks are all active and hold the experts already. */
const placedInputs = inputs.filter((input) =>
  input.current !== undefined && input.active === undefined
) as fc.Arbitrary<PolicyInput & { readonly current: Placement }>;

function tokensOf({ load, experts }: PolicyInput, layer: number): number {
  return load.subarray(layer * experts, (layer + 1) * experts)
    .reduce((a, b) => a + b, 0);
}

function busiest(input: PolicyInput, plan: PolicyPlan, layer: number): number {
  return Math.max(...rankLoads(input, plan, layer));
}

function rowOf(placement: Placement, layer: number): number[] {
  const { slots, physicalToLogical } = placement;
  return [...physicalToLogical.subarray(layer * slots, (layer + 1) * slots)];
}

function count(list: readonly number[], value: number): number {
  return list.filter((other) => other === value).length;
}

function layersWithTokens(input: PolicyInput): number[] {
  return [...Array(input.load.length / input.experts).keys()]
    .filter((layer) => tokensOf(input, layer) > 0);
}

Deno.test("quotaPolicy() splits tokens as well as its placement allows", () => {
  fc.assert(
    fc.property(inputs, (input) => {
      const plan = quotaPolicy(input);
      for (const layer of layersWithTokens(input)) {
        const best = bestSplit(input.load, plan.placement, layer, {
          active: activeRanks(input),
        });
        assertAlmostEquals(busiest(input, plan, layer), best, best * 1e-7);
      }
    }),
    { numRuns: 500 },
  );
});

Deno.test("quotaPolicy() makes no layer worse than splitting it anew", () => {
  fc.assert(fc.property(placedInputs, (input) => {
    const plan = quotaPolicy(input);
    for (const layer of layersWithTokens(input)) {
      const active = activeRanks(input);
      const today = bestSplit(input.load, input.current, layer, { active });
      assert(busiest(input, plan, layer) <= today * (1 + 1e-7));
    }
  }));
});

Deno.test("quotaPolicy() puts no expert on a rank twice", () => {
  fc.assert(fc.property(inputs, (input) => {
    const { placement } = quotaPolicy(input);
    const { slotsPerRank, ranks } = placement;
    for (const layer of layersWithTokens(input)) {
      for (let first = 0; first < ranks * slotsPerRank; first += slotsPerRank) {
        const held = rowOf(placement, layer).slice(first, first + slotsPerRank);
        // What was there twice may still be.
        const before = input.current === undefined
          ? []
          : rowOf(input.current, layer).slice(first, first + slotsPerRank);
        for (const expert of held.filter((expert) => expert >= 0)) {
          assert(count(held, expert) <= Math.max(1, count(before, expert)));
        }
      }
    }
  }));
});

Deno.test("quotaPolicy() moves nothing where today's map is within tolerance", () => {
  fc.assert(fc.property(
    placedInputs,
    fc.double({ min: 0, max: 2, noNaN: true }),
    (input, tolerance) => {
      const { placement } = quotaPolicy(input, { tolerance, noise: 0 });
      const active = activeRanks(input);
      for (const layer of layersWithTokens(input)) {
        const today = bestSplit(input.load, input.current, layer, { active });
        const mean = tokensOf(input, layer) / active.length;
        if (today > mean * (1 + tolerance)) continue;
        assertEquals(rowOf(placement, layer), rowOf(input.current, layer));
      }
    },
  ));
});

Deno.test("quotaPolicy() does not chase what may be chance", () => {
  // 8 ranks and 5000 tokens: one standard deviation is 4 %, and 660 are 5.6 % above the mean.
  const load = new Float64Array(8).fill(620);
  load[3]! += 40;
  const input = {
    load,
    experts: 8,
    topology: Topology.uniform({ ranks: 8, nodes: 1 }),
    slotsPerRank: 2,
    current: Placement.from(
      [[0, -1, 1, -1, 2, -1, 3, -1, 4, -1, 5, -1, 6, -1, 7, -1]],
      { ranks: 8 },
    ),
  };
  assert(quotaPolicy(input, { noise: 2 }).placement.equals(input.current));
  assert(!quotaPolicy(input, { noise: 1 }).placement.equals(input.current));
});

Deno.test("quotaPolicy() finds the same shares when planning again", () => {
  fc.assert(fc.property(
    inputs,
    fc.constantFrom(0, 0.01, 0.1),
    (input, tolerance) => {
      const plan = quotaPolicy(input, { tolerance });
      const again = quotaPolicy(
        { ...input, current: plan.placement },
        { tolerance },
      );
      assert(again.placement.equals(plan.placement));
      assertEquals(again.shares, plan.shares);
    },
  ));
});

Deno.test("quotaPolicy() moves no more slots of a layer than it may", () => {
  fc.assert(fc.property(placedInputs, fc.nat(4), (input, maxMoves) => {
    const { placement } = quotaPolicy(input, { maxMoves });
    for (let layer = 0; layer < placement.layers; layer++) {
      assert(movedSlots(input.current, placement, layer) <= maxMoves);
    }
  }));
});

/** A load like those of real models, and others that have drifted away from it. */
function skewedLoad(experts: number, random: SeededRandom): Float64Array {
  return new Float64Array(experts).map(() => drift(20_000, 0.8, random));
}

function drift(tokens: number, sigma: number, random: SeededRandom): number {
  // The sum of twelve uniform numbers is as good as normal.
  let normal = -6;
  for (let i = 0; i < 12; i++) normal += random.uint32() / 2 ** 32;
  return Math.round(tokens * Math.exp(sigma * normal));
}

for (const movePrimaries of [false, true]) {
  const what = movePrimaries
    ? "on their place in their rank"
    : "in their slots";
  Deno.test(`quotaPolicy() leaves primaries ${what}, movePrimaries ${movePrimaries}`, () => {
    const [experts, ranks, slotsPerRank] = [32, 4, 10];
    const topology = Topology.uniform({ ranks, nodes: 1 });
    const job = { experts, topology, slotsPerRank };
    for (let seed = 0; seed < 20; seed++) {
      const random = new SeededRandom(seed);
      let load = skewedLoad(experts, random);
      const first = quotaPolicy({ ...job, load }).placement;
      let current = first;
      for (let step = 0; step < 5; step++) {
        load = load.map((tokens) => drift(tokens, 0.7, random));
        current = quotaPolicy(
          { ...job, load, current },
          { movePrimaries },
        ).placement;
        // Primaries are in the first eight slots of each rank.
        const heads = rowOf(current, 0).filter((_, slot) => slot % 10 < 8);
        assertEquals(new Set(heads).size, experts);
        if (movePrimaries) continue;
        assertEquals(heads, rowOf(first, 0).filter((_, slot) => slot % 10 < 8));
      }
    }
  });
}

for (const sigma of [0.05, 0.2, 0.5]) {
  Deno.test(`quotaPolicy() follows 200 drifts of ${sigma * 100} %`, () => {
    let moved = 0;
    for (let seed = 0; seed < 200; seed++) {
      const random = new SeededRandom(seed);
      const nodes = 1 + seed % 2;
      const job = {
        experts: 64,
        topology: Topology.uniform({ ranks: 8, nodes }),
        slotsPerRank: 10,
      };
      const before = skewedLoad(64, random);
      const current = quotaPolicy({ ...job, load: before }).placement;
      const load = before.map((tokens) => drift(tokens, sigma, random));
      const input = { ...job, load, current };
      const plan = quotaPolicy(input);
      assertPlan(input, plan);
      const [imbalance] = imbalances(input, plan);
      // Excess that is too little for a move may be left.
      assert(imbalance! <= 1.0102, `seed ${seed}: ${imbalance}`);
      moved += movedSlots(current, plan.placement);
    }
    // Of 16 redundant slots.
    assert(moved / 200 < 2, `${moved / 200} slots moved`);
  });
}

const ADVERSARIAL = {
  "half of all tokens on one expert": (expert: number) => expert === 3 ? 31 : 1,
  "all tokens on one expert": (expert: number) => expert === 3 ? 1 : 0,
  "the same for all": () => 1,
  "fewer experts with tokens than ranks": (expert: number) =>
    expert < 5 ? 1 : 0,
};

for (const [name, tokens] of Object.entries(ADVERSARIAL)) {
  Deno.test(`quotaPolicy() balances ${name}`, () => {
    const job = {
      experts: 32,
      topology: Topology.uniform({ ranks: 8, nodes: 1 }),
      slotsPerRank: 6,
    };
    const even = { ...job, load: new Float64Array(32).fill(1e6) };
    const current = quotaPolicy(even).placement;
    const load = even.load.map((value, expert) => value * tokens(expert));
    for (const input of [{ ...job, load }, { ...job, load, current }]) {
      const plan = quotaPolicy(input);
      assertPlan(input, plan);
      assert(imbalances(input, plan)[0]! <= 1.01 + 1e-7);
    }
  });
}

Deno.test("quotaPolicy() leaves the hottest expert alone if there is no redundant slot", () => {
  const load = new Float64Array(32).fill(1e6);
  load[3] = 31e6;
  const input = {
    load,
    experts: 32,
    topology: Topology.uniform({ ranks: 8, nodes: 1 }),
    slotsPerRank: 4,
  };
  // Its rank holds three others.
  assertEquals(busiest(input, quotaPolicy(input), 0), 34e6);
});

Deno.test("quotaPolicy() exchanges primaries where there is no redundant slot", () => {
  const input = {
    load: new Float64Array([60, 50, 10, 20]),
    experts: 4,
    topology: Topology.uniform({ ranks: 2, nodes: 1 }),
    slotsPerRank: 2,
    current: Placement.from([[0, 1, 2, 3]], { ranks: 2 }),
  };
  // 110 and 30 tokens become 70 and 70.
  const { placement } = quotaPolicy(input, { noise: 0 });
  assertEquals(placement.physicalToLogical, new Int32Array([3, 1, 2, 0]));
  const kept = quotaPolicy(input, { noise: 0, movePrimaries: false });
  assert(kept.placement.equals(input.current));
});

Deno.test("quotaPolicy() prefers the node of the primary for a copy", () => {
  // Rank 0 has 120 tokens; rank 1 is on its node, rank 3 is not and has a little more room.
  const { placement } = quotaPolicy({
    load: new Float64Array([120, 45, 60, 35]),
    experts: 4,
    topology: Topology.uniform({ ranks: 4, nodes: 2 }),
    slotsPerRank: 2,
    current: Placement.from([[0, -1, 1, -1, 2, -1, 3, -1]], { ranks: 4 }),
  }, { noise: 0, maxMoves: 1 });
  assertEquals(rowOf(placement, 0), [0, -1, 1, 0, 2, -1, 3, -1]);
});

Deno.test("quotaPolicy() takes a copy on another node where that gains much more", () => {
  const { placement } = quotaPolicy({
    load: new Float64Array([120, 65, 60, 15]),
    experts: 4,
    topology: Topology.uniform({ ranks: 4, nodes: 2 }),
    slotsPerRank: 2,
    current: Placement.from([[0, -1, 1, -1, 2, -1, 3, -1]], { ranks: 4 }),
  }, { noise: 0, maxMoves: 1 });
  assertEquals(rowOf(placement, 0), [0, -1, 1, -1, 2, -1, 3, 0]);
});

Deno.test("quotaPolicy() moves nothing in vain where one expert is too much for any rank", () => {
  // No rank can do with less than 100. Rank 1 is above the mean of 70 too, but below that.
  const current = Placement.from([[0, 1, 2, 3, 4, 5, 6, 7]], { ranks: 4 });
  const input = {
    load: new Float64Array([100, 40, 60, 20, 30, 10, 20, 0]),
    experts: 8,
    topology: Topology.uniform({ ranks: 4, nodes: 1 }),
    slotsPerRank: 2,
    current,
  };
  const plan = quotaPolicy(input, { noise: 0 });
  assertEquals(busiest(input, plan, 0), 100);
  assertEquals(movedSlots(current, plan.placement), 2);
});

Deno.test("quotaPolicy() decides ties alike whatever the numbers of a node's ranks", () => {
  const random = new SeededRandom(2);
  fc.assert(
    fc.property(inputs, (input) => {
      const other = renumber(input, random);
      const expected = imbalances(input, quotaPolicy(input));
      imbalances(other, quotaPolicy(other)).forEach((value, layer) =>
        assertAlmostEquals(value, expected[layer]!, 1e-9)
      );
    }),
    { numRuns: 1000 },
  );
});

Deno.test("quotaPolicy() keeps experts of a group, and their copies, on one node at first", () => {
  const random = new SeededRandom(1);
  const { placement } = quotaPolicy({
    load: skewedLoad(32, random),
    experts: 32,
    topology: Topology.uniform({ ranks: 8, nodes: 2 }),
    slotsPerRank: 5,
    groups: 4,
  }, { tolerance: 1 });
  const nodes = Array.from({ length: 4 }, () => new Set<number>());
  rowOf(placement, 0).forEach((expert, slot) =>
    nodes[Math.floor(expert / 8)]!.add(Math.floor(slot / 20))
  );
  assertEquals(nodes.map((set) => set.size), [1, 1, 1, 1]);
});

Deno.test("quotaPolicy() keeps to a number of redundant slots", () => {
  fc.assert(
    fc.property(inputs, fc.nat(12), (input, redundantSlots) => {
      const plan = quotaPolicy(input, { redundantSlots });
      assertPlan(input, plan);
      const used = layersWithTokens(input).map((layer) =>
        rowOf(plan.placement, layer).filter((expert) => expert >= 0).length -
        input.experts
      );
      assert(used.reduce((a, b) => a + b, 0) <= redundantSlots);
      const again = quotaPolicy(
        { ...input, current: plan.placement },
        { redundantSlots },
      );
      assert(again.placement.equals(plan.placement));
    }),
    { numRuns: 300 },
  );
});

Deno.test("quotaPolicy() gives redundant slots to the layers that need them", () => {
  // Of 900, 900 and 800 tokens of a layer, one expert has 600, 300 and 200.
  const job = {
    load: new Float64Array([
      ...[600, 100, 100, 100],
      ...[300, 290, 290, 20],
      ...[200, 200, 200, 200],
    ]),
    experts: 4,
    topology: Topology.uniform({ ranks: 2, nodes: 1 }),
    slotsPerRank: 3,
  };
  const redundant = (redundantSlots: number) => {
    const { placement } = quotaPolicy(job, { redundantSlots });
    return [0, 1, 2].map((layer) => 2 - count(rowOf(placement, layer), -1));
  };
  assertEquals(redundant(0), [0, 0, 0]);
  assertEquals(redundant(1), [1, 0, 0]);
  assertEquals(redundant(2), [1, 1, 0]);
});

Deno.test("quotaPolicy() restores lost experts on the lightest ranks, hottest first", () => {
  // Ranks 0 to 2 have 50, 20 and 30 tokens left.
  const { placement } = quotaPolicy({
    load: new Float64Array([50, 20, 30, 25, 5]),
    experts: 5,
    topology: Topology.uniform({ ranks: 4, nodes: 1 }),
    slotsPerRank: 3,
    active: [0, 1, 2],
    current: Placement.from([[0, -1, -1, 1, 0, -1, 2, -1, -1, 3, 4, -1]], {
      ranks: 4,
    }),
  }, { maxMoves: 0 });
  assertEquals(
    rowOf(placement, 0),
    [0, -1, -1, 1, 0, 3, 2, 4, -1, -1, -1, -1],
  );
});

Deno.test("quotaPolicy() restores the experts of a rank that is gone", () => {
  const input = {
    load: new Float64Array([60, 10, 20, 30, 40, 50]),
    experts: 6,
    topology: Topology.uniform({ ranks: 3, nodes: 1 }),
    slotsPerRank: 3,
    active: [0, 2],
    current: Placement.from([[0, 1, 2, 3, 4, 5, 0, 2, -1]], { ranks: 3 }),
  };
  const plan = quotaPolicy(input, { noise: 0 });
  assertPlan(input, plan);
  // All six slots are needed; of 210 tokens, 110 and 100 is the best there is.
  assertEquals(rowOf(plan.placement, 0).slice(3, 6), [-1, -1, -1]);
  assertEquals(busiest(input, plan, 0), 110);
});

Deno.test("quotaPolicy() refuses options out of range", () => {
  const input = {
    load: new Float64Array([1, 2]),
    experts: 2,
    topology: Topology.uniform({ ranks: 2, nodes: 1 }),
    slotsPerRank: 1,
  };
  const cases = [
    [{ tolerance: -1 }, "tolerance must be non-negative and finite, it is -1"],
    [{ noise: NaN }, "noise must be non-negative and finite, it is NaN"],
    [
      { maxMoves: 1.5 },
      "maxMoves must be an integer from 0 to 2147483647, got 1.5",
    ],
    [
      { redundantSlots: -1 },
      "redundantSlots must be an integer from 0 to 2147483647, got -1",
    ],
  ] as const;
  for (const [options, message] of cases) {
    assertThrows(
      () => quotaPolicy(input, options),
      RangeError,
      `Cannot place experts: ${message}`,
    );
  }
});
