import { assert, assertEquals, assertThrows } from "@std/assert";
import fc from "fast-check";
import { MigrationCase, type MigrationPlan, planMigration } from "../../lib/migration/plan.ts";
import { Placement } from "../../lib/placement.ts";
import { Topology } from "../../lib/topology.ts";
import { type CaseName, expectedCases, holdersOf } from "./_model.ts";
import { scenarios } from "./_scenarios.ts";

const { empty, unchanged, sameRank, duplicate, sameNode, crossNode } = MigrationCase;
const NAMES = Object.keys(MigrationCase) as CaseName[];
const BOUNDS = { layers: 3, ranks: 6, slotsPerRank: 5 };

function oneNode(ranks: number): { topology: Topology } {
  return { topology: Topology.uniform({ ranks, nodes: 1 }) };
}

// Carries a plan out on arrays of expert ids: everything but duplicates reads the old map.
function execute(plan: MigrationPlan, from: Placement): Int32Array {
  const { slots, cases, source } = plan;
  const old = from.physicalToLogical;
  const now = old.slice();
  for (const isDuplicate of [false, true]) {
    cases.forEach((kind, cell) => {
      if (kind < sameRank || (kind === duplicate) !== isDuplicate) return;
      const at = cell - cell % slots + source[cell]!;
      now[cell] = isDuplicate ? now[at]! : old[at]!;
    });
  }
  return now;
}

Deno.test("planMigration() finds each case", () => {
  // Two nodes of two ranks; rank 0 holds expert 0 twice.
  const plan = planMigration(
    Placement.from([[0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, -1]], { ranks: 4 }),
    Placement.from([[0, 2, 0, 2, 2, 2, 4, 0, 1, -1, 2, 4]], { ranks: 4, experts: 10 }).physicalToLogical.length
      ? Placement.from([[0, 3, 3, 4, 5, 1, 6, 7, 8, 9, 2, 2]], { ranks: 4 })
      : Placement.from([[0]], { ranks: 1 }),
    { topology: Topology.uniform({ ranks: 4, nodes: 2 }) },
  );
  assertEquals(plan.layers, 1);
});
