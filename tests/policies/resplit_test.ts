import {
  assert,
  assertAlmostEquals,
  assertEquals,
  assertThrows,
} from "@std/assert";
import fc from "fast-check";
import { Placement } from "../../lib/placement.ts";
import type { PolicyInput } from "../../lib/policies/policy.ts";
import { resplit } from "../../lib/policies/resplit.ts";
import { SeededRandom } from "../../lib/random.ts";
import { Topology } from "../../lib/topology.ts";
import { bestSplit } from "./_best_split.ts";
import {
  activeRanks,
  inputs,
  randomPlacement,
  rankLoads,
} from "./_contract.ts";

/** Jobs of which each expert is on an active rank. */
const placedInputs = inputs.map((input) => {
  const { active: _, ...rest } = input;
  const layers = input.load.length / input.experts;
  const shape = { ...input, layers, ranks: input.topology.ranks };
  const current = randomPlacement(shape, new SeededRandom(input.experts));
  return { ...rest, current };
});

Deno.test("resplit() is as good as the copies and the ranks' speeds allow", () => {
  fc.assert(
    fc.property(
      placedInputs,
      fc.array(fc.double({ min: 0.25, max: 4, noNaN: true }), {
        minLength: 6,
        maxLength: 6,
      }),
      (input, speeds) => {
        const speed = new Float64Array(speeds).slice(0, input.topology.ranks);
        const shares = resplit({ ...input, objective: { speed } });
        const plan = { placement: input.current, shares };
        const ranks = { active: activeRanks(input), speed };
        for (let layer = 0; layer < input.current.layers; layer++) {
          const best = bestSplit(input.load, input.current, layer, ranks);
          const costs = rankLoads(input, plan, layer)
            .map((tokens, rank) => tokens / speed[rank]!);
          assertAlmostEquals(Math.max(...costs), best, best * 1e-7);
        }
      },
    ),
    { numRuns: 1000 },
  );
});

Deno.test("resplit() gives slots of inactive ranks nothing", () => {
  const input = {
    load: new Float64Array([60, 30]),
    experts: 2,
    topology: Topology.uniform({ ranks: 3, nodes: 1 }),
    slotsPerRank: 2,
    current: Placement.from([[0, -1, 1, 0, 0, 1]], { ranks: 3 }),
  };
  const shares = resplit({ ...input, active: [0, 1] });
  assertEquals([...shares], [0.75, 0, 1, 0.25, 0, 0]);
});

Deno.test("resplit() shares experts without tokens equally", () => {
  const shares = resplit({
    load: new Float64Array([0, 30]),
    experts: 2,
    topology: Topology.uniform({ ranks: 2, nodes: 1 }),
    slotsPerRank: 2,
    current: Placement.from([[0, 1, 0, -1]], { ranks: 2 }),
  });
  assertEquals([...shares], [0.5, 1, 0.5, 0]);
});

Deno.test("resplit() weighs what tokens cost on another node", () => {
  // Rank 1 is on another node than the primary of expert 0, which is on rank 0. With x of its 90
  // tokens there at 1.5 each, 90 − x = 30 + 1.5 x.
  const shares = resplit({
    load: new Float64Array([90, 30]),
    experts: 2,
    topology: Topology.uniform({ ranks: 2, nodes: 2 }),
    slotsPerRank: 2,
    current: Placement.from([[0, -1, 1, 0]], { ranks: 2 }),
    objective: { crossNodeCost: 0.5 },
  });
  assertAlmostEquals(shares[3]!, 24 / 90, 1e-9);
});

Deno.test("resplit() stays within what crossing nodes costs of the best", () => {
  fc.assert(fc.property(
    placedInputs,
    fc.double({ min: 0, max: 1, noNaN: true }),
    (input, crossNodeCost) => {
      const shares = resplit({ ...input, objective: { crossNodeCost } });
      const plan = { placement: input.current, shares };
      const active = activeRanks(input);
      for (let layer = 0; layer < input.current.layers; layer++) {
        // If tokens cost the same everywhere, the best is not higher.
        const best = bestSplit(input.load, input.current, layer, { active });
        const most = Math.max(...rankLoads(input, plan, layer));
        assert(most <= best * (1 + crossNodeCost) * (1 + 1e-7));
      }
    },
  ));
});

/** Highest cost of any rank if each slot that gets tokens also costs something. */
function highestCost(
  input: PolicyInput & { readonly current: Placement },
  shares: ArrayLike<number>,
  { tokenCost, expertCost }: {
    readonly tokenCost: number;
    readonly expertCost: number;
  },
): number {
  const costs = Array<number>(input.topology.ranks).fill(0);
  input.current.physicalToLogical.forEach((expert, slot) => {
    const tokens = expert < 0 ? 0 : input.load[expert]! * shares[slot]!;
    if (tokens === 0) return;
    costs[Math.floor(slot / input.slotsPerRank)]! += tokens * tokenCost +
      expertCost;
  });
  return Math.max(...costs);
}

/** The lowest cost if no expert is split, found by trying everything. */
function bestUnsplit(
  input: PolicyInput & { readonly current: Placement },
  objective: { readonly tokenCost: number; readonly expertCost: number },
): number {
  const row = input.current.physicalToLogical;
  const shares = new Float64Array(row.length);
  const place = (expert: number): number => {
    if (expert === input.experts) return highestCost(input, shares, objective);
    if (input.load[expert] === 0) return place(expert + 1);
    let best = Infinity;
    row.forEach((other, slot) => {
      if (other !== expert) return;
      shares[slot] = 1;
      best = Math.min(best, place(expert + 1));
      shares[slot] = 0;
    });
    return best;
  };
  return place(0);
}

for (const tokenCost of [0, 1]) {
  const what = tokenCost === 0
    ? "activates as few experts on the busiest rank as can be"
    : "wastes no more than one activation on the busiest rank";
  Deno.test(`resplit() ${what}`, () => {
    const objective = { tokenCost, expertCost: 20 };
    for (let seed = 0; seed < 500; seed++) {
      const random = new SeededRandom(seed);
      const [ranks, slotsPerRank] = [2 + random.below(3), 2 + random.below(2)];
      const experts = 1 + random.below(Math.min(8, ranks * slotsPerRank));
      const shape = { layers: 1, ranks, slotsPerRank, experts };
      const input = {
        load: new Float64Array(experts).map(() =>
          random.below(3) === 0 ? 0 : 1 + random.below(30)
        ),
        experts,
        topology: Topology.uniform({ ranks, nodes: 1 }),
        slotsPerRank,
        current: randomPlacement(shape, random),
      };
      const found = highestCost(
        input,
        resplit({ ...input, objective }),
        objective,
      );
      const best = bestUnsplit(input, objective);
      const waste = tokenCost === 0 ? 0 : objective.expertCost;
      assert(found <= best + waste + 1e-6, `seed ${seed}: ${found}, ${best}`);
    }
  });
}

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
