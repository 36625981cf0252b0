import { assertEquals, assertThrows } from "@std/assert";
import fc from "fast-check";
import { planMigration } from "../../lib/migration/plan.ts";
import {
  compileProgram,
  stagingCellsNeeded,
} from "../../lib/migration/program.ts";
import { Placement } from "../../lib/placement.ts";
import { Topology } from "../../lib/topology.ts";
import { rowsByRank } from "./_model.ts";
import { type Operation, parseProgram } from "./_rendezvous.ts";
import type { ScenarioBounds } from "./_scenarios.ts";
import {
  expectedMemory,
  rankPrograms,
  run,
  tasks,
  transfersPerGroup,
} from "./_tasks.ts";

const [SEND, RECEIVE, COPY, DUPLICATE] = [1, 2, 3, 4];
const BOUNDS: ScenarioBounds = {
  layers: [1, 5],
  ranks: [1, 6],
  slotsPerRank: [1, 5],
};

function words(operations: readonly Operation[]): number[][] {
  return operations.map((
    o,
  ) => [o.batch, o.round, o.rank, o.code, o.layer, o.slot, o.peer, o.peerSlot]);
}

Deno.test("compileProgram() writes the layout of eplb.h", () => {
  // Three ranks of two slots, two layers. In layer 0, ranks 0 and 1 swap experts 1 and 2, and rank 2
  // copies expert 4 over expert 3; in layer 1, ranks 0 and 2 swap, and rank 2 gets expert 1 twice.
  const plan = planMigration(
    Placement.from([[0, 1, 2, 3, 4, 3], [0, 1, 2, 3, 4, 3]], { ranks: 3 }),
    Placement.from([[0, 2, 1, 3, 4, 4], [0, 4, 2, 3, 1, 1]], { ranks: 3 }),
    { topology: Topology.uniform({ ranks: 3, nodes: 1 }) },
  );
  const program = compileProgram(plan, { stagingCells: 1 });
  const header = [0x424c5045, 1, 2, 10, 2, 2, 3, 0];
  const batches = [0, 1, 1, 2];
  const operations = [
    ...[0, 0, 0, RECEIVE, 0, 1, 1, 0],
    ...[0, 0, 0, SEND, 0, 1, 1, 0],
    ...[0, 0, 1, SEND, 0, 0, 0, 1],
    ...[0, 0, 1, RECEIVE, 0, 0, 0, 1],
    ...[0, 0, 2, COPY, 0, 1, 2, 0],
    ...[1, 0, 0, RECEIVE, 1, 1, 2, 0],
    ...[1, 0, 0, SEND, 1, 1, 2, 0],
    ...[1, 0, 2, SEND, 1, 0, 0, 1],
    ...[1, 0, 2, RECEIVE, 1, 0, 0, 1],
    ...[1, 0, 2, DUPLICATE, 1, 1, 2, 0],
  ];
  assertEquals([...program.words], [...header, ...batches, ...operations]);
  assertEquals([...program.batches], batches);
  assertEquals([...program.operations], operations);
  assertEquals([program.batchCount, program.operationCount], [2, 10]);
});

Deno.test("compileProgram() copies a resident expert once however many slots get it", () => {
  const plan = planMigration(
    Placement.from([[0, 1, 2, 1, 2]], { ranks: 1 }),
    Placement.from([[2, 1, 2, 2, 0]], { ranks: 1 }),
    { topology: Topology.uniform({ ranks: 1, nodes: 1 }) },
  );
  const program = compileProgram(plan, { stagingCells: 2 });
  assertEquals(stagingCellsNeeded(plan), 2);
  assertEquals([...program.operations], [
    ...[0, 0, 0, COPY, 0, 0, 0, 2],
    ...[0, 0, 0, DUPLICATE, 0, 3, 0, 0],
    ...[0, 0, 0, COPY, 0, 4, 0, 0],
  ]);
});

