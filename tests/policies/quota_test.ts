import {
  assert,
  assertAlmostEquals,
  assertEquals,
  assertThrows,
} from "@std/assert";
import fc from "fast-check";
import { Placement } from "../../lib/placement.ts";
import type { PolicyInput, PolicyPlan } from "../../lib/policies/policy.ts";
import { quotaPolicy } from "../../lib/policies/quota.ts";
import { resplit } from "../../lib/policies/resplit.ts";
import { Topology } from "../../lib/topology.ts";
import { bestSplit, movedSlots, rankTokens } from "./_best_split.ts";
import { scenes } from "./_scenes.ts";

const anyScene = scenes({ current: "sometimes", subsets: true });

/** Tokens of a layer. */
function total({ load, experts }: PolicyInput, layer: number): number {
  return load.subarray(layer * experts, (layer + 1) * experts)
    .reduce((a, b) => a + b, 0);
}

function busiest(input: PolicyInput, plan: PolicyPlan, layer: number): number {
  return Math.max(...rankTokens(input.load, plan, layer));
}

function rowOf(placement: Placement, layer: number): number[] {
  const { slots, physicalToLogical } = placement;
  return [...physicalToLogical.subarray(layer * slots, (layer + 1) * slots)];
}

Deno.test("quotaPolicy() gives experts shares that add up to 1, and empty slots none", () => {
  fc.assert(fc.property(anyScene, (input) => {
    const { placement, shares } = quotaPolicy(input);
    const { layers, slots, experts } = placement;
    const sums = new Float64Array(layers * experts);
    for (const [cell, expert] of placement.physicalToLogical.entries()) {
      const share = shares[cell]!;
      assert(share >= 0 && share <= 1);
      if (expert < 0) assertEquals(share, 0);
      else sums[Math.floor(cell / slots) * experts + expert]! += share;
    }
    for (const sum of sums) assertAlmostEquals(sum, 1, 1e-12);
  }));
});

Deno.test("quotaPolicy() leaves inactive ranks empty and puts no expert on a rank twice", () => {
  fc.assert(fc.property(anyScene, (input) => {
    const { placement } = quotaPolicy(input);
    const { slotsPerRank, current } = { current: undefined, ...input };
    for (let layer = 0; layer < placement.layers; layer++) {
      const dense = total(input, layer) === 0;
      const row = rowOf(placement, layer);
      for (let rank = 0; rank < placement.ranks; rank++) {
        const from = rank * slotsPerRank;
        const held = row.slice(from, from + slotsPerRank)
          .filter((expert) => expert >= 0);
        if (!input.active?.includes(rank)) assertEquals(held, []);
        // Only what was there twice may still be, and contiguous dense layers.
        if (dense) continue;
        const before = current === undefined
          ? []
          : rowOf(current, layer).slice(from, from + slotsPerRank);
        for (const expert of held) {
          const count = (list: number[]) =>
            list.filter((other) => other === expert).length;
          assert(count(held) <= Math.max(1, count(before)));
        }
      }
    }
  }));
});

Deno.test("quotaPolicy() carries dense layers through", () => {
  fc.assert(fc.property(
    scenes({ current: "always", subsets: false }),
    (input) => {
      const load = input.load.slice().fill(0, 0, input.experts);
      const { placement, shares } = quotaPolicy({ ...input, load });
      assertEquals(rowOf(placement, 0), rowOf(input.current!, 0));
      const row = rowOf(placement, 0);
      row.forEach((expert, slot) => {
        const copies = row.filter((other) => other === expert).length;
        assertEquals(shares[slot], expert < 0 ? 0 : 1 / copies);
      });
    },
  ));
  const { placement } = quotaPolicy({
    load: new Float64Array(3),
    experts: 3,
    topology: Topology.uniform({ ranks: 2, nodes: 1 }),
    slotsPerRank: 2,
  });
  assertEquals(rowOf(placement, 0), [0, 1, 2, 0]);
});

Deno.test("quotaPolicy() splits tokens as well as its placement allows", () => {
  fc.assert(fc.property(anyScene, (input) => {
    const plan = quotaPolicy(input);
    for (let layer = 0; layer < plan.placement.layers; layer++) {
      if (total(input, layer) === 0) continue;
      const best = bestSplit(input.load, plan.placement, layer, {
        active: input.active!,
      });
      assertAlmostEquals(busiest(input, plan, layer) / best, 1, 1e-7);
    }
  }));
});

Deno.test("quotaPolicy() makes no layer worse than splitting it anew", () => {
  fc.assert(fc.property(
    scenes({ current: "always", subsets: false }),
    (input) => {
      const plan = quotaPolicy(input);
      for (let layer = 0; layer < plan.placement.layers; layer++) {
        const today = bestSplit(input.load, input.current!, layer, {
          active: input.active!,
        });
        assert(busiest(input, plan, layer) <= today * (1 + 1e-7));
      }
    },
  ));
});

