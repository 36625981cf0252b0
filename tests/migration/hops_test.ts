import { assert, assertEquals, assertThrows } from "@std/assert";
import fc from "fast-check";
import { planHops } from "../../lib/migration/hops.ts";
import { planMigration } from "../../lib/migration/plan.ts";
import { compileProgram } from "../../lib/migration/program.ts";
import { Placement } from "../../lib/placement.ts";
import { SeededRandom } from "../../lib/random.ts";
import { Topology } from "../../lib/topology.ts";
import {
  changes,
  circle,
  costOf,
  costOfWay,
  fewestCrossings,
  isStuck,
  rowOf,
} from "./_hops.ts";

import { scenarios } from "./_scenarios.ts";

const BOUNDS = {
  layers: [1, 3],
  ranks: [1, 8],
  slotsPerRank: [1, 6],
} as const;

Deno.test("planHops() ends at the new placement, with at most so many experts into a rank per layer and hop", () => {
  let [ways, spare] = [0, 0];
  fc.assert(
    fc.property(
      scenarios({ ...BOUNDS, percent: [30, 100] }),
      fc.integer({ min: 1, max: 4 }),
      fc.boolean(),
      (scenario, stagingCells, relay) => {
        const { from, to, topology } = scenario;
        if (isStuck(scenario, stagingCells)) return;
        const hops = planHops(from, to, { topology, stagingCells, relay });
        // Placement.from() has refused maps in which an expert has no slot.
        assert(hops.at(-1) === to);
        const way = costOfWay(from, hops, topology);
        assert(way.cells <= stagingCells);
        hops.forEach((hop, i) => {
          const plan = planMigration(hops[i - 1] ?? from, hop, { topology });
          compileProgram(plan, { stagingCells });
        });
        // Where slots trade places in a circle that is too wide, it has a slot more than there are
        // cells. It takes one arrival more, or two if a slot that was settled lends itself. Where
        // none is to spare, a row of two takes two arrivals to settle one slot; and a pair on one
        // rank of one cell takes three swaps.
        const changed = changes(from, to);
        const full = from.slots === from.experts;
        const most = !full
          ? 1 + 2 / (stagingCells + 1)
          : stagingCells > 1
          ? 2
          : 3;
        assert(way.staged <= most * changed + 1e-9);
        assert(hops.length <= Math.max(1, 2 * changed));
        if (hops.length > 1) ways++;
        if (hops.length > 1 && !full) spare++;
      },
    ),
    { numRuns: 5000 },
  );
  assert(spare > 50 && ways > spare);
});

Deno.test("planHops() takes one hop where that fits and crosses nodes least", () => {
  let [one, more] = [0, 0];
  fc.assert(
    fc.property(
      scenarios(BOUNDS),
      fc.integer({ min: 1, max: 6 }),
      fc.boolean(),
      (scenario, stagingCells, relay) => {
        if (isStuck(scenario, stagingCells)) return;
        const { from, to, topology } = scenario;
        const { cells, crossings } = costOf(from, to, topology);
        const does = cells <= stagingCells &&
          (!relay || crossings === fewestCrossings(scenario));
        const hops = planHops(from, to, { topology, stagingCells, relay });
        assertEquals(hops.length === 1, does);
        if (does) one++;
        else more++;
      },
    ),
    { numRuns: 2000 },
  );
  assert(one > 20 && more > 20);
});

Deno.test("planHops() lets an expert enter each node once, and each rank once, in two hops of ample staging", () => {
  let [relayed, saved] = [0, 0];
  fc.assert(
    fc.property(
      scenarios({ ...BOUNDS, ranks: [2, 12], percent: [1, 50] }),
      (scenario) => {
        const { from, to, topology } = scenario;
        const stagingCells = from.slotsPerRank;
        const hops = planHops(from, to, { topology, stagingCells });
        const [direct, way] = [
          costOf(from, to, topology),
          costOfWay(from, hops, topology),
        ];
        assert(hops.length <= 2);
        assertEquals(way.crossings, fewestCrossings(scenario));
        assertEquals(way.entries, direct.entries);
        assertEquals(way.staged, direct.staged);
        if (hops.length === 2) relayed++;
        saved += direct.crossings - way.crossings;
        assertEquals(
          planHops(from, to, { topology, stagingCells, relay: false }),
          [to],
        );
      },
    ),
    { numRuns: 2000 },
  );
  // It was worth something.
  assert(relayed > 20 && saved >= relayed, `${relayed} ${saved}`);
});

