// What every placement policy must do, checked on random inputs against plain models.

import {
  assert,
  assertAlmostEquals,
  assertEquals,
  assertThrows,
} from "@std/assert";
import fc from "fast-check";
import { Placement } from "../../lib/placement.ts";
import type {
  Policy,
  PolicyInput,
  PolicyPlan,
} from "../../lib/policies/policy.ts";
import { SeededRandom } from "../../lib/random.ts";
import { Topology } from "../../lib/topology.ts";

/** Ranks that may hold experts. */
export function activeRanks({ topology, active }: PolicyInput): number[] {
  return [...active ?? Array(topology.ranks).keys()];
}

/** Tokens of each active rank in a layer, by shares. */
export function rankLoads(
  input: PolicyInput,
  { placement, shares }: PolicyPlan,
  layer: number,
): number[] {
  const { slots, slotsPerRank, physicalToLogical } = placement;
  const loads = Array<number>(input.topology.ranks).fill(0);
  for (let slot = 0; slot < slots; slot++) {
    const expert = physicalToLogical[layer * slots + slot]!;
    if (expert < 0) continue;
    loads[Math.floor(slot / slotsPerRank)]! +=
      input.load[layer * input.experts + expert]! *
      shares[layer * slots + slot]!;
  }
  return activeRanks(input).map((rank) => loads[rank]!);
}

/** Maximum over mean of the active ranks' loads in each layer; 1 without load. */
export function imbalances(input: PolicyInput, plan: PolicyPlan): number[] {
  return Array.from({ length: plan.placement.layers }, (_, layer) => {
    const loads = rankLoads(input, plan, layer);
    const mean = loads.reduce((a, b) => a + b) / loads.length;
    return mean === 0 ? 1 : Math.max(...loads) / mean;
  });
}

/** Slots of a layer, or of all, that are not empty and hold another expert than before. */
export function movedSlots(
  before: Placement,
  after: Placement,
  layer?: number,
): number {
  let moved = 0;
  after.physicalToLogical.forEach((expert, cell) => {
    const counts = layer === undefined ||
      Math.floor(cell / after.slots) === layer;
    const changed = expert >= 0 && expert !== before.physicalToLogical[cell];
    if (counts && changed) moved++;
  });
  return moved;
}

/** Ranks on uneven nodes, of which a part is active, dense layers, ties, holes. */
export const inputs: fc.Arbitrary<PolicyInput> = fc.record({
  nodeOf: fc.array(fc.nat(2), { minLength: 1, maxLength: 6 }),
  slotsPerRank: fc.integer({ min: 1, max: 4 }),
  layers: fc.integer({ min: 1, max: 3 }),
  activeBits: fc.integer({ min: 1, max: 63 }),
  allActive: fc.boolean(),
  groupSize: fc.integer({ min: 1, max: 3 }),
  fill: fc.double({ min: 0, max: 1, noNaN: true }),
  hasCurrent: fc.boolean(),
  seed: fc.nat(),
  kind: fc.constantFrom("few values", "many values", "one hot"),
}).map((draw) => {
  const { nodeOf, slotsPerRank, layers, groupSize, seed } = draw;
  const topology = Topology.fromNodes(nodeOf);
  const { ranks } = topology;
  const listed = [...Array(ranks).keys()].filter((rank) =>
    draw.allActive || (draw.activeBits >> rank) & 1
  );
  const active = listed.length > 0 ? listed : [ranks - 1];
  const room = active.length * slotsPerRank;
  const groups = Math.max(1, Math.floor(room * draw.fill / groupSize));
  const experts = Math.min(room, groups * groupSize);
  const random = new SeededRandom(seed);
  const load = randomLoad({ layers, experts, random, kind: draw.kind });
  const shape = { layers, ranks, slotsPerRank, experts };
  return {
    load,
    experts,
    topology,
    slotsPerRank,
    groups: experts % groups === 0 ? groups : 1,
    ...(draw.allActive ? {} : { active }),
    ...(draw.hasCurrent ? { current: randomPlacement(shape, random) } : {}),
  };
});

/** Some layers without tokens, the others with as many ties as the kind has. */
function randomLoad(
  options: {
    readonly layers: number;
    readonly experts: number;
    readonly random: SeededRandom;
    readonly kind: string;
  },
): Float64Array {
  const { layers, experts, random, kind } = options;
  const load = new Float64Array(layers * experts);
  for (let layer = 0; layer < layers; layer++) {
    if (random.below(4) === 0) continue;
    for (let expert = 0; expert < experts; expert++) {
      load[layer * experts + expert] = kind === "few values"
        ? random.below(3)
        : 1 + random.below(kind === "many values" ? 1e6 : 100);
    }
    if (kind === "one hot") {
      load[layer * experts + random.below(experts)]! *= 99;
    }
  }
  return load;
}