Deno.test("quotaPolicy() moves nothing where today's map is within tolerance", () => {
  fc.assert(fc.property(
    scenes({ current: "always", subsets: false }),
    fc.double({ min: 0, max: 2, noNaN: true }),
    (input, tolerance) => {
      const { placement } = quotaPolicy(input, { tolerance, noise: 0 });
      for (let layer = 0; layer < placement.layers; layer++) {
        const today = bestSplit(input.load, input.current!, layer, {
          active: input.active!,
        });
        const mean = total(input, layer) / placement.ranks;
        if (today <= mean * (1 + tolerance)) {
          assertEquals(rowOf(placement, layer), rowOf(input.current!, layer));
        }
      }
    },
  ));
});

Deno.test("quotaPolicy() does not chase what may be chance", () => {
  // 8 ranks and 5000 tokens: one standard deviation is 4 %.
  const load = new Float64Array(8).fill(620);
  load[3]! += 40;
  const input = {
    load,
    experts: 8,
    topology: Topology.uniform({ ranks: 8, nodes: 1 }),
    slotsPerRank: 2,
    current: Placement.from(
      [[0, -1, 1, -1, 2, -1, 3, -1, 4, -1, 5, -1, 6, -1, 7, -1]],
      { ranks: 8 },
    ),
  };
  // 660 of 625 are 5.6 %.
  assert(quotaPolicy(input, { noise: 2 }).placement.equals(input.current));
  assert(!quotaPolicy(input, { noise: 1 }).placement.equals(input.current));
});

Deno.test("quotaPolicy() finds nothing to do after its own plan", () => {
  fc.assert(fc.property(
    anyScene,
    fc.constantFrom(0, 0.01, 0.1),
    (input, tolerance) => {
      const plan = quotaPolicy(input, { tolerance });
      const again = quotaPolicy(
        { ...input, current: plan.placement },
        { tolerance },
      );
      assert(again.placement.equals(plan.placement));
      assertEquals(again.shares, plan.shares);
    },
  ));
});

Deno.test("quotaPolicy() plans as even whatever numbers the ranks of a node have", () => {
  fc.assert(fc.property(
    scenes({ current: "always", subsets: false }),
    fc.nat(),
    (input, seed) => {
      const { ranks, nodes } = input.topology;
      const perNode = ranks / nodes;
      // Turns the ranks of each node by some places.
      const renumber = (rank: number) =>
        Math.floor(rank / perNode) * perNode + (rank + seed) % perNode;
      const { current, slotsPerRank } = input;
      const map = current!.physicalToLogical.map((_, cell, all) => {
        const layer = Math.floor(cell / current!.slots);
        const slot = cell % current!.slots;
        const rank = renumber(Math.floor(slot / slotsPerRank));
        return all[
          layer * current!.slots + rank * slotsPerRank + slot % slotsPerRank
        ]!;
      });
      const renumbered = { ...input, current: Placement.from(map, current!) };
      const [a, b] = [quotaPolicy(input), quotaPolicy(renumbered)];
      for (let layer = 0; layer < current!.layers; layer++) {
        const most = busiest(input, a, layer);
        assertAlmostEquals(
          busiest(input, b, layer),
          most,
          most * 1e-9,
        );
      }
    },
  ));
});

Deno.test("quotaPolicy() moves no more slots of a layer than it may", () => {
  fc.assert(fc.property(
    scenes({ current: "always", subsets: false }),
    fc.nat(4),
    (input, maxMoves) => {
      const { placement } = quotaPolicy(input, { maxMoves });
      const moved = movedSlots(input.current!, placement);
      assert(moved.every((count) => count <= maxMoves));
    },
  ));
});

Deno.test("quotaPolicy() leaves primaries in place if they may not move", () => {
  fc.assert(fc.property(
    scenes({ current: "never", subsets: false }),
    fc.array(fc.nat(1_000_000), { minLength: 150, maxLength: 150 }),
    (input, loads) => {
      const { placement: first } = quotaPolicy(input);
      const { ranks, slotsPerRank, layers, experts, slots } = first;
      fc.pre(experts % ranks === 0);
      const load = new Float64Array(loads).subarray(0, input.load.length);
      fc.pre(load.length === input.load.length);
      const options = { movePrimaries: false };
      const { placement } = quotaPolicy(
        { ...input, load, current: first },
        options,
      );
      const primaries = experts / ranks;
      for (let cell = 0; cell < layers * slots; cell++) {
        if (cell % slotsPerRank >= primaries) continue;
        assertEquals(
          placement.physicalToLogical[cell],
          first.physicalToLogical[cell],
        );
      }
    },
  ));
});

