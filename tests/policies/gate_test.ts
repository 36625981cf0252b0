import {
  assert,
  assertAlmostEquals,
  assertEquals,
  assertThrows,
} from "@std/assert";
import fc from "fast-check";
import { imbalance } from "../../lib/metrics.ts";
import { Placement } from "../../lib/placement.ts";
import { type GateOptions, gatePlan } from "../../lib/policies/gate.ts";
import { policies } from "../../lib/policies/registry.ts";
import { Topology } from "../../lib/topology.ts";
import { assertPlan, imbalances, inputs, movedSlots } from "./_contract.ts";

const OPTIONS: GateOptions = {
  expertBytes: 40e6,
  secondsPerCost: 1e-7,
  horizonSteps: 1000,
};

/** Two layers on two ranks: 1000 and 200 tokens in the first, 450 and 350 in the second. */
const INPUT = {
  load: new Float64Array([900, 100, 100, 100, 350, 100, 100, 250]),
  experts: 4,
  topology: Topology.uniform({
    ranks: 2,
    nodes: 1,
    rates: { intraNode: 400e9 },
  }),
  slotsPerRank: 3,
  current: Placement.from([[0, 1, -1, 2, 3, -1], [0, 1, -1, 2, 3, -1]], {
    ranks: 2,
  }),
};

/** Copies expert 0 to rank 1 in both layers, and makes both even. */
const PLAN = {
  placement: Placement.from([[0, 1, -1, 2, 3, 0], [0, 1, -1, 2, 3, 0]], {
    ranks: 2,
  }),
  shares: new Float64Array([
    ...[5 / 9, 1, 0, 1, 1, 4 / 9],
    ...[6 / 7, 1, 0, 1, 1, 1 / 7],
  ]),
};

Deno.test("gatePlan() lets through what saves more time than it takes", () => {
  // One expert takes 40e6 / 400e9 = 0.1 ms. Layer 0 saves 400 tokens in each step and layer 1 saves
  // 50: at 0.1 µs each, 40 µs and 5 µs.
  const cases = [[1000, "pays", "pays"], [10, "pays", "costs-more"], [
    2,
    "costs-more",
    "costs-more",
  ]] as const;
  for (const [horizonSteps, ...reasons] of cases) {
    const { placement, decisions } = gatePlan(INPUT, PLAN, {
      ...OPTIONS,
      horizonSteps,
    });
    assertEquals(decisions.map(({ reason }) => reason), reasons);
    reasons.forEach((reason, layer) => {
      const kept = reason === "pays" ? PLAN.placement : INPUT.current;
      assertEquals(
        placement.physicalToLogical.subarray(layer * 6, layer * 6 + 6),
        kept.physicalToLogical.subarray(layer * 6, layer * 6 + 6),
      );
    });
  }
});

Deno.test("gatePlan() tells what it has weighed", () => {
  const { decisions } = gatePlan(INPUT, PLAN, {
    ...OPTIONS,
    horizonSteps: 10,
    windowSteps: 5,
  });
  const [first] = decisions;
  assertEquals([first?.layer, first?.movedSlots], [0, 1]);
  assertEquals([first?.accepted, first?.reason], [false, "costs-more"]);
  // 400 tokens in 5 steps, for 10 steps.
  assertAlmostEquals(first!.gainSeconds, 400 * 1e-7 / 5 * 10, 1e-15);
  assertEquals(first?.moveSeconds, 40e6 / 400e9);
  assertAlmostEquals(first!.staleImbalance!, 1000 / 600, 1e-12);
  assertAlmostEquals(first!.newImbalance, 1, 1e-12);
});

Deno.test("gatePlan() splits tokens anew where today's map is kept", () => {
  // Copies that are there already take more than their equal share.
  const current = Placement.from([[0, 1, -1, 2, 3, 0], [0, 1, -1, 2, 3, 0]], {
    ranks: 2,
  });
  const plan = {
    placement: Placement.from([[0, 1, 2, 2, 3, 0], [0, 1, 2, 2, 3, 0]], {
      ranks: 2,
    }),
    shares: new Float64Array([
      ...[0.5, 1, 0.5, 0.5, 1, 0.5],
      ...[0.5, 1, 0.5, 0.5, 1, 0.5],
    ]),
  };
  const gated = gatePlan({ ...INPUT, current }, plan, OPTIONS);
  assert(gated.placement.equals(current));
  assertEquals(gated.decisions.map(({ accepted }) => accepted), [false, false]);
  const { max } = imbalance(INPUT.load, current, { shares: gated.shares });
  assertAlmostEquals(max, 1, 1e-9);
});

