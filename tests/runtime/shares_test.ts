import { assert, assertAlmostEquals, assertEquals } from "@std/assert";
import fc from "fast-check";
import { drained } from "../../lib/migration/direct.ts";
import { directSlots } from "../../lib/migration/direct.ts";
import { planMigration } from "../../lib/migration/plan.ts";
import { Placement } from "../../lib/placement.ts";
import { SeededRandom } from "../../lib/random.ts";
import { equalShares, sharesNow } from "../../lib/runtime/shares.ts";
import { scenarios } from "../migration/_scenarios.ts";

Deno.test("equalShares() splits each expert alike over its slots", () => {
  const placement = Placement.from([[0, 1, 0, -1], [1, 1, 1, 0]], { ranks: 2 });
  assertEquals(
    [...equalShares(placement)],
    [0.5, 1, 0.5, 0, 1 / 3, 1 / 3, 1 / 3, 1],
  );
});

Deno.test("sharesNow() has the new split where the map has arrived, and the old one elsewhere", () => {
  const from = Placement.from([[0, 1, 0], [0, 1, 0], [0, 1, 0]], { ranks: 1 });
  const to = Placement.from([[0, 1, 1], [0, 1, 0], [0, 1, 1]], { ranks: 1 });
  const before = Float64Array.of(...[0.25, 1, 0.75], ...[0.25, 1, 0.75], ...[
    0.25,
    1,
    0.75,
  ]);
  const after = Float64Array.of(...[1, 0.4, 0.6], ...[0.9, 1, 0.1], ...[
    1,
    0.4,
    0.6,
  ]);
  const at = (placement: Placement): number[] => [
    ...sharesNow({ placement, from, before, to, after }),
  ];
  // Nothing is committed; nothing moves in layer 1.
  assertEquals(at(from), [0.25, 1, 0.75, 0.9, 1, 0.1, 0.25, 1, 0.75]);
  assertEquals(at(Placement.mix(from, to, 1)), [
    1,
    0.4,
    0.6,
    0.9,
    1,
    0.1,
    0.25,
    1,
    0.75,
  ]);
  // Slot 2 is emptied: slot 0 takes all tokens of expert 0.
  const empty = Placement.from([[0, 1, -1], [0, 1, 0], [0, 1, -1]], {
    ranks: 1,
  });
  assertEquals(at(empty), [1, 1, 0, 0.9, 1, 0.1, 1, 1, 0]);
});

Deno.test("sharesNow() splits alike what only emptied slots took", () => {
  const from = Placement.from([[0, 0, 0, 1]], { ranks: 1 });
  const to = Placement.from([[0, 0, 1, 1]], { ranks: 1 });
  const placement = Placement.from([[0, 0, -1, 1]], { ranks: 1 });
  const before = Float64Array.of(0, 0, 1, 1);
  const after = equalShares(to);
  const shares = sharesNow({ placement, from, before, to, after });
  assertEquals([...shares], [0.5, 0.5, 0, 1]);
  // On the way expert 1 is parked in slot 2: its old slot goes on alone.
  const parked = Placement.from([[0, 0, 1, 1]], { ranks: 1 });
  const last = Placement.from([[0, 1, 1, 0]], { ranks: 1 });
  assertEquals(
    [
      ...sharesNow({
        ...{ placement: parked, from, before },
        ...{ to: last, after: equalShares(last) },
      }),
    ],
    [0.5, 0.5, 0, 1],
  );
});

Deno.test("sharesNow() gives every expert's slots shares that add up to 1, in any moment", () => {
  fc.assert(
    fc.property(
      scenarios({ layers: [1, 4], ranks: [1, 4], slotsPerRank: [1, 6] }),
      fc.nat(),
      ({ from, to, topology }, seed) => {
        const random = new SeededRandom(seed);
        const plan = planMigration(from, to, { topology });
        const without = drained(from, directSlots(plan, from));
        const committed = random.below(from.layers + 1);
        const placement = Placement.mix(without, to, committed);
        const shares = sharesNow({
          placement,
          from,
          before: equalShares(from),
          to,
          after: equalShares(to),
        });
        const sums = new Float64Array(from.layers * from.experts);
        placement.physicalToLogical.forEach((expert, cell) => {
          const share = shares[cell]!;
          if (expert < 0) return assertEquals(share, 0);
          assert(share >= 0 && share <= 1);
          sums[Math.floor(cell / from.slots) * from.experts + expert]! += share;
        });
        for (const sum of sums) assertAlmostEquals(sum, 1, 1e-12);
      },
    ),
  );
});
