import { assertEquals, assertMatch, assertNotEquals } from "@std/assert";
import fc from "fast-check";
import {
  planDigest,
  type PlanDigestInput,
} from "../../lib/migration/digest.ts";
import { Placement } from "../../lib/placement.ts";
import { Topology } from "../../lib/topology.ts";

const INPUT: PlanDigestInput = {
  from: Placement.from([[0, 1, 1, 0], [0, 0, 1, 1]], { ranks: 2 }),
  to: Placement.from([[1, 0, 1, 0], [0, 1, 1, 0]], { ranks: 2 }),
  topology: Topology.uniform({ ranks: 2, nodes: 1 }),
  tensorBytes: [4096, 64],
  options: { sources: "balanced", stagingCells: 2 },
};

Deno.test("planDigest() gives 16 hexadecimal digits, the same for equal inputs", () => {
  const digest = planDigest(INPUT);
  assertMatch(digest, /^[0-9a-f]{16}$/);
  const { from, to } = INPUT;
  const copy = {
    ...INPUT,
    from: Placement.fromJSON(from.toJSON(), { ranks: 2 }),
    to: Placement.fromJSON(to.toJSON(), { ranks: 2 }),
    topology: Topology.fromNodes([5, 5], { intraNode: 1 }),
    options: { stagingCells: 2, sources: "balanced" },
  };
  assertEquals(planDigest(copy), digest);
});

Deno.test("planDigest() differs for whatever a plan depends on", () => {
  const { from, to } = INPUT;
  const rows = from.toJSON().physical_to_logical_map;
  const inputs: PlanDigestInput[] = [
    INPUT,
    { ...INPUT, from: to, to: from },
    { ...INPUT, to: from },
    { ...INPUT, from: to },
    { ...INPUT, from: Placement.from(rows, { ranks: 4 }) },
    { ...INPUT, from: Placement.from([rows.flat()], { ranks: 2 }) },
    { ...INPUT, from: Placement.from([rows[0]!], { ranks: 2 }) },
    { ...INPUT, from: Placement.from([[0, 1, 1, -1], rows[1]!], { ranks: 2 }) },
    { ...INPUT, topology: Topology.uniform({ ranks: 2, nodes: 2 }) },
    { ...INPUT, topology: Topology.uniform({ ranks: 4, nodes: 2 }) },
    { ...INPUT, topology: Topology.fromNodes([1, 0]) },
    { ...INPUT, tensorBytes: [64, 4096] },
    { ...INPUT, tensorBytes: [4096] },
    { ...INPUT, tensorBytes: [4096, 64, 0] },
    { ...INPUT, tensorBytes: [4096 + 2 ** 32, 64] },
    { ...INPUT, options: { ...INPUT.options, sources: "chunked" } },
    { ...INPUT, options: { ...INPUT.options, stagingCells: 3 } },
    { ...INPUT, options: { ...INPUT.options, stagingCells: "2" } },
    { ...INPUT, options: { sources: "balanced" } },
    { ...INPUT, options: {} },
  ];
  assertEquals(new Set(inputs.map(planDigest)).size, inputs.length);
});

Deno.test("planDigest() differs in both halves wherever one slot differs", () => {
  const shape = { layers: 2, ranks: 4, slotsPerRank: 8, experts: 24 };
  fc.assert(fc.property(fc.nat(), fc.nat(), (seed, cell) => {
    const from = Placement.random({ ...shape, seed });
    const rows = from.toJSON().physical_to_logical_map;
    const [layer, slot] = [cell % 2, cell % 31];
    const row = rows[layer]!;
    if (row[slot] === row[slot + 1]) return;
    [row[slot], row[slot + 1]] = [row[slot + 1]!, row[slot]!];
    const other = Placement.from(rows, { ranks: 4 });
    const digests = [from, other].map((from) => planDigest({ ...INPUT, from }));
    assertNotEquals(digests[0]!.slice(0, 8), digests[1]!.slice(0, 8));
    assertNotEquals(digests[0]!.slice(8), digests[1]!.slice(8));
  }));
});

Deno.test("planDigest() has no collisions and even bits among many inputs", () => {
  const inputs = 20_000;
  const ones = new Int32Array(64);
  const seen = new Set<string>();
  for (let bytes = 1; bytes <= inputs; bytes++) {
    const digest = planDigest({ ...INPUT, tensorBytes: [bytes] });
    seen.add(digest);
    [...BigInt(`0x${digest}`).toString(2).padStart(64, "0")].forEach((bit, i) =>
      ones[i]! += Number(bit)
    );
  }
  assertEquals(seen.size, inputs);
  // Half of the inputs set each bit, with a standard deviation of 71.
  assertEquals(
    ones.filter((count) => Math.abs(count - inputs / 2) > 400).length,
    0,
  );
});