Deno.test("planHops() keeps the old content on the ranks of a node that an expert does not enter on", () => {
  // Ranks 2 to 4 are a node. All of them get expert 0, rank 2 twice; expert 4 comes to rank 2 only.
  const from = [[0, 4, 9, 1, 1, 2, 2, 3, 3, 5, 5, 6, 7, 8, 8]];
  const to = [[9, 4, 5, 1, 6, 7, 0, 0, 4, 8, 0, 2, 3, 0, 0]];
  const topology = Topology.fromNodes([0, 0, 1, 1, 1]);
  const hops = planHops(
    Placement.from(from, { ranks: 5 }),
    Placement.from(to, { ranks: 5 }),
    { topology, stagingCells: 3 },
  );
  // Rank 2 has to take expert 4 in, so that expert 0 enters on rank 3; its old slots stay on the others.
  assertEquals(hops.map((hop) => [...hop.physicalToLogical]), [
    [9, 4, 5, 1, 6, 7, 2, 3, 4, 8, 0, 2, 3, 8, 8],
    to[0]!,
  ]);
});

Deno.test("planHops() spreads the experts that enter a node over its ranks", () => {
  // Both ranks of node 1 get experts 0 to 3, which node 0 holds, in each of three layers.
  const layers = 3;
  const from = Array.from({ length: layers }, () => [
    ...[0, 1, 2, 3],
    ...[4, 5, 4, 5],
    ...[4, 5, 4, 5],
  ]);
  const to = Array.from({ length: layers }, () => [
    ...[4, 5, 4, 5],
    ...[0, 1, 2, 3],
    ...[3, 2, 1, 0],
  ]);
  const topology = Topology.fromNodes([0, 1, 1]);
  const [first] = planHops(
    Placement.from(from, { ranks: 3 }),
    Placement.from(to, { ranks: 3 }),
    { topology, stagingCells: 4 },
  );
  for (let layer = 0; layer < layers; layer++) {
    // Experts 0 and 2 enter on rank 1, then 1 and 3 on rank 2.
    assertEquals([...rowOf(first!, layer)], [
      ...[4, 5, 4, 5],
      ...[0, 5, 2, 5],
      ...[3, 5, 1, 5],
    ]);
  }
});

Deno.test("planHops() settles slots for good where there is a way without detours", () => {
  // Slots 2 and 5 are redundant. What they get frees slots 3 and 0, what those get slots 1 and 4.
  const from = Placement.from([[0, 1, 2, 3, 4, 2]], { ranks: 2 });
  const to = Placement.from([[1, 4, 3, 4, 2, 0]], { ranks: 2 });
  const topology = Topology.uniform({ ranks: 2, nodes: 1 });
  const hops = planHops(from, to, { topology, stagingCells: 1 });
  const before = [from, ...hops];
  hops.forEach((hop, i) =>
    hop.physicalToLogical.forEach((expert, slot) =>
      assert(
        expert === to.physicalToLogical[slot] ||
          expert === before[i]!.physicalToLogical[slot],
      )
    )
  );
  assertEquals(costOfWay(from, hops, topology).staged, changes(from, to));
});

Deno.test("planHops() counts an expert that several slots of a rank get once", () => {
  const from = Placement.from([[0, 1, 2, 3, 1, 2, 3, 0]], { ranks: 2 });
  const to = Placement.from([[0, 3, 3, 3, 1, 2, 2, 0]], { ranks: 2 });
  const topology = Topology.uniform({ ranks: 2, nodes: 1 });
  assertEquals(planHops(from, to, { topology, stagingCells: 1 }), [to]);
});