Deno.test("gatePlan() rejects what may be chance, and what is no gain", () => {
  // 1200 tokens on 2 ranks: √(2 ÷ 1200) is 4.1 %. Layer 0 is at 67 %, layer 1 at 12.5 %.
  const noisy = gatePlan(INPUT, PLAN, { ...OPTIONS, noise: 3 });
  assertEquals(noisy.decisions.map(({ reason }) => reason), ["pays", "noise"]);
  const idle = {
    placement: Placement.from([[0, 1, 2, 2, 3, -1], [0, 1, 2, 2, 3, -1]], {
      ranks: 2,
    }),
    shares: new Float64Array([
      ...[1, 1, 0, 1, 1, 0],
      ...[1, 1, 0, 1, 1, 0],
    ]),
  };
  const same = gatePlan(INPUT, idle, OPTIONS);
  assertEquals(same.decisions.map(({ reason }) => reason), [
    "no-gain",
    "no-gain",
  ]);
  assert(same.placement.equals(INPUT.current));
});

Deno.test("gatePlan() lets a gain through if link rates are not known", () => {
  const topology = Topology.uniform({ ranks: 2, nodes: 1 });
  const { placement, decisions } = gatePlan({ ...INPUT, topology }, PLAN, {
    ...OPTIONS,
    horizonSteps: 1,
  });
  assertEquals(
    decisions.map(({ reason, moveSeconds }) => [reason, moveSeconds]),
    [
      ["rates-unknown", undefined],
      ["rates-unknown", undefined],
    ],
  );
  assert(placement.equals(PLAN.placement));
});

Deno.test("gatePlan() lets first placements and restored experts through", () => {
  const { current: _, ...nowhere } = INPUT;
  const first = gatePlan(nowhere, PLAN, { ...OPTIONS, horizonSteps: 0 });
  assertEquals(first.decisions.map(({ reason }) => reason), ["first", "first"]);
  assertEquals(first.decisions[0]?.staleImbalance, undefined);
  const input = {
    load: new Float64Array([1, 2]),
    experts: 2,
    topology: Topology.uniform({ ranks: 2, nodes: 1 }),
    slotsPerRank: 2,
    active: [0],
    current: Placement.from([[0, -1, 1, -1]], { ranks: 2 }),
  };
  const plan = policies.quota(input);
  const restored = gatePlan(input, plan, { ...OPTIONS, horizonSteps: 0 });
  assertEquals(restored.decisions[0]?.reason, "restore");
  assert(restored.placement.equals(plan.placement));
});

Deno.test("gatePlan() leaves a valid plan that is nowhere worse than either side", () => {
  fc.assert(
    fc.property(
      inputs,
      fc.constantFrom(...Object.values(policies)),
      fc.double({ min: 0, max: 1e6, noNaN: true }),
      (input, policy, horizonSteps) => {
        const plan = policy(input);
        const gated = gatePlan(input, plan, { ...OPTIONS, horizonSteps });
        assertPlan(input, gated);
        const planned = imbalances(input, plan);
        const reached = imbalances(input, gated);
        for (const decision of gated.decisions) {
          const { layer, accepted, staleImbalance = Infinity } = decision;
          const expected = accepted ? planned[layer]! : staleImbalance;
          assertAlmostEquals(reached[layer]!, expected, 1e-9);
          if (!accepted && input.active === undefined) {
            assertEquals(movedSlots(input.current!, gated.placement, layer), 0);
          }
        }
      },
    ),
    { numRuns: 300 },
  );
});

Deno.test("gatePlan() refuses what does not fit", () => {
  const cases: readonly [Partial<GateOptions>, string][] = [
    [{ expertBytes: 0 }, "expertBytes must be an integer from 1"],
    [
      { secondsPerCost: -1 },
      "secondsPerCost must be non-negative and finite, it is -1",
    ],
    [
      { horizonSteps: NaN },
      "horizonSteps must be non-negative and finite, it is NaN",
    ],
    [{ windowSteps: 0 }, "windowSteps must be positive and finite, it is 0"],
    [{ noise: -1 }, "noise must be non-negative and finite, it is -1"],
  ];
  for (const [change, message] of cases) {
    assertThrows(
      () => gatePlan(INPUT, PLAN, { ...OPTIONS, ...change }),
      RangeError,
      `Cannot gate plan: ${message}`,
    );
  }
  assertThrows(
    () =>
      gatePlan(INPUT, {
        ...PLAN,
        placement: Placement.from([[0, 1, 2, 3, 0, 1]], { ranks: 2 }),
      }, OPTIONS),
    RangeError,
    "Cannot gate plan: it has 1 layers on 2 ranks of 3 slots with 4 experts, the job has 2 layers",
  );
  assertThrows(
    () => gatePlan(INPUT, { ...PLAN, shares: new Float64Array(3) }, OPTIONS),
    RangeError,
    "Cannot gate plan: there are 3 shares for 12 slots",
  );
});