Deno.test("compileProgram() puts a transfer into the first round with room at both ends", () => {
  // Rank 0 sends experts 0 and 1 to ranks 1 and 2; rank 3 sends expert 2 to rank 2.
  const plan = planMigration(
    Placement.from([[0, 1, -1, -1, -1, -1, 2, -1]], { ranks: 4 }),
    Placement.from([[0, 1, 0, -1, 1, 2, 2, -1]], { ranks: 4 }),
    { topology: Topology.uniform({ ranks: 4, nodes: 1 }) },
  );
  const rounds = (maxOpsPerGroup: number, opsPerExpert = 1) =>
    parseProgram(
      compileProgram(plan, { stagingCells: 2, maxOpsPerGroup, opsPerExpert })
        .words,
    ).operations
      .filter(({ code }) => code === RECEIVE)
      .map(({ round, rank, slot }) => [round, rank, slot]);
  assertEquals(rounds(2), [[0, 1, 0], [0, 2, 0], [0, 2, 1]]);
  // With one transfer at a time, rank 2 gets expert 2 while rank 0 still sends expert 0.
  assertEquals(rounds(1), [[0, 1, 0], [0, 2, 1], [1, 2, 0]]);
  assertEquals(rounds(3, 2), rounds(1));
  assertEquals(rounds(1, 6), rounds(1));
  assertEquals(rounds(12, 6), rounds(2));
});

Deno.test("compileProgram() needs no batch where nothing moves", () => {
  const from = Placement.from([[0, 1, 1]], { ranks: 3 });
  const to = Placement.from([[0, 1, -1]], { ranks: 3 });
  const plan = planMigration(from, to, {
    topology: Topology.uniform({ ranks: 3, nodes: 1 }),
  });
  const program = compileProgram(plan, { stagingCells: 1 });
  assertEquals([...program.words], [0x424c5045, 1, 0, 0, 1, 1, 3, 0]);
  assertEquals(stagingCellsNeeded(plan), 0);
});

Deno.test("compileProgram() leads every rank to the new placement, in any order of events", () => {
  fc.assert(
    fc.property(
      tasks({ layers: [1, 6], ranks: [1, 8], slotsPerRank: [1, 8] }),
      (task) => {
        assertEquals(
          run(task, rankPrograms(task)),
          expectedMemory(task.scenario),
        );
      },
    ),
    { numRuns: 4000 },
  );
});

Deno.test("compileProgram() gives any ranks their part of the whole program", () => {
  fc.assert(
    fc.property(tasks(BOUNDS), (task) => {
      const { plan, options, random } = task;
      const whole = parseProgram(compileProgram(plan, options).words);
      const ranks = [...Array(plan.ranks).keys()].filter(() =>
        random.below(2) === 1
      );
      const part = parseProgram(
        compileProgram(plan, { ...options, ranks }).words,
      );
      assertEquals(part.batches, whole.batches);
      assertEquals(
        words(part.operations),
        words(whole.operations.filter(({ rank }) => ranks.includes(rank))),
      );
    }),
    { numRuns: 500 },
  );
});

