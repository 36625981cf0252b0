import {
  assert,
  assertAlmostEquals,
  assertEquals,
  assertThrows,
} from "@std/assert";
import { drawMultinomial } from "../lib/_multinomial.ts";
import { policies } from "../lib/policies/registry.ts";
import { SeededRandom } from "../lib/random.ts";
import { movedSlots } from "../lib/metrics.ts";
import { simulate } from "../lib/simulate.ts";
import { Placement } from "../lib/placement.ts";
import { Topology } from "../lib/topology.ts";

const base = {
  experts: 4,
  topology: Topology.uniform({
    ranks: 2,
    nodes: 1,
    rates: { intraNode: 1e9, interNode: 1e9 },
  }),
  slotsPerRank: 3,
};

Deno.test("simulate() reports stale and new imbalance, moves and time by hand", () => {
  // A policy that always wants the same map: experts 0, 1, 3 on rank 0 and 2, 3, 0 on rank 1.
  const wanted = Placement.from([[0, 1, 3, 2, 3, 0]], { ranks: 2 });
  const shares = new Float64Array([0.5, 1, 0.5, 1, 0.5, 0.5]);
  const policy = (): { placement: Placement; shares: Float64Array } => ({
    placement: wanted,
    shares,
  });
  const [first, second] = simulate([
    { name: "a", load: new Float64Array([6, 1, 1, 0]) },
    { name: "b", load: new Float64Array([0, 4, 0, 4]) },
  ], { ...base, policy, expertBytes: 1e6 });
  // Contiguous is 0 1 2 | 3 0 1: rank 0 has 6/2 + 1/2 + 1, rank 1 has 6/2 + 1/2.
  assertAlmostEquals(first!.staleMean, 4.5 / 4);
  // Wanted: 3 + 1 on rank 0, 1 + 3 on rank 1.
  assertAlmostEquals(first!.mean, 1);
  assertEquals(first!.movedSlotsPerLayer, 4); // slots 2, 3, 4, 5
  // Rank 0 gets expert 3, rank 1 expert 2: one expert each way.
  assertEquals(first!.busiestBytes, 1e6);
  assertAlmostEquals(first!.estimatedMoveMilliseconds!, 1);
  assertAlmostEquals(second!.staleMean, 6 / 4);
  assertEquals(second!.mean, second!.staleMean);
  assertEquals(second!.max, second!.mean);
  assertEquals(second!.movedSlotsPerLayer, 0);
});

Deno.test("simulate() leaves dense layers out of its means", () => {
  const [phase] = simulate([
    { name: "a", load: new Float64Array([0, 0, 0, 0, 8, 1, 1, 2]) },
  ], { ...base, policy: policies.deepseek });
  assert(phase!.mean > 1);
  assertEquals(phase!.mean, phase!.max);
});

Deno.test("simulate() draws steps that approach the phase's load", () => {
  const load = new Float64Array([700, 100, 100, 100]);
  const run = (seed: number): number[] =>
    simulate([{ name: "a", load }], {
      ...base,
      policy: policies.quota,
      tokens: 20_000,
      steps: 3,
      seed,
    }).map(({ mean }) => mean);
  assertEquals(run(1), run(1));
  assert(run(1)[0]! < 1.05);
});

Deno.test("simulate() asks the gate after the first placement only", () => {
  let asked = 0;
  simulate([
    { name: "a", load: new Float64Array([6, 1, 1, 0]) },
    { name: "b", load: new Float64Array([0, 4, 0, 4]) },
  ], {
    ...base,
    policy: policies.deepseek,
    gate: (_input, plan) => {
      asked++;
      return plan;
    },
  });
  assertEquals(asked, 1);
});

Deno.test("simulate() refuses phases of different sizes", () => {
  assertThrows(
    () =>
      simulate([
        { name: "a", load: new Float64Array(4) },
        { name: "b", load: new Float64Array(8) },
      ], { ...base, policy: policies.deepseek }),
    RangeError,
    'Cannot simulate phase "b": its load has 8 counts, not 4',
  );
});

Deno.test("movedSlots() counts slots with another expert, but not emptied ones", () => {
  const from = Placement.from([[0, 1, 0, -1]], { ranks: 2 });
  const to = Placement.from([[0, 1, -1, 1]], { ranks: 2 });
  assertEquals(movedSlots(from, to), 1);
});

Deno.test("drawMultinomial() has the binomial's mean and variance, and loses no token", () => {
  const weights = new Float64Array([0.5, 0.3, 0.15, 0.05, 0]);
  const random = new SeededRandom(5);
  for (const count of [20, 2000]) {
    const draws = 4000;
    const sums = new Float64Array(5);
    const squares = new Float64Array(5);
    for (let i = 0; i < draws; i++) {
      const target = new Float64Array(5);
      drawMultinomial(weights, { count, target, random });
      assertEquals(target.reduce((a, b) => a + b), count);
      target.forEach((hits, k) => {
        sums[k]! += hits;
        squares[k]! += hits * hits;
      });
    }
    weights.forEach((p, k) => {
      const mean = sums[k]! / draws;
      const variance = squares[k]! / draws - mean * mean;
      const expected = count * p * (1 - p);
      assertAlmostEquals(
        mean,
        count * p,
        5 * Math.sqrt(expected / draws) + 1e-9,
      );
      assertAlmostEquals(variance, expected, 0.15 * expected + 1e-9);
    });
  }
});
