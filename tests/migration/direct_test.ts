import { assert, assertEquals, assertThrows } from "@std/assert";
import fc from "fast-check";
import { directSlots, drained } from "../../lib/migration/direct.ts";
import { planMigration } from "../../lib/migration/plan.ts";
import {
  compileProgram,
  stagingCellsNeeded,
} from "../../lib/migration/program.ts";
import { Placement } from "../../lib/placement.ts";
import { Topology } from "../../lib/topology.ts";
import { scenarios } from "./_scenarios.ts";

const BOUNDS = {
  layers: [1, 4],
  ranks: [1, 6],
  slotsPerRank: [1, 6],
} as const;
const [RECEIVE, COPY] = [2, 3];

Deno.test("directSlots() are slots that get another expert, that no operation reads, and whose expert lives on", () => {
  let found = 0;
  fc.assert(
    fc.property(scenarios(BOUNDS), ({ from, to, topology }) => {
      const plan = planMigration(from, to, { topology });
      const direct = directSlots(plan, from);
      const { operations } = compileProgram(plan, { stagingCells: 1000 });
      const read = new Set<string>();
      const written = new Set<string>();
      for (let at = 0; at < operations.length; at += 8) {
        const [rank, code, layer, slot, peer, peerSlot] = operations.subarray(
          at + 2,
        );
        const name = (rank: number, slot: number): string =>
          `${layer} ${rank * from.slotsPerRank + slot}`;
        if (code === RECEIVE || code === COPY) {
          written.add(name(rank!, slot!));
          read.add(name(peer!, peerSlot!));
        }
      }
      direct.forEach((flag, cell) => {
        if (!flag) return;
        found++;
        const name = `${Math.floor(cell / from.slots)} ${cell % from.slots}`;
        assert(written.has(name), "something arrives");
        assert(!read.has(name), "nobody reads it");
      });
      // Placement.from() refuses a map in which an expert has no slot.
      const rest = drained(from, direct);
      rest.physicalToLogical.forEach((expert, cell) =>
        assertEquals(
          expert,
          direct[cell] ? -1 : from.physicalToLogical[cell],
        )
      );
    }),
  );
  assert(found > 0);
});

Deno.test("directSlots() need no staging: redundant copies alone take none", () => {
  // Two ranks; slots 2 and 5 are redundant, and get other experts.
  const from = Placement.from([[0, 1, 0, 2, 3, 1]], { ranks: 2 });
  const to = Placement.from([[0, 1, 3, 2, 3, 0]], { ranks: 2 });
  const topology = Topology.uniform({ ranks: 2, nodes: 1 });
  const plan = planMigration(from, to, { topology });
  const direct = directSlots(plan, from);
  assertEquals([...direct], [0, 0, 1, 0, 0, 1]);
  assertEquals(stagingCellsNeeded(plan), 1);
  assertEquals(stagingCellsNeeded(plan, direct), 0);
  const program = compileProgram(plan, { stagingCells: 1, direct });
  assertEquals([...program.batches], [0, 1]);
  assertEquals(
    program.operations.filter((_, i) => i % 8 === 3),
    Int32Array.of(
      ...[0x102, 1, 1, 0x102],
    ),
  );
});

Deno.test("directSlots() leave the last copy of an expert where it is", () => {
  // Every slot changes; experts 0 and 1 have two copies each.
  const from = Placement.from([[0, 1, 0, 1]], { ranks: 4 });
  const to = Placement.from([[1, 0, 1, 0]], { ranks: 4 });
  const topology = Topology.uniform({ ranks: 4, nodes: 1 });
  const plan = planMigration(from, to, { topology });
  const map = drained(from, directSlots(plan, from)).physicalToLogical;
  assert(map.includes(0) && map.includes(1));
});

Deno.test("directSlots() exclude what shares its bytes with another slot", () => {
  // Rank 0 copies expert 0 into two slots, and receives expert 3 for two.
  const from = Placement.from([[0, 1, 1, 2, 2, 3, 3, 3, 3, 3]], { ranks: 2 });
  const to = Placement.from([[0, 0, 0, 3, 3, 1, 2, 3, 3, 3]], { ranks: 2 });
  const topology = Topology.uniform({ ranks: 2, nodes: 1 });
  const plan = planMigration(from, to, { topology });
  assertEquals([...directSlots(plan, from)].slice(0, 5), [0, 0, 0, 0, 0]);
});

Deno.test("drained() refuses flags of another size, and the last copy of an expert", () => {
  const from = Placement.from([[0, 1]], { ranks: 2 });
  assertThrows(
    () => drained(from, new Uint8Array(3)),
    RangeError,
    "Cannot drain slots: there are 3 flags for 2 slots",
  );
  assertThrows(() => drained(from, Uint8Array.of(1, 0)), RangeError);
  assert(drained(from, new Uint8Array(2)) === from);
});

Deno.test("compileProgram() refuses flags of direct slots of another size", () => {
  const from = Placement.from([[0, 1]], { ranks: 2 });
  const topology = Topology.uniform({ ranks: 2, nodes: 1 });
  const plan = planMigration(from, from, { topology });
  assertThrows(
    () => compileProgram(plan, { stagingCells: 1, direct: new Uint8Array(1) }),
    RangeError,
    "there are 1 flags of direct slots for 2 slots",
  );
});