Deno.test("planHops() keeps what is to be emptied until the last hop of the layer", () => {
  const from = Placement.from([[0, 1, 2, 0], [0, 1, 2, 0]], { ranks: 2 });
  const to = Placement.from([[1, 0, 2, -1], [0, 1, 2, -1]], { ranks: 2 });
  const topology = Topology.uniform({ ranks: 2, nodes: 1 });
  const hops = planHops(from, to, { topology, stagingCells: 1 });
  assertEquals(
    hops.map((hop) => [rowOf(hop, 0)[3], rowOf(hop, 1)[3]]),
    [[0, -1], [-1, -1]],
  );
});

Deno.test("planHops() leads each layer on its own, and leaves it when it is done", () => {
  fc.assert(
    fc.property(
      scenarios({ ...BOUNDS, layers: [2, 4], ranks: [2, 6] }),
      fc.integer({ min: 1, max: 2 }),
      ({ from, to }, stagingCells) => {
        const topology = Topology.uniform({ ranks: from.ranks, nodes: 1 });
        const hops = planHops(from, to, { topology, stagingCells });
        for (let layer = 0; layer < from.layers; layer++) {
          const alone = planHops(
            Placement.from(rowOf(from, layer), { ...from, layers: 1 }),
            Placement.from(rowOf(to, layer), { ...to, layers: 1 }),
            { topology, stagingCells },
          );
          hops.forEach((hop, i) =>
            assertEquals(
              rowOf(hop, layer),
              (alone[i] ?? alone.at(-1))!.physicalToLogical,
            )
          );
        }
      },
    ),
    { numRuns: 500 },
  );
});

Deno.test("planHops() finds the same hops again", () => {
  fc.assert(
    fc.property(
      scenarios(BOUNDS),
      fc.integer({ min: 1, max: 3 }),
      (scenario, stagingCells) => {
        if (isStuck(scenario, stagingCells)) return;
        const { from, to, topology } = scenario;
        const [once, again] = [0, 1].map(() =>
          planHops(from, to, { topology, stagingCells }).map((hop) =>
            hop.physicalToLogical
          )
        );
        assertEquals(once, again);
      },
    ),
    { numRuns: 500 },
  );
});

Deno.test("planHops() turns one circle over all ranks in one hop of one cell", () => {
  for (const ranks of [2, 3, 8, 32]) {
    const { from, to } = circle([...Array(ranks).keys()], ranks);
    const topology = Topology.uniform({ ranks, nodes: 1 });
    assertEquals(planHops(from, to, { topology, stagingCells: 1 }), [to]);
  }
});

Deno.test("planHops() turns one circle that visits each rank several times with one cell", () => {
  for (const ranks of [2, 3, 8, 32]) {
    for (const slotsPerRank of [2, 5, 9]) {
      const slots = ranks * slotsPerRank;
      const topology = Topology.uniform({ ranks, nodes: 1 });
      const turns = [...Array(slots).keys()].map((i) =>
        (i % ranks) * slotsPerRank + Math.floor(i / ranks)
      );
      const wayOf = (order: readonly number[]) => {
        const { from, to } = circle(order, ranks);
        const hops = planHops(from, to, { topology, stagingCells: 1 });
        return { hops: hops.length, ...costOfWay(from, hops, topology) };
      };
      // In turns. At the fewest, one hop settles a slot of every rank, and the others of all ranks but
      // one, since what comes into all of them would be a circle of its own.
      const inTurns = wayOf(turns);
      const fewest = 1 + Math.ceil((slots - ranks) / (ranks - 1));
      assert(inTurns.hops >= fewest && inTurns.hops <= fewest + 1);
      assert(inTurns.staged < slots + inTurns.hops);
      // Rank by rank, or in any order: at most two arrivals for a slot.
      const shuffled = Int32Array.from(turns);
      new SeededRandom(ranks).shuffle(shuffled);
      for (const order of [turns.toSorted((a, b) => a - b), [...shuffled]]) {
        const way = wayOf(order);
        assertEquals(way.cells, 1);
        assert(way.staged <= 2 * slots - 2);
        assert(way.hops <= slots - 1 && way.hops >= slotsPerRank);
      }
    }
  }
});

