import { assert, assertEquals, assertThrows } from "@std/assert";
import { Topology } from "../lib/topology.ts";

Deno.test("Topology.uniform() puts contiguous ranks on a node", () => {
  const topology = Topology.uniform({ ranks: 6, nodes: 3 });
  assertEquals(topology.ranks, 6);
  assertEquals(topology.nodes, 3);
  assertEquals([...topology.nodeOf], [0, 0, 1, 1, 2, 2]);
  assertEquals([...topology.nodeIds], [0, 1, 2]);
});

Deno.test("Topology.uniform() refuses sizes that make no topology", () => {
  const cases = [
    [
      { ranks: 0, nodes: 1 },
      "ranks must be an integer from 1 to 2147483647, got 0",
    ],
    [
      { ranks: 4, nodes: 0 },
      "nodes must be an integer from 1 to 2147483647, got 0",
    ],
    [
      { ranks: 4.5, nodes: 1 },
      "ranks must be an integer from 1 to 2147483647, got 4.5",
    ],
    [{ ranks: 6, nodes: 4 }, "6 ranks do not divide among 4 nodes"],
    [{ ranks: 2, nodes: 4 }, "2 ranks do not divide among 4 nodes"],
  ] as const;
  for (const [options, message] of cases) {
    assertThrows(
      () => Topology.uniform(options),
      RangeError,
      `Cannot create topology: ${message}`,
    );
  }
});

Deno.test("Topology.fromNodes() keeps any table of nodes", () => {
  const topology = Topology.fromNodes([40, 7, 40, 7, 7, 9]);
  assertEquals(topology.nodes, 3);
  assertEquals([...topology.nodeIds], [7, 9, 40]);
  assertEquals([...topology.nodeOf], [2, 0, 2, 0, 0, 1]);
  assertEquals(topology.ranksOf(0), [1, 3, 4]);
  assertEquals(topology.ranksOf(1), [5]);
  assertEquals(topology.ranksOf(2), [0, 2]);
  assert(topology.sameNode(1, 4));
  assert(topology.sameNode(5, 5));
  assert(!topology.sameNode(0, 1));
});

Deno.test("Topology.fromNodes() does not follow its argument", () => {
  const table = Int32Array.of(0, 1);
  const topology = Topology.fromNodes(table);
  table[1] = 0;
  assertEquals([...topology.nodeOf], [0, 1]);
});

Deno.test("Topology.fromNodes() refuses what is no table of nodes", () => {
  assertThrows(
    () => Topology.fromNodes([]),
    RangeError,
    "Cannot create topology: there are no ranks",
  );
  for (const node of [-1, 1.5, NaN, 2 ** 31]) {
    assertThrows(
      () => Topology.fromNodes([0, node]),
      RangeError,
      `Cannot create topology: the node of rank 1 must be an integer from 0 to 2147483647, got ${node}`,
    );
  }
});

Deno.test("Topology leaves rates that are not given unknown", () => {
  const { intraNode, interNode, uplink } = Topology.uniform({
    ranks: 2,
    nodes: 1,
  });
  assertEquals([intraNode, interNode, uplink], [
    undefined,
    undefined,
    undefined,
  ]);
});

Deno.test("Topology gives one rate to all ranks or each its own", () => {
  const topology = Topology.fromNodes([0, 1, 1], {
    intraNode: 400,
    interNode: [10, 20, 30],
  });
  assertEquals([...topology.intraNode!], [400, 400, 400]);
  assertEquals([...topology.interNode!], [10, 20, 30]);
});

Deno.test("Topology sums the ranks' rates where no uplink is given", () => {
  const rates = { interNode: [10, 20, 30] };
  assertEquals([...Topology.fromNodes([0, 1, 1], rates).uplink!], [10, 50]);
  const given = Topology.fromNodes([0, 1, 1], { ...rates, uplink: 25 });
  assertEquals([...given.uplink!], [25, 25]);
});

Deno.test("Topology refuses rates that are not positive or not one for each", () => {
  const create = (rates: Record<string, unknown>) => () =>
    Topology.fromNodes([0, 0, 1], rates);
  assertThrows(
    create({ intraNode: [1, 2] }),
    RangeError,
    "Cannot create topology: intraNode has 2 rates instead of 3",
  );
  assertThrows(
    create({ uplink: [1, 2, 3] }),
    RangeError,
    "Cannot create topology: uplink has 3 rates instead of 2",
  );
  for (const rate of [0, -1, NaN, Infinity]) {
    assertThrows(
      create({ interNode: [1, rate, 1] }),
      RangeError,
      `Cannot create topology: interNode rate 1 must be positive and finite, got ${rate}`,
    );
  }
});

Deno.test("Topology.sameNode() and ranksOf() refuse ranks and nodes that do not exist", () => {
  const topology = Topology.fromNodes([0, 1]);
  assertThrows(
    () => topology.sameNode(0, 2),
    RangeError,
    "Cannot compare nodes: a rank must be an integer from 0 to 1, got 2",
  );
  assertThrows(
    () => topology.ranksOf(2),
    RangeError,
    "Cannot list ranks: the node must be an integer from 0 to 1, got 2",
  );
});

Deno.test("Topology cannot be changed", () => {
  const topology = Topology.fromNodes([0, 1]) as { ranks: number };
  assertThrows(() => topology.ranks = 3, TypeError);
});
