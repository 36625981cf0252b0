import { assertEquals, assertThrows } from "@std/assert";
import fc from "fast-check";
import { MigrationCase, planMigration } from "../../lib/migration/plan.ts";
import {
  lowerBoundSeconds,
  type Traffic,
  traffic,
} from "../../lib/migration/traffic.ts";
import { Placement } from "../../lib/placement.ts";
import { type LinkRates, Topology } from "../../lib/topology.ts";
import { scenarios } from "./_scenarios.ts";

// Two nodes of two ranks of three slots, as in plan_test.ts: rank 0 gets an expert from rank 1 and
// copies one; rank 1 gets one from rank 2, twice, and copies one; rank 2 gets one from rank 3; rank 3
// gets one from rank 2 and one from rank 0.
function example(rates: LinkRates): { topology: Topology; bytes: Traffic } {
  const topology = Topology.uniform({ ranks: 4, nodes: 2, rates });
  const plan = planMigration(
    Placement.from([[0, 0, 1, 2, 3, -1, 4, 5, 6, 7, 2, 5]], { ranks: 4 }),
    Placement.from([[0, 1, 2, 4, 4, 3, 4, 5, 7, -1, 6, 0]], { ranks: 4 }),
    { topology },
  );
  return { topology, bytes: traffic(plan, { expertBytes: 10 }) };
}

Deno.test("traffic() adds up the bytes of each rank and node", () => {
  const { bytes } = example({});
  const numbers = Object.fromEntries(
    Object.entries(bytes).map(([name, sums]) => [name, [...sums]]),
  );
  assertEquals(numbers, {
    bytesSent: [10, 10, 20, 10],
    bytesReceived: [10, 10, 10, 20],
    sameNodeBytesSent: [0, 10, 10, 10],
    sameNodeBytesReceived: [10, 0, 10, 10],
    crossNodeBytesSent: [10, 0, 10, 0],
    crossNodeBytesReceived: [0, 10, 0, 10],
    nodeBytesOut: [10, 10],
    nodeBytesIn: [10, 10],
    copied: [10, 20, 0, 0],
  });
});

Deno.test("traffic() agrees with the plan's counts and with itself", () => {
  const sum = (values: Float64Array) => values.reduce((a, b) => a + b, 0);
  fc.assert(fc.property(
    scenarios({ layers: [1, 3], ranks: [1, 8], slotsPerRank: [1, 6] }),
    ({ from, to, topology }) => {
      const plan = planMigration(from, to, { topology });
      const { sameRank, duplicate, sameNode, crossNode } = plan.counts;
      const bytes = traffic(plan, { expertBytes: 7 });
      assertEquals(sum(bytes.copied), 7 * (sameRank + duplicate));
      for (
        const [within, across, all] of [
          [bytes.sameNodeBytesSent, bytes.crossNodeBytesSent, bytes.bytesSent],
          [
            bytes.sameNodeBytesReceived,
            bytes.crossNodeBytesReceived,
            bytes.bytesReceived,
          ],
        ] as const
      ) {
        assertEquals(sum(within), 7 * sameNode);
        assertEquals(sum(across), 7 * crossNode);
        assertEquals(all, within.map((value, rank) => value + across[rank]!));
      }
      for (let node = 0; node < topology.nodes; node++) {
        const ofNode = (sums: Float64Array) =>
          topology.ranksOf(node).reduce((a, rank) => a + sums[rank]!, 0);
        assertEquals(
          bytes.nodeBytesOut[node],
          ofNode(bytes.crossNodeBytesSent),
        );
        assertEquals(
          bytes.nodeBytesIn[node],
          ofNode(bytes.crossNodeBytesReceived),
        );
      }
      plan.cases.forEach((kind, cell) => {
        if (kind < MigrationCase.sameNode) return;
        const rank = Math.floor(plan.source[cell]! / plan.slotsPerRank);
        bytes.bytesSent[rank]! -= 7;
      });
      assertEquals(sum(bytes.bytesSent.map(Math.abs)), 0);
    },
  ));
});

