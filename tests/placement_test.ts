import { assert, assertEquals, assertFalse, assertThrows } from "@std/assert";
import fc from "fast-check";
import { Placement } from "../lib/placement.ts";

// Refusals are checked with values that the types would not let through.
// deno-lint-ignore no-explicit-any
type Anything = any;

Deno.test("Placement.from() reads rows and flat arrays alike", () => {
  const rows = [[0, 1, 2, 1], [2, 0, -1, 1]];
  const placement = Placement.from(rows, { ranks: 2 });
  const { layers, ranks, slotsPerRank, slots, experts } = placement;
  assertEquals([layers, ranks, slotsPerRank, slots, experts], [2, 2, 2, 4, 3]);
  assertEquals([...placement.physicalToLogical], rows.flat());
  assert(placement.equals(
    Placement.from(Int32Array.from(rows.flat()), { ranks: 2, layers: 2 }),
  ));
});

Deno.test("Placement derives replica counts and the logical to physical map", () => {
  const placement = Placement.from([[1, 0, 1, -1, 1, 2], [0, 1, 2, 2, 0, 1]], {
    ranks: 3,
  });
  assertEquals(placement.maxReplicas, 3);
  assertEquals([...placement.logicalReplicaCount], [1, 3, 1, 2, 2, 2]);
  assertEquals(
    [...placement.logicalToPhysical],
    [1, -1, -1, 0, 2, 4, 5, -1, -1, 0, 4, -1, 1, 5, -1, 2, 3, -1],
  );
});

Deno.test("Placement.logicalToPhysical lists the slots of each expert, whatever the map", () => {
  fc.assert(fc.property(
    fc.integer({ min: 1, max: 3 }),
    fc.integer({ min: 1, max: 4 }),
    fc.integer({ min: 1, max: 5 }),
    fc.integer({ min: 1, max: 20 }),
    fc.nat(),
    (layers, ranks, slotsPerRank, wanted, seed) => {
      const experts = Math.min(wanted, ranks * slotsPerRank);
      const placement = Placement.random({
        layers,
        ranks,
        slotsPerRank,
        experts,
        seed,
      });
      const { physical_to_logical_map: rows } = placement.toJSON();
      const lists = rows.map((row) =>
        Array.from(
          { length: experts },
          (_, expert) => row.flatMap((at, slot) => at === expert ? [slot] : []),
        )
      );
      const longest = Math.max(...lists.flat().map((list) => list.length));
      assertEquals(placement.maxReplicas, longest);
      assertEquals(
        [...placement.logicalReplicaCount],
        lists.flat().map((list) => list.length),
      );
      assertEquals(
        [...placement.logicalToPhysical],
        lists.flat().flatMap((list) => [
          ...list,
          ...new Array<number>(longest - list.length).fill(-1),
        ]),
      );
    },
  ));
});

Deno.test("Placement.from() copies its argument", () => {
  const map = Int32Array.of(0, 1);
  const placement = Placement.from(map, { ranks: 1, layers: 1 });
  map[0] = 1;
  assertEquals([...placement.physicalToLogical], [0, 1]);
});

Deno.test("Placement.from() refuses maps that are no arrays", () => {
  const cases: [Anything, string][] = [
    ["0,1", 'the map must be an Int32Array or an array of layers, got "0,1"'],
    [null, "the map must be an Int32Array or an array of layers, got null"],
    [
      new Float64Array(2),
      "the map must be an Int32Array or an array of layers, got an object",
    ],
    [[[0, 1], 5], "layer 1 must be an array, got 5"],
    [[5, [0, 1]], "layer 0 must be an array, got 5"],
  ];
  for (const [map, message] of cases) {
    assertThrows(
      () => Placement.from(map, { ranks: 1 }),
      TypeError,
      `Cannot create placement: ${message}`,
    );
  }
});