Deno.test("quotaPolicy() keeps to a number of redundant slots", () => {
  fc.assert(fc.property(anyScene, fc.nat(12), (input, redundantSlots) => {
    const plan = quotaPolicy(input, { redundantSlots });
    const { layers, experts } = plan.placement;
    const redundant = [...Array(layers).keys()]
      .filter((layer) => total(input, layer) > 0)
      .map((layer) =>
        rowOf(plan.placement, layer).filter((e) => e >= 0).length - experts
      )
      .reduce((a, b) => a + b, 0);
    assert(redundant <= redundantSlots);
    const again = quotaPolicy(
      { ...input, current: plan.placement },
      { redundantSlots },
    );
    assert(again.placement.equals(plan.placement));
  }));
});

Deno.test("quotaPolicy() gives redundant slots to the layers that need them", () => {
  // Layer 0 is even; in layer 1, one expert has two thirds of the tokens.
  const { placement } = quotaPolicy({
    load: new Float64Array([100, 100, 100, 100, 600, 100, 100, 100]),
    experts: 4,
    topology: Topology.uniform({ ranks: 2, nodes: 1 }),
    slotsPerRank: 3,
  }, { redundantSlots: 1 });
  assertEquals(rowOf(placement, 0).filter((e) => e < 0).length, 2);
  assertEquals(rowOf(placement, 1).filter((e) => e === 0).length, 2);
});

Deno.test("quotaPolicy() restores the experts of ranks that are gone", () => {
  const current = Placement.from([[0, 1, 2, 3, 4, 5, 0, 2, -1]], { ranks: 3 });
  const plan = quotaPolicy({
    load: new Float64Array([60, 10, 20, 30, 40, 50]),
    experts: 6,
    topology: Topology.uniform({ ranks: 3, nodes: 1 }),
    slotsPerRank: 3,
    active: [0, 2],
    current,
  });
  const row = rowOf(plan.placement, 0);
  // Rank 2 is lighter and has an empty slot and a copy of 2 that is also on rank 0.
  assertEquals(row.slice(3, 6), [-1, -1, -1]);
  assertEquals(row.filter((expert) => expert >= 0).sort(), [0, 1, 2, 3, 4, 5]);
  assertEquals(
    row.slice(0, 3).filter((e) => e >= 0 && e < 3).length >= 2,
    true,
  );
});

Deno.test("quotaPolicy() tells how many slots the active ranks lack", () => {
  assertThrows(
    () =>
      quotaPolicy({
        load: new Float64Array(6),
        experts: 6,
        topology: Topology.uniform({ ranks: 3, nodes: 1 }),
        slotsPerRank: 2,
        active: [0, 2],
      }),
    RangeError,
    "Cannot place experts: 2 active ranks of 2 slots are 2 slots short of 6 experts",
  );
});

Deno.test("quotaPolicy() refuses options out of range", () => {
  const input = {
    load: new Float64Array([1, 2]),
    experts: 2,
    topology: Topology.uniform({ ranks: 2, nodes: 1 }),
    slotsPerRank: 1,
  };
  const cases = [
    [{ tolerance: -1 }, "tolerance must be non-negative and finite, it is -1"],
    [{ noise: NaN }, "noise must be non-negative and finite, it is NaN"],
    [
      { maxMoves: 1.5 },
      "maxMoves must be an integer from 0 to 2147483647, got 1.5",
    ],
    [
      { redundantSlots: -1 },
      "redundantSlots must be an integer from 0 to 2147483647, got -1",
    ],
  ] as const;
  for (const [options, message] of cases) {
    assertThrows(
      () => quotaPolicy(input, options),
      RangeError,
      `Cannot place experts: ${message}`,
    );
  }
});

Deno.test("resplit() is as good as the copies allow", () => {
  fc.assert(fc.property(
    scenes({ current: "always", subsets: true }),
    fc.array(fc.double({ min: 0.25, max: 4, noNaN: true }), {
      minLength: 9,
      maxLength: 9,
    }),
    (input, speeds) => {
      const current = quotaPolicy(input).placement;
      const speed = new Float64Array(speeds).subarray(0, input.topology.ranks);
      const shares = resplit({ ...input, current, objective: { speed } });
      for (let layer = 0; layer < current.layers; layer++) {
        const ranks = { active: input.active!, speed };
        const best = bestSplit(input.load, current, layer, ranks);
        const tokens = rankTokens(
          input.load,
          { placement: current, shares },
          layer,
        );
        const most = Math.max(...tokens.map((sum, i) => sum / speed[i]!));
        assertAlmostEquals(most, best, best * 1e-7);
      }
    },
  ));
});

Deno.test("resplit() refuses a placement with an expert on inactive ranks only", () => {
  assertThrows(
    () =>
      resplit({
        load: new Float64Array([1, 2]),
        experts: 2,
        topology: Topology.uniform({ ranks: 2, nodes: 1 }),
        slotsPerRank: 2,
        active: [0],
        current: Placement.from([[0, -1, 1, 0]], { ranks: 2 }),
      }),
    RangeError,
    "Cannot split tokens: expert 1 of layer 0 is on no active rank",
  );
});