Deno.test("traffic() keeps bytes exact beyond 32 bits", () => {
  const plan = planMigration(
    Placement.from([[0, 1]], { ranks: 2 }),
    Placement.from([[1, 0]], { ranks: 2 }),
    { topology: Topology.uniform({ ranks: 2, nodes: 1 }) },
  );
  const expertBytes = 2 ** 40 + 1;
  assertEquals(traffic(plan, { expertBytes }).bytesSent[0], 1099511627777);
  for (const wrong of [0, 1.5, NaN]) {
    assertThrows(
      () => traffic(plan, { expertBytes: wrong }),
      RangeError,
      `Cannot add up traffic: expertBytes must be an integer from 1 to 9007199254740991, got ${wrong}`,
    );
  }
});

Deno.test("lowerBoundSeconds() is the time of the slowest link", () => {
  const bound = (rates: LinkRates) => {
    const { topology, bytes } = example(rates);
    return lowerBoundSeconds(bytes, topology);
  };
  // Each rank that takes part moves 10 bytes on each of its links, and each node on its uplink.
  assertEquals(bound({ intraNode: 1, interNode: 100 }), 10);
  assertEquals(bound({ intraNode: 100, interNode: 1 }), 10);
  assertEquals(bound({ intraNode: 100, interNode: 100, uplink: 2 }), 5);
  assertEquals(bound({ intraNode: [1, 1, 1, 0.5], interNode: 100 }), 20);
  // Rank 0 receives within its node and sends to the other; rank 1 the other way round.
  assertEquals(bound({ intraNode: 100, interNode: [0.25, 100, 100, 100] }), 40);
  assertEquals(bound({ intraNode: 100, interNode: [100, 0.25, 100, 100] }), 40);
});

Deno.test("lowerBoundSeconds() takes the busier direction of a link", () => {
  const topology = Topology.uniform({
    ranks: 3,
    nodes: 1,
    rates: { intraNode: 1 },
  });
  const bound = (from: number[], to: number[]) =>
    lowerBoundSeconds(
      traffic(
        planMigration(
          Placement.from([from], { ranks: 3 }),
          Placement.from([to], { ranks: 3 }),
          { topology },
        ),
        { expertBytes: 1 },
      ),
      topology,
    );
  assertEquals(bound([0, 1, 2, -1, 3, -1], [0, -1, 2, 1, 3, -1]), 1);
  // Rank 0 sends two experts, and no rank receives more than one.
  assertEquals(bound([0, 1, 2, -1, 3, -1], [0, 1, 2, 0, 3, 1]), 2);
  // Rank 2 receives two experts, and no rank sends more than one.
  assertEquals(bound([0, -1, 1, -1, -1, -1], [0, -1, 1, -1, 0, 1]), 2);
});

Deno.test("lowerBoundSeconds() is undefined only where a rate that is needed is unknown", () => {
  const known = { intraNode: 1, interNode: 1, uplink: 1 };
  for (const unknown of ["intraNode", "interNode"] as const) {
    const { [unknown]: _, ...rates } = known;
    const { topology, bytes } = example(rates);
    assertEquals(lowerBoundSeconds(bytes, topology), undefined);
  }
  const oneNode = Topology.uniform({
    ranks: 2,
    nodes: 1,
    rates: { intraNode: 2 },
  });
  const from = Placement.from([[0, 1]], { ranks: 2 });
  const swap = planMigration(from, Placement.from([[1, 0]], { ranks: 2 }), {
    topology: oneNode,
  });
  assertEquals(
    lowerBoundSeconds(traffic(swap, { expertBytes: 4 }), oneNode),
    2,
  );
  const unknown = Topology.uniform({ ranks: 2, nodes: 1 });
  const nothing = planMigration(from, from, { topology: unknown });
  assertEquals(
    lowerBoundSeconds(traffic(nothing, { expertBytes: 4 }), unknown),
    0,
  );
});

Deno.test("lowerBoundSeconds() refuses another topology", () => {
  const { bytes } = example({});
  assertThrows(
    () => lowerBoundSeconds(bytes, Topology.uniform({ ranks: 4, nodes: 4 })),
    RangeError,
    "Cannot bound time: traffic of 4 ranks on 2 nodes, topology of 4 on 4",
  );
});