Deno.test("Placement.from() refuses sizes that do not fit together", () => {
  const flat = Int32Array.of(0, 1, 2, 0, 1, 2);
  const cases: [Anything, Anything, string][] = [
    [[], { ranks: 1 }, "layers must be an integer from 1 to 2147483647, got 0"],
    [
      [[]],
      { ranks: 1 },
      "slotsPerRank must be an integer from 1 to 2147483647, got 0",
    ],
    [[[0, 1], [0]], { ranks: 1 }, "layer 1 has 1 slots instead of 2"],
    [[[0, 1]], { ranks: 1, layers: 2 }, "the map has 1 layers instead of 2"],
    [[[0, 1, 2]], { ranks: 2 }, "3 slots do not divide among 2 ranks"],
    [
      [[0, 1, 2]],
      { ranks: 0 },
      "ranks must be an integer from 1 to 2147483647, got 0",
    ],
    [
      [[0, 1, 2]],
      { ranks: 1.5 },
      "ranks must be an integer from 1 to 2147483647, got 1.5",
    ],
    [
      [[0, 1]],
      { ranks: 1, experts: 0 },
      "experts must be an integer from 1 to 2147483647, got 0",
    ],
    [[[0, 1]], { ranks: 1, experts: 3 }, "2 slots cannot hold 3 experts"],
    [
      flat,
      { ranks: 1 },
      "layers must be an integer from 1 to 2147483647, got undefined",
    ],
    [flat, { ranks: 1, layers: 4 }, "6 entries do not divide into 4 layers"],
    [
      [[-1, -1]],
      { ranks: 1 },
      "experts must be an integer from 1 to 2147483647, got 0",
    ],
  ];
  for (const [map, options, message] of cases) {
    assertThrows(
      () => Placement.from(map, options),
      RangeError,
      `Cannot create placement: ${message}`,
    );
  }
});

Deno.test("Placement.from() refuses entries that are no expert, naming layer, slot and value", () => {
  for (const value of [1.5, -2, NaN, "1", null, undefined, 2 ** 31]) {
    assertThrows(
      () => Placement.from([[0, 1], [0, value as Anything]], { ranks: 1 }),
      RangeError,
      `Cannot create placement: layer 1, slot 1 must be an integer from -1 to 2147483646, got ${
        typeof value === "string" ? `"${value}"` : value
      }`,
    );
  }
  assertThrows(
    () => Placement.from([[0, 1], [0, 2]], { ranks: 1, experts: 2 }),
    RangeError,
    "Cannot create placement: layer 1, slot 1 holds 2, not one of 2 experts or -1",
  );
  assertThrows(
    () => Placement.from(Int32Array.of(0, 1, -7, 0), { ranks: 1, layers: 2 }),
    RangeError,
    "Cannot create placement: layer 1, slot 0 holds -7, not one of 2 experts or -1",
  );
});

Deno.test("Placement.from() refuses an expert without a slot, naming layer and expert", () => {
  assertThrows(
    () => Placement.from([[0, 1, 2], [0, 2, 2]], { ranks: 1 }),
    RangeError,
    "Cannot create placement: expert 1 has no slot in layer 1",
  );
});

Deno.test("Placement.contiguous() fills redundant slots from expert 0 on", () => {
  const shape = { layers: 2, ranks: 3, slotsPerRank: 3, experts: 4 };
  const row = [0, 1, 2, 3, 0, 1, 2, 3, 0];
  assertEquals(
    [...Placement.contiguous(shape).physicalToLogical],
    [...row, ...row],
  );
});

Deno.test("Placement.contiguous() and random() refuse sizes that make no placement", () => {
  const shape = { layers: 1, ranks: 2, slotsPerRank: 2, experts: 4 };
  const cases = [
    [{ layers: 0 }, "layers must be an integer from 1 to 2147483647, got 0"],
    [{ ranks: -1 }, "ranks must be an integer from 1 to 2147483647, got -1"],
    [
      { slotsPerRank: 0.5 },
      "slotsPerRank must be an integer from 1 to 2147483647, got 0.5",
    ],
    [{ experts: 0 }, "experts must be an integer from 1 to 2147483647, got 0"],
    [{ experts: 5 }, "4 slots cannot hold 5 experts"],
    [
      { layers: 2 ** 20, ranks: 2 ** 10 },
      "layers * slots must be an integer from 1 to 2147483647, got 2147483648",
    ],
  ] as const;
  for (const [change, message] of cases) {
    const options = { ...shape, ...change };
    for (
      const create of [
        () => Placement.contiguous(options),
        () => Placement.random({ ...options, seed: 1 }),
      ]
    ) {
      assertThrows(create, RangeError, `Cannot create placement: ${message}`);
    }
  }
});