/** Any placement, some of whose slots are empty. */
export function randomPlacement(
  shape: {
    readonly layers: number;
    readonly ranks: number;
    readonly slotsPerRank: number;
    readonly experts: number;
  },
  random: SeededRandom,
): Placement {
  const { layers, ranks, slotsPerRank, experts } = shape;
  const slots = ranks * slotsPerRank;
  const map = new Int32Array(layers * slots);
  for (let layer = 0; layer < layers; layer++) {
    const row = map.subarray(layer * slots, (layer + 1) * slots);
    for (let slot = 0; slot < slots; slot++) {
      row[slot] = slot < experts ? slot : random.below(experts + 1) - 1;
    }
    random.shuffle(row);
  }
  return Placement.from(map, { layers, ranks, experts });
}

/** Checks a plan against all rules that do not need another plan. */
export function assertPlan(input: PolicyInput, plan: PolicyPlan): void {
  const { placement, shares } = plan;
  const { experts, topology: { ranks }, slotsPerRank } = input;
  const layers = input.load.length / experts;
  assertEquals(
    [placement.layers, placement.ranks, placement.slotsPerRank],
    [layers, ranks, slotsPerRank],
  );
  assertEquals(placement.experts, experts);
  assertEquals(shares.length, layers * placement.slots);
  const active = new Set(activeRanks(input));
  const sums = Array<number>(layers * experts).fill(0);
  placement.physicalToLogical.forEach((expert, cell) => {
    const rank = Math.floor(cell % placement.slots / slotsPerRank);
    if (expert < 0 || !active.has(rank)) {
      assertEquals([expert, shares[cell]], [-1, 0]);
      return;
    }
    assert(shares[cell]! >= 0 && shares[cell]! <= 1, `share ${shares[cell]}`);
    sums[Math.floor(cell / placement.slots) * experts + expert]! +=
      shares[cell]!;
  });
  // Every expert has a slot, or its sum would be 0.
  for (const sum of sums) assertAlmostEquals(sum, 1, 1e-12);
}

/** Tokens of a layer. */
function tokensOf({ load, experts }: PolicyInput, layer: number): number {
  return load.subarray(layer * experts, (layer + 1) * experts)
    .reduce((a, b) => a + b, 0);
}

/** Layers without tokens are as today, but for experts that were on inactive ranks only. */
export function assertDenseLayersKept(
  input: PolicyInput,
  { placement }: PolicyPlan,
): void {
  const { slots, slotsPerRank, experts } = placement;
  for (let layer = 0; layer < placement.layers; layer++) {
    if (tokensOf(input, layer) > 0) continue;
    const rowOf = (map: Int32Array): number[] =>
      activeRanks(input).flatMap((rank) => {
        const first = layer * slots + rank * slotsPerRank;
        return [...map.subarray(first, first + slotsPerRank)];
      });
    const after = rowOf(placement.physicalToLogical);
    if (input.current === undefined) {
      assertEquals(after, after.map((_, i) => i % experts));
      continue;
    }
    const before = rowOf(input.current.physicalToLogical);
    const lost = [...Array(experts).keys()].filter((e) => !before.includes(e));
    const changed = after.filter((expert, i) => expert !== before[i]);
    assertEquals(changed.toSorted((a, b) => a - b), lost);
  }
}

/** The same job after ranks of a node have changed their numbers. */
export function renumber(
  input: PolicyInput,
  random: SeededRandom,
): PolicyInput {
  const { topology, current, active, slotsPerRank } = input;
  const numbers = new Int32Array(topology.ranks);
  for (let node = 0; node < topology.nodes; node++) {
    const ranks = Int32Array.from(topology.ranksOf(node));
    const shuffled = ranks.slice();
    random.shuffle(shuffled);
    ranks.forEach((rank, i) => numbers[rank] = shuffled[i]!);
  }
  const renumbered = active?.map((rank) => numbers[rank]!);
  const map = current?.physicalToLogical.slice();
  current?.physicalToLogical.forEach((expert, cell) => {
    const slot = cell % current.slots;
    const rank = Math.floor(slot / slotsPerRank);
    map![cell - slot + numbers[rank]! * slotsPerRank + slot % slotsPerRank] =
      expert;
  });
  return {
    ...input,
    ...(renumbered && { active: renumbered.toSorted((a, b) => a - b) }),
    ...(current && { current: Placement.from(map!, current) }),
  };
}

