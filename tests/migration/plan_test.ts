import { assert, assertEquals, assertThrows } from "@std/assert";
import fc from "fast-check";
import {
  MigrationCase,
  type MigrationPlan,
  planMigration,
} from "../../lib/migration/plan.ts";
import { Placement } from "../../lib/placement.ts";
import { Topology } from "../../lib/topology.ts";
import {
  type CaseName,
  expectedCases,
  holdersOf,
  rowsByRank,
} from "./_model.ts";
import { type ScenarioBounds, scenarios } from "./_scenarios.ts";

const { empty, unchanged, sameRank, duplicate, sameNode, crossNode } =
  MigrationCase;
const NAMES = Object.keys(MigrationCase) as CaseName[];
const SOURCES = ["balanced", "chunked"] as const;
const BOUNDS: ScenarioBounds = {
  layers: [1, 3],
  ranks: [1, 6],
  slotsPerRank: [1, 5],
};

// Carries a plan out on arrays of expert ids: all but duplicates read the old map.
function execute(plan: MigrationPlan, from: Placement): Int32Array {
  const { slots, cases, source } = plan;
  const old = from.physicalToLogical;
  const now = old.slice();
  for (const duplicates of [false, true]) {
    cases.forEach((kind, cell) => {
      if (kind < sameRank || (kind === duplicate) !== duplicates) return;
      const at = cell - cell % slots + source[cell]!;
      now[cell] = duplicates ? now[at]! : old[at]!;
    });
  }
  return now;
}

Deno.test("planMigration() finds the case and the source of each slot", () => {
  // Two nodes of two ranks of three slots.
  const plan = planMigration(
    Placement.from([[0, 0, 1, 2, 3, -1, 4, 5, 6, 7, 2, 5]], { ranks: 4 }),
    Placement.from([[0, 1, 2, 4, 4, 3, 4, 5, 7, -1, 6, 0]], { ranks: 4 }),
    { topology: Topology.uniform({ ranks: 4, nodes: 2 }) },
  );
  assertEquals([...plan.cases], [
    ...[unchanged, sameRank, sameNode],
    ...[crossNode, duplicate, sameRank],
    ...[unchanged, unchanged, sameNode],
    ...[empty, sameNode, crossNode],
  ]);
  assertEquals(
    [...plan.source],
    [-1, 2, 3, 6, 3, 4, -1, -1, 9, -1, 8, 0],
  );
  assertEquals(plan.counts, {
    unchanged: 3,
    sameRank: 2,
    duplicate: 1,
    sameNode: 3,
    crossNode: 2,
  });
  const { layers, ranks, slots, slotsPerRank, sources } = plan;
  assertEquals([layers, ranks, slots, slotsPerRank], [1, 4, 12, 3]);
  assertEquals(sources, "balanced");
});

Deno.test("planMigration() leads to the new placement", () => {
  fc.assert(
    fc.property(
      scenarios(BOUNDS),
      fc.constantFrom(...SOURCES),
      ({ from, to, topology }, sources) => {
        const now = execute(
          planMigration(from, to, { topology, sources }),
          from,
        );
        // The bytes of a slot that becomes empty do not matter.
        to.physicalToLogical.forEach((expert, cell) => {
          if (expert >= 0) assertEquals(now[cell], expert);
        });
      },
    ),
    { numRuns: 1000 },
  );
});

Deno.test("planMigration() finds the cases that their definitions say", () => {
  fc.assert(
    fc.property(
      scenarios(BOUNDS),
      fc.constantFrom(...SOURCES),
      ({ from, to, topology }, sources) => {
        const plan = planMigration(from, to, { topology, sources });
        const live = [...Array(from.ranks).keys()];
        const names = expectedCases(from, to, { topology, live });
        assertEquals(Array.from(plan.cases, (kind) => NAMES[kind]), names);
        for (const [name, count] of Object.entries(plan.counts)) {
          assertEquals(count, names.filter((other) => other === name).length);
        }
      },
    ),
    { numRuns: 500 },
  );
});