Deno.test("planHops() swaps inside ranks with one cell by way of other ranks", () => {
  // Slots of one rank trade places; three swaps, six arrivals, are the least for one pair.
  const topology = Topology.uniform({ ranks: 2, nodes: 1 });
  const from = Placement.from([[0, 1, 2]], { ranks: 1 });
  assertThrows(
    () =>
      planHops(from, Placement.from([[0, 2, 1]], { ranks: 1 }), {
        topology: Topology.uniform({ ranks: 1, nodes: 1 }),
        stagingCells: 1,
      }),
    RangeError,
    "Cannot plan hops: experts of layer 0 trade places on the only rank, which has one staging cell and no redundant or empty slot",
  );
  const two = Placement.from([[0, 1, 2, 3]], { ranks: 2 });
  for (
    const [to, swaps] of [[[1, 0, 2, 3], 3], [[1, 0, 3, 2], 4]] as const
  ) {
    const hops = planHops(two, Placement.from([to], { ranks: 2 }), {
      topology,
      stagingCells: 1,
    });
    assertEquals(hops.length, swaps);
    assertEquals(costOfWay(two, hops, topology).staged, 2 * swaps);
  }
});

Deno.test("planHops() parks an expert in a redundant slot of its rank rather than elsewhere", () => {
  // Slots 0 and 1 trade places with one cell. Slots 2, 3 and 5 hold redundant copies of expert 2.
  const from = Placement.from([[0, 1, 2, 2, 3, 2]], { ranks: 2 });
  const to = Placement.from([[1, 0, 2, 2, 3, 2]], { ranks: 2 });
  const topology = Topology.uniform({ ranks: 2, nodes: 1 });
  const hops = planHops(from, to, { topology, stagingCells: 1 });
  const way = costOfWay(from, hops, topology);
  // Park, settle, settle; and expert 2 back, from the other rank.
  assertEquals([way.staged, way.entries], [4, 1]);
});

// Every map of so many slots in which each expert has a slot.
function allMaps(slots: number, experts: number): number[][] {
  let maps: number[][] = [[]];
  for (let slot = 0; slot < slots; slot++) {
    maps = maps.flatMap((map) =>
      Array.from({ length: experts + 1 }, (_, i) => [...map, i - 1])
    );
  }
  return maps.filter((map) =>
    Array.from({ length: experts }, (_, e) => e).every((e) => map.includes(e))
  );
}

// The fewest hops, and the fewest entries into ranks, from one map to all others; -1 and Infinity for
// those that are out of reach.
function searchAll(
  start: number,
  edges: readonly (readonly { to: number; entries: number }[])[],
): { hops: number[]; entries: number[] } {
  const hops = new Array<number>(edges.length).fill(-1);
  hops[start] = 0;
  const queue = [start];
  for (const map of queue) {
    for (const { to } of edges[map]!) {
      if (hops[to] !== -1) continue;
      hops[to] = hops[map]! + 1;
      queue.push(to);
    }
  }
  const entries = new Array<number>(edges.length).fill(Infinity);
  entries[start] = 0;
  for (let again = true; again;) {
    again = false;
    edges.forEach((out, map) => {
      for (const edge of out) {
        const sum = entries[map]! + edge.entries;
        if (sum >= entries[edge.to]!) continue;
        entries[edge.to] = sum;
        again = true;
      }
    });
  }
  return { hops, entries };
}