Deno.test("compileProgram() packs layers while they fit into every rank's staging cells", () => {
  fc.assert(
    fc.property(
      tasks({ ...BOUNDS, layers: [1, 12] }),
      ({ plan, options, scenario }) => {
        const { from, to } = scenario;
        const { direct, maxLayersPerBatch } = options;
        // Experts that each rank gets or copies, by layer; but for those it writes at once.
        const staged = Array.from({ length: from.layers }, (_, layer) => {
          const old = rowsByRank(from, layer);
          return rowsByRank(to, layer).map((row, rank) =>
            new Set(
              row.filter((expert, slot) =>
                expert >= 0 && expert !== old[rank]![slot] &&
                !direct[layer * from.slots + rank * from.slotsPerRank + slot]
              ),
            ).size
          );
        });
        assertEquals(
          stagingCellsNeeded(plan, direct),
          Math.max(...staged.flat()),
        );
        const changing = (first: number, end: number) =>
          [...Array(end).keys()].slice(first).filter((layer) =>
            staged[layer]!.some((count) => count > 0) ||
            direct.subarray(layer * from.slots, (layer + 1) * from.slots)
              .includes(1)
          ).length;
        const fits = (first: number, end: number) =>
          changing(first, end) <= maxLayersPerBatch &&
          staged[0]!.every((_, rank) =>
            staged.slice(first, end).reduce(
              (sum, layer) => sum + layer[rank]!,
              0,
            ) <=
              options.stagingCells
          );
        const expected: number[][] = [];
        for (let first = 0; first < from.layers;) {
          let end = first + 1;
          while (end < from.layers && fits(first, end + 1)) {
            end++;
          }
          expected.push([first, end]);
          first = end;
        }
        const { batches } = compileProgram(plan, options);
        const moves = staged.flat().some((count) => count > 0) ||
          direct.includes(1);
        assertEquals([...batches], moves ? expected.flat() : []);
      },
    ),
    { numRuns: 500 },
  );
});

Deno.test("compileProgram() gives each transfer the first round with room", () => {
  fc.assert(
    fc.property(
      tasks({ layers: [1, 4], ranks: [2, 8], slotsPerRank: [1, 6] }),
      (task) => {
        const { plan, options } = task;
        const { operations } = parseProgram(
          compileProgram(plan, options).words,
        );
        const most = transfersPerGroup(task);
        const receives = operations.filter(({ code }) => code === RECEIVE).sort(
          (a, b) => a.layer - b.layer || a.rank - b.rank || a.slot - b.slot,
        );
        const taken = new Map<string, number>();
        const count = (...key: number[]) => taken.get(key.join()) ?? 0;
        for (const { batch, round, rank, peer } of receives) {
          let first = 0;
          while (
            count(batch, first, rank) >= most ||
            count(batch, first, peer) >= most
          ) first++;
          assertEquals(round, first);
          for (const end of [rank, peer]) {
            taken.set([batch, first, end].join(), count(batch, first, end) + 1);
          }
        }
      },
    ),
    { numRuns: 500 },
  );
});

Deno.test("compileProgram() refuses a layer that does not fit, naming layer, rank and cells", () => {
  const plan = planMigration(
    Placement.from([[0, 1, 2, 3], [0, 1, 2, 3]], { ranks: 2 }),
    Placement.from([[0, 2, 1, 3], [0, 1, 3, 2]], { ranks: 2 }),
    { topology: Topology.uniform({ ranks: 2, nodes: 1 }) },
  );
  assertThrows(
    () => compileProgram(plan, { stagingCells: 1 }),
    RangeError,
    "Cannot compile program: layer 1 needs 2 staging cells on rank 1, there are 1",
  );
});

Deno.test("compileProgram() refuses options that are not in range", () => {
  const from = Placement.from([[0, 1]], { ranks: 2 });
  const plan = planMigration(from, from, {
    topology: Topology.uniform({ ranks: 2, nodes: 1 }),
  });
  const cases = [
    [
      { stagingCells: 0 },
      "stagingCells must be an integer from 1 to 2147483647, got 0",
    ],
    [
      { maxOpsPerGroup: 0.5 },
      "maxOpsPerGroup must be an integer from 1 to 2147483647, got 0.5",
    ],
    [
      { opsPerExpert: -1 },
      "opsPerExpert must be an integer from 1 to 2147483647, got -1",
    ],
    [{ ranks: [0, 2] }, "a rank must be an integer from 0 to 1, got 2"],
  ] as const;
  for (const [options, message] of cases) {
    assertThrows(
      () => compileProgram(plan, { stagingCells: 1, ...options }),
      RangeError,
      `Cannot compile program: ${message}`,
    );
  }
});