Deno.test("planMigration() names the lowest slot of a live holder, or the slot that shares", () => {
  fc.assert(
    fc.property(
      scenarios(BOUNDS),
      fc.constantFrom(...SOURCES),
      fc.nat(),
      ({ from, to, topology }, sources, dead) => {
        const all = [...Array(from.ranks).keys()];
        const live = all.filter((rank) => rank !== dead % from.ranks);
        const names = expectedCases(from, to, { topology, live });
        let plan: MigrationPlan;
        try {
          plan = planMigration(from, to, { topology, sources, live });
        } catch (error) {
          assert(error instanceof RangeError);
          // Refused only where a rank needs what only the dead rank holds.
          assert(
            names.some((name, cell) =>
              name === "crossNode" && holdersOf(from, {
                  layer: Math.floor(cell / from.slots),
                  expert: to.physicalToLogical[cell]!,
                  live,
                }).length === 0
            ),
          );
          return;
        }
        plan.source.forEach((source, cell) => {
          const name = names[cell]!;
          assertEquals(NAMES[plan.cases[cell]!], name);
          if (name === "empty" || name === "unchanged") {
            assertEquals(source, -1);
            return;
          }
          const [layer, slot] = [
            Math.floor(cell / from.slots),
            cell % from.slots,
          ];
          const [rank, sender] = [slot, source].map((s) =>
            Math.floor(s / from.slotsPerRank)
          ) as [number, number];
          const expert = to.physicalToLogical[cell]!;
          const rows = rowsByRank(name === "duplicate" ? to : from, layer);
          const lowest = rows[sender]!.indexOf(expert);
          assertEquals(source, sender * from.slotsPerRank + lowest);
          if (name === "sameRank" || name === "duplicate") {
            assertEquals(sender, rank);
          } else {
            assert(live.includes(sender));
            assertEquals(
              topology.sameNode(sender, rank),
              name === "sameNode",
            );
          }
        });
      },
    ),
    { numRuns: 1000 },
  );
});

Deno.test("planMigration() moves nothing between equal placements", () => {
  fc.assert(fc.property(scenarios(BOUNDS), ({ from, topology }) => {
    const { counts, source } = planMigration(from, from, { topology });
    const moved = { sameRank: 0, duplicate: 0, sameNode: 0, crossNode: 0 };
    const held = from.physicalToLogical.filter((expert) => expert >= 0).length;
    assertEquals(counts, { unchanged: held, ...moved });
    assert(source.every((slot) => slot === -1));
  }));
});

Deno.test("planMigration() finds the same plan again", () => {
  const shape = { layers: 5, ranks: 8, slotsPerRank: 5, experts: 20 };
  const from = Placement.random({ ...shape, seed: 1 });
  const to = Placement.random({ ...shape, seed: 2 });
  for (const sources of SOURCES) {
    const topology = Topology.uniform({ ranks: 8, nodes: 2 });
    const [first, second] = [0, 1].map(() =>
      planMigration(from, to, { topology, sources }).source
    );
    assertEquals(first, second);
  }
});

Deno.test("planMigration() takes experts from live ranks alone", () => {
  const plan = planMigration(
    Placement.from([[0, 0, -1]], { ranks: 3 }),
    Placement.from([[0, 0, 0]], { ranks: 3 }),
    { topology: Topology.fromNodes([0, 1, 0]), live: [1, 2] },
  );
  // Rank 0 is on the same node, but may not send.
  assertEquals([...plan.cases], [unchanged, unchanged, crossNode]);
  assertEquals([...plan.source], [-1, -1, 1]);
});

Deno.test("planMigration() refuses an expert that no live rank holds", () => {
  const from = Placement.from([[0, 1, 2], [0, 1, 2]], { ranks: 3 });
  const to = Placement.from([[0, 1, 2], [0, 2, 1]], { ranks: 3 });
  const topology = Topology.uniform({ ranks: 3, nodes: 1 });
  assertThrows(
    () => planMigration(from, to, { topology, live: [0, 1] }),
    RangeError,
    "Cannot plan migration: no live rank holds expert 2 of layer 1, which rank 1 needs",
  );
});

Deno.test("planMigration() refuses placements and topologies that do not fit together", () => {
  const from = Placement.from([[0, 1]], { ranks: 2 });
  const topology = Topology.uniform({ ranks: 2, nodes: 1 });
  assertThrows(
    () =>
      planMigration(from, Placement.from([[0, 0]], { ranks: 2 }), { topology }),
    RangeError,
    "Cannot plan migration: the shapes differ, 1 layers on 2 ranks of 1 slots with 2 experts and 1 layers on 2 ranks of 1 slots with 1 experts",
  );
  assertThrows(
    () =>
      planMigration(from, from, {
        topology: Topology.uniform({ ranks: 4, nodes: 1 }),
      }),
    RangeError,
    "Cannot plan migration: the topology has 4 ranks, the placements 2",
  );
});

Deno.test("planMigration() refuses options that it does not know", () => {
  const from = Placement.from([[0, 1]], { ranks: 2 });
  const topology = Topology.uniform({ ranks: 2, nodes: 1 });
  assertThrows(
    () => planMigration(from, from, { topology, live: [0, 2] }),
    RangeError,
    "Cannot plan migration: a live rank must be an integer from 0 to 1, got 2",
  );
  for (const sources of ["fastest", "constructor"]) {
    assertThrows(
      () =>
        planMigration(from, from, { topology, sources: sources as "balanced" }),
      RangeError,
      `Cannot plan migration: sources must be "balanced" or "chunked", got "${sources}"`,
    );
  }
});