Deno.test("planHops() is at most two hops and one entry above the fewest for up to four slots, and mostly at them", () => {
  let [pairs, hopsAbove, entriesAbove] = [0, 0, 0];
  for (
    const [ranks, slotsPerRank] of [[2, 2], [4, 1], [1, 4], [3, 1], [
      1,
      3,
    ]] as const
  ) {
    const topology = Topology.uniform({ ranks, nodes: 1 });
    const slots = ranks * slotsPerRank;
    for (let experts = 2; experts <= slots; experts++) {
      const maps = allMaps(slots, experts);
      const placements = maps.map((map) =>
        Placement.from([map], { ranks, experts })
      );
      const costs = placements.map((from) =>
        placements.map((to) => costOf(from, to, topology))
      );
      for (const stagingCells of [1, 2]) {
        const edges = costs.map((row) =>
          row.map(({ cells, entries }, to) => ({ cells, entries, to }))
            .filter(({ cells }) => cells <= stagingCells)
        );
        for (const start of maps.keys()) {
          const fewest = searchAll(start, edges);
          placements.forEach((to, end) => {
            const plan = () =>
              planHops(placements[start]!, to, { topology, stagingCells });
            if (fewest.hops[end] === -1) {
              assertThrows(plan, RangeError, "trade places");
              return;
            }
            if (start === end) return;
            const hops = plan();
            const way = costOfWay(placements[start]!, hops, topology);
            const moreHops = hops.length - fewest.hops[end]!;
            const moreEntries = way.entries - fewest.entries[end]!;
            assert(moreHops <= 2 && moreEntries <= 1);
            pairs++;
            if (moreHops > 0) hopsAbove++;
            if (moreEntries > 0) entriesAbove++;
          });
        }
      }
    }
  }
  assert(pairs > 5000);
  assert(hopsAbove < 0.04 * pairs && entriesAbove < 0.01 * pairs);
});

Deno.test("planHops() moves little more than one hop does in random reshuffles with few cells", () => {
  const shape = { layers: 58, ranks: 2, slotsPerRank: 9, experts: 16 };
  const topology = Topology.uniform({ ranks: 2, nodes: 1 });
  const from = Placement.random({ ...shape, seed: 1 });
  const to = Placement.random({ ...shape, seed: 2 });
  const direct = costOf(from, to, topology);
  for (let stagingCells = 1; stagingCells <= 9; stagingCells++) {
    const hops = planHops(from, to, { topology, stagingCells });
    const way = costOfWay(from, hops, topology);
    assert(way.staged <= 1.1 * direct.staged);
    assert(way.entries <= 1.06 * direct.entries);
    assert(hops.length < 2 * Math.ceil(direct.cells / stagingCells) + 1);
  }
});

Deno.test("planHops() crosses nodes no more than one hop does, relayed through few cells", () => {
  const shape = { layers: 8, ranks: 32, slotsPerRank: 9, experts: 128 };
  const topology = Topology.uniform({ ranks: 32, nodes: 4 });
  const from = Placement.random({ ...shape, seed: 1 });
  const to = Placement.random({ ...shape, seed: 2 });
  const fewest = fewestCrossings({ from, to, topology });
  const direct = costOf(from, to, topology);
  assert(fewest < 0.95 * direct.crossings);
  for (const stagingCells of [1, 2, 4, 9]) {
    const hops = planHops(from, to, { topology, stagingCells });
    const way = costOfWay(from, hops, topology);
    assert(way.crossings <= 1.01 * fewest);
    assert(way.entries <= 1.01 * direct.entries);
  }
});

Deno.test("planHops() refuses placements that differ in shape, another topology, and cells below 1", () => {
  const from = Placement.from([[0, 1]], { ranks: 2 });
  const topology = Topology.uniform({ ranks: 2, nodes: 1 });
  const options = { topology, stagingCells: 1 };
  assertThrows(
    () => planHops(from, Placement.from([[0, 1]], { ranks: 1 }), options),
    RangeError,
    "Cannot plan hops: the shapes differ",
  );
  assertThrows(
    () =>
      planHops(from, from, {
        topology: Topology.uniform({ ranks: 4, nodes: 1 }),
        stagingCells: 1,
      }),
    RangeError,
    "Cannot plan hops: the topology has 4 ranks, the placements 2",
  );
  for (const stagingCells of [0, 1.5, NaN]) {
    assertThrows(
      () => planHops(from, from, { topology, stagingCells }),
      RangeError,
      "Cannot plan hops: stagingCells must be an integer from 1",
    );
  }
});
