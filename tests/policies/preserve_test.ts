import { assert, assertEquals } from "@std/assert";
import fc from "fast-check";
import type { Placement } from "../../lib/placement.ts";
import { deepseekPolicy } from "../../lib/policies/deepseek.ts";
import { preservePolicy } from "../../lib/policies/preserve.ts";
import { inputs, movedSlots, testContract } from "./_contract.ts";
import { golden, jobOf } from "./_golden.ts";

testContract("preservePolicy", preservePolicy);

for (const [index, expected] of golden.entries()) {
  Deno.test(`preservePolicy() gives vLLM's map, case ${index}`, () => {
    const first = jobOf(expected, expected.load);
    const before = preservePolicy(first).placement;
    assertEquals(
      [...before.physicalToLogical],
      expected.physical_to_logical_map.flat(),
    );
    assertEquals(
      [...before.logicalReplicaCount],
      expected.replica_count.flat(),
    );
    const { placement } = preservePolicy({
      ...jobOf(expected, expected.next_load),
      current: before,
    });
    const next = expected.next_preserving_slots;
    assertEquals([...placement.physicalToLogical], next.flat());
    assertEquals(
      [...placement.logicalReplicaCount],
      countOf(next, first.experts),
    );
  });
}

/** Slots of each expert in each layer. */
function countOf(map: number[][], experts: number): number[] {
  return map.flatMap((row) =>
    Array.from(
      { length: experts },
      (_, expert) => row.filter((other) => other === expert).length,
    )
  );
}

/** What each rank holds, ordered. */
function holdings({ physicalToLogical, slotsPerRank }: Placement): number[][] {
  const ranks: number[][] = [];
  for (let i = 0; i < physicalToLogical.length; i += slotsPerRank) {
    ranks.push([...physicalToLogical.subarray(i, i + slotsPerRank)].sort());
  }
  return ranks;
}

Deno.test("preservePolicy() differs from deepseekPolicy() in the order inside ranks only", () => {
  fc.assert(fc.property(inputs, (input) => {
    const plain = deepseekPolicy(input).placement;
    const kept = preservePolicy(input).placement;
    assertEquals(holdings(kept), holdings(plain));
    if (input.current === undefined) assert(kept.equals(plain));
  }));
});

Deno.test("preservePolicy() moves as few slots as the ranks' experts allow", () => {
  fc.assert(fc.property(inputs, (input) => {
    const { current } = input;
    if (current === undefined) return;
    const { placement } = preservePolicy(input);
    const before = holdings(current);
    // Of each rank, the experts that it did not hold, counting copies.
    const arrivals = holdings(placement).flatMap((experts, rank) => {
      const left = [...before[rank]!];
      return experts.filter((expert) => {
        const at = left.indexOf(expert);
        if (at >= 0) left.splice(at, 1);
        return expert >= 0 && at < 0;
      });
    });
    assertEquals(movedSlots(current, placement), arrivals.length);
  }));
});
