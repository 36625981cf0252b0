import {
  assert,
  assertAlmostEquals,
  assertEquals,
  assertThrows,
} from "@std/assert";
import fc from "fast-check";
import {
  buildDispatchTables,
  type DispatchTables,
  type DispatchTablesOptions,
  type ReplicaChoice,
} from "../../lib/dispatch/tables.ts";
import { Placement } from "../../lib/placement.ts";
import { Topology } from "../../lib/topology.ts";
import {
  cellsOf,
  naiveParts,
  partsIn,
  replicasOf,
  type Scene,
  scenes,
} from "./_model.ts";

const LAST = 2 ** 32 - 1;

function rows(tables: DispatchTables): number[][] {
  return Array.from(
    tables.replicaCount,
    (_, cell) => [...tables.logicalToPhysical.subarray(
      cell * tables.maxReplicas,
      (cell + 1) * tables.maxReplicas,
    )],
  );
}

Deno.test("buildDispatchTables() splits the hashes by the shares", () => {
  const placement = Placement.from([[0, 1, 0, 2, 0]], { ranks: 5 });
  const shares = new Float64Array([0.5, 1, 0.125, 1, 0.375]);
  const tables = buildDispatchTables(placement, { shares });
  assertEquals(tables.firstLayer, 0);
  assertEquals([tables.layers, tables.experts, tables.maxReplicas], [1, 3, 3]);
  assertEquals([...tables.replicaCount], [3, 1, 1]);
  assertEquals(rows(tables), [[0, 2, 4], [1, -1, -1], [3, -1, -1]]);
  // deno-fmt-ignore
  assertEquals([...tables.thresholds], [
    2 ** 31, 0.625 * 2 ** 32, LAST,
    LAST, LAST, LAST,
    LAST, LAST, LAST,
  ]);
});

Deno.test("buildDispatchTables() rounds shares alike everywhere", () => {
  const placement = Placement.from([[0, 0, 0]], { ranks: 3 });
  const thirds = buildDispatchTables(placement);
  assertEquals([...thirds.thresholds], [1431655765, 2863311531, LAST]);
  const shares = new Float64Array([1, 1e-12, 1e-12]);
  const tiny = buildDispatchTables(placement, { shares });
  assertEquals([...tiny.thresholds], [LAST, LAST, LAST]);
});

const WAYS: readonly DispatchTablesOptions[] = [
  {},
  { replicas: "uniform" },
  { nearest: true },
  { replicas: "uniform", nearest: true },
];

/** Options of a scene: a way to choose, with and without shares. */
function optionsOf(
  scene: Scene,
  way: DispatchTablesOptions,
): DispatchTablesOptions[] {
  const { rank, topology, shares } = scene;
  return [{ ...way, rank, topology }, { ...way, rank, topology, shares }];
}

Deno.test("buildDispatchTables() gives each replica the part that a naive model gives it", () => {
  fc.assert(fc.property(scenes, fc.constantFrom(...WAYS), (scene, way) => {
    for (const options of optionsOf(scene, way)) {
      const tables = buildDispatchTables(scene.placement, options);
      for (const cell of cellsOf(scene.placement)) {
        const parts = partsIn(tables, cell);
        const expected = naiveParts(scene, { ...options, ...cell });
        assertEquals(
          parts.map(({ slot }) => slot),
          expected.map(({ slot }) => slot),
        );
        for (const [i, { part }] of parts.entries()) {
          assertAlmostEquals(part, expected[i]!.part, 2 ** -31);
        }
      }
    }
  }));
});

Deno.test("buildDispatchTables() gives tables that the library takes", () => {
  const choice = fc.constantFrom<ReplicaChoice>("shares", "uniform", "static");
  fc.assert(
    fc.property(scenes, choice, fc.boolean(), (scene, replicas, nearest) => {
      const { placement } = scene;
      const tables = buildDispatchTables(placement, {
        ...scene,
        replicas,
        nearest,
      });
      const { maxReplicas, thresholds } = tables;
      assertEquals(maxReplicas, placement.slots - placement.experts + 1);
      for (const [cell, row] of rows(tables).entries()) {
        const count = tables.replicaCount[cell]!;
        assert(count >= 1 && count <= maxReplicas);
        assert(row.every((slot, i) => i < count ? slot >= 0 : slot === -1));
        const bounds = [...thresholds.subarray(cell * maxReplicas)]
          .slice(0, maxReplicas);
        assert(bounds.every((bound, i) => i === 0 || bound >= bounds[i - 1]!));
        assert(bounds.slice(count - 1).every((bound) => bound === LAST));
      }
    }),
  );
});

/** The replica of each rank, found by going through the ranks in order. */
function naiveStatic(
  { placement, topology }: Scene,
  cell: { readonly layer: number; readonly expert: number },
): number[] {
  const replicas = replicasOf(placement, cell);
  const ownerOf = (slot: number): number =>
    Math.floor(slot / placement.slotsPerRank);
  const turns = new Map<string, number>();
  return Array.from({ length: placement.ranks }, (_, rank) => {
    const own = replicas.filter((slot) => ownerOf(slot) === rank);
    if (own.length > 0) return own[0]!;
    const near = replicas.filter((slot) =>
      topology.sameNode(ownerOf(slot), rank)
    );
    const among = near.length > 0 ? near : replicas;
    const who = near.length > 0 ? `node ${topology.nodeOf[rank]}` : "all";
    const turn = turns.get(who) ?? cell.layer + cell.expert;
    turns.set(who, turn + 1);
    return among[turn % among.length]!;
  });
}

