import { assert, assertEquals, assertRejects } from "@std/assert";
import fc from "fast-check";
import type { MoveSettings } from "../../lib/engine/move.ts";
import { policies, type PolicyName } from "../../lib/policies/registry.ts";
import { SeededRandom } from "../../lib/random.ts";
import { inlinePlanner, type PlanRequest } from "../../lib/runtime/planner.ts";
import { equalShares } from "../../lib/runtime/shares.ts";
import { WorkerPlanner } from "../../lib/runtime/worker_planner.ts";
import { Topology } from "../../lib/topology.ts";
import { scenarios } from "../migration/_scenarios.ts";

const names = Object.keys(policies) as PolicyName[];

function requests(): fc.Arbitrary<{ name: PolicyName; request: PlanRequest }> {
  return fc.record({
    scenario: scenarios({
      layers: [1, 3],
      ranks: [2, 4],
      slotsPerRank: [2, 5],
    }),
    name: fc.constantFrom(...names),
    gate: fc.constantFrom(undefined, {}, { secondsPerCost: 1e-6 }),
    direct: fc.boolean(),
    seed: fc.nat(),
  }).map(({ scenario: { from, topology: bare }, name, gate, direct, seed }) => {
    const random = new SeededRandom(seed);
    const topology = Topology.fromNodes(bare.nodeOf, {
      intraNode: 1e9,
      interNode: 1e8,
    });
    const settings: MoveSettings = {
      topology,
      locals: [0],
      tensorBytes: [64, 8],
      smallBytes: 16,
      maxOpsPerGroup: 64,
      stagingCells: 1 + random.below(from.slotsPerRank),
      direct,
      maxLayersPerBatch: 1,
    };
    const load = Float64Array.from(
      { length: from.layers * from.experts },
      () => random.below(1000),
    );
    const request: PlanRequest = {
      settings,
      input: {
        load,
        windowSteps: 10,
        placement: from,
        shares: equalShares(from),
        topology,
        active: undefined,
        policy: policies[name],
        gate,
        objective: undefined,
        groups: undefined,
        horizonSteps: 100,
        expertBytes: 72,
      },
    };
    return { name, request };
  });
}

Deno.test("WorkerPlanner plans what the same request gives in this thread", async () => {
  const planners = new Map(
    names.map((name) => [name, new WorkerPlanner(name)]),
  );
  let [moved, several] = [0, 0];
  try {
    await fc.assert(
      fc.asyncProperty(requests(), async ({ name, request }) => {
        const there = await planners.get(name)!.plan(request);
        const here = await inlinePlanner.plan(request);
        assertEquals(there.cases, here.cases);
        assertEquals(there.moves.length, here.moves.length);
        if (here.moves.length > 1) several++;
        for (const [i, move] of there.moves.entries()) {
          const other = here.moves[i]!;
          assertEquals(move.digest, other.digest);
          assertEquals(move.program, other.program);
          assertEquals(move.plan, other.plan);
          assert(move.to.equals(other.to));
          assert(move.drained.equals(other.drained));
          assert(move.from.equals(other.from));
          assertEquals(
            move.drained === move.from,
            other.drained === other.from,
          );
        }
        assert(there.moves[0]!.from === request.input.placement);
        assert(there.moves.at(-1)!.to.equals(there.decision.placement));
        const { planSeconds: _, placement: a, ...one } = there.decision;
        const { planSeconds: __, placement: b, ...other } = here.decision;
        assert(a.equals(b));
        assertEquals(one, other);
        moved += here.decision.movedSlots;
      }),
      { numRuns: 60 },
    );
  } finally {
    for (const planner of planners.values()) planner.close();
  }
  assert(moved > 0 && several > 0);
});

Deno.test("WorkerPlanner passes on what a policy refuses", async () => {
  const { request } = fc.sample(requests(), { numRuns: 1, seed: 1 })[0]!;
  const planner = new WorkerPlanner("quota");
  try {
    await assertRejects(
      () =>
        planner.plan({
          ...request,
          input: { ...request.input, load: new Float64Array(1) },
        }),
      RangeError,
    );
  } finally {
    planner.close();
  }
});

Deno.test("WorkerPlanner answers requests that are under way when it is closed, here", async () => {
  const { request } = fc.sample(requests(), { numRuns: 1, seed: 1 })[0]!;
  const planner = new WorkerPlanner("deepseek");
  const pending = planner.plan(request);
  planner.close();
  const { moves } = await pending;
  assertEquals(moves[0]!.to.layers, request.input.placement.layers);
});