/** Registers the tests that hold for every policy. */
export function testContract(name: string, policy: Policy): void {
  Deno.test(`${name}() gives every expert an active slot and whole shares`, () => {
    fc.assert(
      fc.property(inputs, (input) => {
        assertPlan(input, policy(input));
      }),
      { numRuns: 500 },
    );
  });

  Deno.test(`${name}() keeps layers without tokens`, () => {
    fc.assert(
      fc.property(inputs, (input) => {
        assertDenseLayersKept(input, policy(input));
      }),
      { numRuns: 500 },
    );
  });

  Deno.test(`${name}() moves nothing when planning again from its own result`, () => {
    fc.assert(
      fc.property(inputs, (input) => {
        const { placement } = policy(input);
        const again = policy({ ...input, current: placement }).placement;
        assertEquals(movedSlots(placement, again), 0);
        assert(again.equals(placement));
      }),
      { numRuns: 500 },
    );
  });

  Deno.test(`${name}() balances alike whatever the numbers of a node's ranks`, () => {
    const random = new SeededRandom(1);
    fc.assert(
      fc.property(inputs, (drawn) => {
        // Without ties, which go to the lowest rank.
        const load = drawn.load.map((tokens) =>
          tokens > 0 ? tokens + random.uint32() / 2 ** 32 : 0
        );
        const input = { ...drawn, load };
        const other = renumber(input, random);
        const expected = imbalances(input, policy(input));
        imbalances(other, policy(other)).forEach((value, layer) => {
          assertAlmostEquals(value, expected[layer]!, 1e-6);
        });
      }),
      { numRuns: 500 },
    );
  });

  Deno.test(`${name}() gives the same plan each time and leaves its input alone`, () => {
    fc.assert(fc.property(inputs, (input) => {
      const load = input.load.slice();
      const before = input.current?.physicalToLogical.slice();
      const { placement, shares } = policy(input);
      assertEquals(input.load, load);
      assertEquals(input.current?.physicalToLogical, before);
      const again = policy(input);
      assert(again.placement.equals(placement));
      assertEquals(again.shares, shares);
    }));
  });

  Deno.test(`${name}() refuses input that does not fit`, () => {
    for (const { change, message } of REFUSALS) {
      assertThrows(
        () => policy({ ...FITTING, ...change }),
        RangeError,
        `Cannot place experts: ${message}`,
      );
    }
  });
}

/** Two layers of four experts on three ranks of two slots. */
const FITTING: PolicyInput = {
  load: new Float64Array([5, 6, 7, 8, 1, 2, 3, 4]),
  experts: 4,
  topology: Topology.uniform({ ranks: 3, nodes: 1 }),
  slotsPerRank: 2,
};

function withLoad(index: number, tokens: number): Partial<PolicyInput> {
  const load = FITTING.load.slice();
  load[index] = tokens;
  return { load };
}

const REFUSALS: readonly {
  readonly change: Partial<PolicyInput>;
  readonly message: string;
}[] = [
  ...[-1, NaN, Infinity, -Infinity].map((tokens) => ({
    change: withLoad(6, tokens),
    message:
      `load of layer 1, expert 2 must be non-negative and finite, it is ${tokens}`,
  })),
  {
    change: withLoad(1, 2e38),
    message:
      "load of layer 0 must add up to at most 1e+38, it adds up to 2e+38",
  },
  {
    change: { load: new Float64Array(6) },
    message: "load must hold whole layers of 4 experts, it has 6 values",
  },
  {
    change: { load: new Float64Array(0) },
    message: "load must hold whole layers of 4 experts, it has 0 values",
  },
  {
    change: { experts: 0 },
    message: "experts must be an integer from 1",
  },
  {
    change: { slotsPerRank: 1.5 },
    message: "slotsPerRank must be an integer from 1",
  },
  {
    change: { groups: 3 },
    message: "4 experts do not form 3 equal groups",
  },
  {
    change: { slotsPerRank: 1 },
    message: "3 active ranks of 1 slots are 1 slots short of 4 experts",
  },
  {
    change: { active: [1] },
    message: "1 active ranks of 2 slots are 2 slots short of 4 experts",
  },
  {
    change: { active: [] },
    message: "0 active ranks of 2 slots are 4 slots short of 4 experts",
  },
  {
    change: { active: [0, 3] },
    message: "active ranks must ascend from 0 to 2, entry 1 is 3 after 0",
  },
  {
    change: { active: [2, 1] },
    message: "active ranks must ascend from 0 to 2, entry 1 is 1 after 2",
  },
  {
    change: { active: [-1, 1] },
    message: "active ranks must ascend from 0 to 2, entry 0 is -1",
  },
  {
    change: { current: Placement.from([[0, 1, 2, 3, 0, 1]], { ranks: 3 }) },
    message:
      "the current placement has 1 layers on 3 ranks of 2 slots with 4 experts, the job has 2 layers on 3 ranks of 2 slots with 4 experts",
  },
];
