import { assertAlmostEquals, assertEquals, assertThrows } from "@std/assert";
import fc from "fast-check";
import { balancedness } from "../lib/metrics.ts";
import { Placement } from "../lib/placement.ts";

const TWO_LAYERS = Placement.from([[0, 1, 2, 0], [1, 2, 0, -1]], { ranks: 2 });

Deno.test("balancedness() is mean rank load over maximum rank load", () => {
  // Layer 0: 60/2 + 10 and 20 + 60/2. Layer 1: 30 + 50 and 20.
  const load = new Float64Array([60, 10, 20, 20, 30, 50]);
  const { layers, mean } = balancedness(load, TWO_LAYERS);
  assertEquals([...layers], [45 / 50, 50 / 80]);
  assertAlmostEquals(mean, (0.9 + 0.625) / 2, 1e-12);
});

Deno.test("balancedness() takes int32 counts alike", () => {
  const counts = [60, 10, 20, 20, 30, 50];
  assertEquals(
    balancedness(new Int32Array(counts), TWO_LAYERS),
    balancedness(new Float64Array(counts), TWO_LAYERS),
  );
});

Deno.test("balancedness() counts a layer without load as 1", () => {
  const load = new Float64Array([0, 0, 0, 20, 30, 50]);
  assertEquals([...balancedness(load, TWO_LAYERS).layers], [1, 50 / 80]);
});

Deno.test("balancedness() follows unequal shares and skips empty slots", () => {
  // Layer 0: 60·¼ + 10 and 20 + 60·¾.
  const load = new Float64Array([60, 10, 20, 20, 30, 50]);
  const shares = new Float32Array([0.25, 1, 1, 0.75, 1, 1, 1, 7]);
  const { layers } = balancedness(load, TWO_LAYERS, { shares });
  assertEquals([...layers], [45 / 65, 50 / 80]);
});

/** A placement in rows, and a load in rows. */
const scenes = fc.record({
  ranks: fc.integer({ min: 1, max: 5 }),
  slotsPerRank: fc.integer({ min: 1, max: 4 }),
  layers: fc.integer({ min: 1, max: 3 }),
}).chain(({ ranks, slotsPerRank, layers }) => {
  const slots = ranks * slotsPerRank;
  return fc.integer({ min: 1, max: slots }).chain((experts) => {
    const row = fc.array(fc.integer({ min: -1, max: experts - 1 }), {
      minLength: slots - experts,
      maxLength: slots - experts,
    }).chain((rest) => {
      const all = [...Array(experts).keys(), ...rest];
      return fc.shuffledSubarray(all, { minLength: slots, maxLength: slots });
    });
    const tokens = fc.array(fc.nat(1_000_000), {
      minLength: experts,
      maxLength: experts,
    });
    const size = { minLength: layers, maxLength: layers };
    return fc.record({
      ranks: fc.constant(ranks),
      experts: fc.constant(experts),
      map: fc.array(row, size),
      load: fc.array(tokens, size),
    });
  });
});

Deno.test("balancedness() agrees with a naive model", () => {
  fc.assert(fc.property(scenes, ({ ranks, experts, map, load }) => {
    const expected = map.map((row, layer) => {
      const sums = Array.from({ length: ranks }, (_, rank) => {
        const perRank = row.length / ranks;
        return row.slice(rank * perRank, (rank + 1) * perRank)
          .filter((expert) => expert >= 0)
          .map((expert) =>
            load[layer]![expert]! /
            row.filter((other) => other === expert).length
          )
          .reduce((a, b) => a + b, 0);
      });
      const max = Math.max(...sums);
      return max === 0 ? 1 : sums.reduce((a, b) => a + b) / ranks / max;
    });
    const placement = Placement.from(map, { ranks, experts });
    const actual = balancedness(new Float64Array(load.flat()), placement);
    for (const [layer, value] of expected.entries()) {
      assertAlmostEquals(actual.layers[layer]!, value, 1e-9);
    }
  }));
});

Deno.test("balancedness() lies between 1 / ranks and 1", () => {
  fc.assert(fc.property(scenes, ({ ranks, experts, map, load }) => {
    const placement = Placement.from(map, { ranks, experts });
    const { layers, mean } = balancedness(
      new Float64Array(load.flat()),
      placement,
    );
    for (const value of [...layers, mean]) {
      assertEquals(value >= 1 / ranks - 1e-12 && value <= 1, true);
    }
  }));
});

Deno.test("balancedness() refuses loads and shares that do not fit", () => {
  assertThrows(
    () => balancedness(new Float64Array(5), TWO_LAYERS),
    RangeError,
    "Cannot measure balancedness: load must have 2 layers × 3 experts, it has 5 values",
  );
  for (const bad of [-1, NaN, Infinity]) {
    assertThrows(
      () => balancedness(new Float64Array([0, 0, 0, 0, bad, 0]), TWO_LAYERS),
      RangeError,
      `Cannot measure balancedness: load of layer 1, expert 1 must be non-negative and finite, it is ${bad}`,
    );
  }
  const load = new Float64Array(6);
  assertThrows(
    () => balancedness(load, TWO_LAYERS, { shares: new Float32Array(4) }),
    RangeError,
    "Cannot measure balancedness: shares must have 2 layers × 4 slots, they have 4 values",
  );
  const shares = [0.5, 1, 1, 0.5, 1, 1, 1, 0];
  assertThrows(
    () =>
      balancedness(load, TWO_LAYERS, {
        shares: new Float64Array(shares.with(5, 1.5)),
      }),
    RangeError,
    "Cannot measure balancedness: share of layer 1, slot 1 must be between 0 and 1, it is 1.5",
  );
  assertThrows(
    () =>
      balancedness(load, TWO_LAYERS, {
        shares: new Float64Array(shares.with(0, 0.25)),
      }),
    RangeError,
    "Cannot measure balancedness: shares of layer 0, expert 0 must add up to 1, they add up to 0.75",
  );
});