Deno.test('buildDispatchTables() with "static" gives each rank one replica, the nearest, in turns', () => {
  fc.assert(fc.property(scenes, (scene) => {
    const { placement, topology } = scene;
    for (const rank of Array(placement.ranks).keys()) {
      const options = { replicas: "static", rank, topology } as const;
      const tables = buildDispatchTables(placement, options);
      for (const cell of cellsOf(placement)) {
        assertEquals(partsIn(tables, cell), [
          { slot: naiveStatic(scene, cell)[rank]!, part: 1 },
        ]);
      }
    }
  }));
});

Deno.test('buildDispatchTables() with "static" serves as many far ranks from each replica', () => {
  // Expert 0 is on ranks 0 and 1; six ranks on other nodes have none near.
  const placement = Placement.from([[0, 0, 1, 2, 3, 4, 5, 6]], { ranks: 8 });
  const topology = Topology.fromNodes([0, 1, 2, 2, 2, 3, 3, 3]);
  const served = [0, 0];
  for (let rank = 0; rank < 8; rank++) {
    const options = { replicas: "static", rank, topology } as const;
    served[buildDispatchTables(placement, options).logicalToPhysical[0]!]!++;
  }
  assertEquals(served, [4, 4]);
});

Deno.test("buildDispatchTables() of some layers is a part of that of all", () => {
  fc.assert(fc.property(scenes, fc.nat(), fc.nat(), (scene, first, more) => {
    const { placement: { layers, experts } } = scene;
    const firstLayer = first % layers;
    const count = 1 + more % (layers - firstLayer);
    for (const replicas of ["shares", "static"] as const) {
      const all = buildDispatchTables(scene.placement, { ...scene, replicas });
      const some = buildDispatchTables(scene.placement, {
        ...scene,
        replicas,
        firstLayer,
        layers: count,
      });
      const cells = [firstLayer * experts, (firstLayer + count) * experts];
      const places = cells.map((cell) => cell * all.maxReplicas);
      assertEquals([some.firstLayer, some.layers], [firstLayer, count]);
      assertEquals(some.replicaCount, all.replicaCount.slice(...cells));
      assertEquals(
        some.logicalToPhysical,
        all.logicalToPhysical.slice(...places),
      );
      assertEquals(some.thresholds, all.thresholds.slice(...places));
    }
  }));
});

Deno.test("buildDispatchTables() has as much room as asked for, and refuses more choices", () => {
  const placement = Placement.from([[0, 1, 2, 3, 3], [3, 2, 1, 1, 0]], {
    ranks: 5,
  });
  const roomy = buildDispatchTables(placement, { maxReplicas: 7 });
  assertEquals(roomy.maxReplicas, 7);
  assertEquals(rows(roomy)[3], [3, 4, -1, -1, -1, -1, -1]);
  assertThrows(
    () => buildDispatchTables(placement, { maxReplicas: 1, firstLayer: 1 }),
    RangeError,
    "Cannot build dispatch tables: layer 1, expert 1 has 2 replicas to choose from, more than maxReplicas 1",
  );
  // Drained replicas take no room.
  const shares = new Float64Array([1, 1, 1, 1, 0, 1, 1, 0, 1, 1]);
  const drained = buildDispatchTables(placement, { maxReplicas: 1, shares });
  assertEquals(rows(drained).flat(), [0, 1, 2, 3, 4, 3, 1, 0]);
});

Deno.test("buildDispatchTables() refuses shares that do not fit the placement", () => {
  const placement = Placement.from([[0, 1, 0], [0, 1, -1]], { ranks: 3 });
  const build = (...shares: number[]): DispatchTables =>
    buildDispatchTables(placement, { shares: new Float64Array(shares) });
  build(0.5, 1, 0.5, 1, 1, NaN); // of an empty slot
  assertThrows(
    () => build(1, 1, 1),
    RangeError,
    "3 shares are given for 2 layers of 3 slots",
  );
  for (const share of [-0.5, NaN, Infinity, 1.01]) {
    assertThrows(
      () => build(0.5, 1, 0.5, 1, share, 0),
      RangeError,
      `layer 1, slot 1 has share ${share}, not one from 0 to 1`,
    );
  }
});

Deno.test("buildDispatchTables() refuses layers, ranks and topologies that are not there", () => {
  const placement = Placement.from([[0, 1], [0, 1]], { ranks: 2 });
  const topology = Topology.uniform({ ranks: 2, nodes: 1 });
  const refused = (
    options: DispatchTablesOptions,
    message: string,
    type: new (message: string) => Error = RangeError,
  ): void => {
    assertThrows(() => buildDispatchTables(placement, options), type, message);
  };
  refused({ firstLayer: 2 }, "firstLayer must be an integer from 0 to 1");
  refused(
    { firstLayer: 1, layers: 2 },
    "layers must be an integer from 1 to 1",
  );
  refused({ layers: 0 }, "layers must be an integer from 1 to 2");
  refused({ maxReplicas: 0 }, "maxReplicas must be an integer from 1");
  const missing = '"nearest" and "static" need a rank and a topology';
  refused({ nearest: true, rank: 0 }, missing, TypeError);
  refused({ replicas: "static", topology }, missing, TypeError);
  refused(
    { nearest: true, rank: 2, topology },
    "rank must be an integer from 0 to 1, got 2",
  );
  refused(
    {
      replicas: "static",
      rank: 0,
      topology: Topology.uniform({ ranks: 4, nodes: 1 }),
    },
    "the topology has 4 ranks, the placement 2",
  );
  refused(
    { replicas: "random" as ReplicaChoice },
    '"replicas" must be "shares", "uniform" or "static", got "random"',
    TypeError,
  );
});
