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
      ranks: [1, 4],
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
      stagingCells: from.slotsPerRank,
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
  let moved = 0;
  try {
    await fc.assert(
      fc.asyncProperty(requests(), async ({ name, request }) => {
        const there = await planners.get(name)!.plan(request);
        const here = await inlinePlanner.plan(request);
        assertEquals(there.move.digest, here.move.digest);
        assertEquals(there.move.program, here.move.program);
        assertEquals(there.move.plan, here.move.plan);
        assert(there.move.to.equals(here.move.to));
        assert(there.move.drained.equals(here.move.drained));
        assert(there.move.from === request.input.placement);
        assertEquals(
          there.move.drained === there.move.from,
          here.move.drained === here.move.from,
        );
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
  assert(moved > 0);
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
  const { move } = await pending;
  assert(move.to.layers === request.input.placement.layers);
});