Deno.test("Placement.random() shuffles each layer, the same for the same seed", () => {
  const shape = { layers: 4, ranks: 4, slotsPerRank: 9, experts: 32 };
  const placement = Placement.random({ ...shape, seed: 1 });
  assert(placement.equals(Placement.random({ ...shape, seed: 1 })));
  assertFalse(placement.equals(Placement.random({ ...shape, seed: 2 })));
  const { physical_to_logical_map: rows } = placement.toJSON();
  assertEquals(new Set(rows.map(String)).size, 4);
  for (const row of rows) {
    assertEquals([...new Set(row)].sort((a, b) => a - b), [
      ...Array(32).keys(),
    ]);
  }
});

Deno.test("Placement.random() draws the experts of redundant slots uniformly", () => {
  const { logicalReplicaCount } = Placement.random({
    layers: 1000,
    ranks: 1,
    slotsPerRank: 8,
    experts: 4,
    seed: 3,
  });
  const replicas = [0, 0, 0, 0];
  logicalReplicaCount.forEach((count, i) => replicas[i % 4]! += count);
  // 1000 redundant slots fall to each expert, with a standard deviation of 27.
  for (const count of replicas) {
    assert(Math.abs(count - 2000) < 140, `${replicas}`);
  }
});

Deno.test("Placement.fromJSON() reads what toJSON() writes", () => {
  const placement = Placement.from([[0, 1, -1, 1], [1, 0, 0, -1]], {
    ranks: 2,
  });
  const text = JSON.stringify(placement);
  assertEquals(text, '{"physical_to_logical_map":[[0,1,-1,1],[1,0,0,-1]]}');
  assert(placement.equals(Placement.fromJSON(JSON.parse(text), { ranks: 2 })));
});

Deno.test("Placement.fromJSON() refuses what is no placement", () => {
  const cases: [unknown, string][] = [
    [null, "undefined"],
    [7, "undefined"],
    [[[0, 1]], "undefined"],
    [{}, "undefined"],
    [{ physical_to_logical_map: "0" }, '"0"'],
    [{ physical_to_logical_map: { 0: [0] } }, "an object"],
  ];
  for (const [value, got] of cases) {
    assertThrows(
      () => Placement.fromJSON(value, { ranks: 1 }),
      TypeError,
      `Cannot read placement: "physical_to_logical_map" must be an array of layers, got ${got}`,
    );
  }
  assertThrows(
    () =>
      Placement.fromJSON({ physical_to_logical_map: [[0, 5]] }, {
        ranks: 1,
        experts: 2,
      }),
    RangeError,
    "layer 0, slot 1 holds 5",
  );
});

Deno.test("Placement.mix() takes the first layers from the second placement", () => {
  const from = Placement.from([[0, 1], [0, 1], [0, 1]], { ranks: 2 });
  const to = Placement.from([[1, 0], [1, 0], [1, 0]], { ranks: 2 });
  assert(Placement.mix(from, to, 0).equals(from));
  assertEquals([...Placement.mix(from, to, 2).physicalToLogical], [
    1,
    0,
    1,
    0,
    0,
    1,
  ]);
  assert(Placement.mix(from, to, 3).equals(to));
});

Deno.test("Placement.mix() refuses other shapes and layers that do not exist", () => {
  const from = Placement.from([[0, 1]], { ranks: 2 });
  assertThrows(
    () => Placement.mix(from, Placement.from([[0, 1]], { ranks: 1 }), 1),
    RangeError,
    "Cannot mix placements: the shapes differ, 1 layers on 2 ranks of 1 slots with 2 experts and 1 layers on 1 ranks of 2 slots with 2 experts",
  );
  assertThrows(
    () => Placement.mix(from, from, 2),
    RangeError,
    "Cannot mix placements: committed layers must be an integer from 0 to 1, got 2",
  );
});

Deno.test("Placement.equals() compares maps and shapes", () => {
  const placement = Placement.from([[0, 1, 1, 0]], { ranks: 2 });
  assert(placement.equals(Placement.from([[0, 1, 1, 0]], { ranks: 2 })));
  assertFalse(placement.equals(Placement.from([[0, 1, 0, 1]], { ranks: 2 })));
  assertFalse(placement.equals(Placement.from([[0, 1, 1, 0]], { ranks: 1 })));
  assertFalse(placement.equals(Placement.from([[0, 1], [1, 0]], { ranks: 2 })));
});

Deno.test("Placement cannot be changed", () => {
  const placement = Placement.from([[0]], { ranks: 1 }) as { ranks: number };
  assertThrows(() => placement.ranks = 3, TypeError);
});
