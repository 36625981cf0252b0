import { assertEquals, assertStrictEquals, assertThrows } from "@std/assert";
import fc from "fast-check";
import { countTokens, logicalCounts } from "../../lib/load/counts.ts";
import { Placement } from "../../lib/placement.ts";

Deno.test("countTokens() counts what a list of tokens counts", () => {
  const routing = fc.record({
    experts: fc.integer({ min: 1, max: 6 }),
    k: fc.integer({ min: 1, max: 3 }),
    tokens: fc.nat(20),
  }).chain(({ experts, k, tokens }) =>
    fc.record({
      experts: fc.constant(experts),
      ids: fc.array(
        fc.array(fc.integer({ min: -1, max: experts - 1 }), {
          minLength: k,
          maxLength: k,
        }),
        { minLength: tokens, maxLength: tokens },
      ),
      valid: fc.option(
        fc.array(fc.boolean(), { minLength: tokens, maxLength: tokens }),
        { nil: undefined },
      ),
    })
  );
  fc.assert(fc.property(routing, ({ experts, ids, valid }) => {
    const expected = Array<number>(experts).fill(0);
    for (const [token, chosen] of ids.entries()) {
      if (valid?.[token] === false) continue;
      for (const id of chosen) if (id >= 0) expected[id]! += 1;
    }
    const counts = countTokens(new Int32Array(ids.flat()), {
      experts,
      ...(valid && { valid: Uint8Array.from(valid, Number) }),
    });
    assertEquals([...counts], expected);
  }));
});

Deno.test("countTokens() adds to counts that it is given", () => {
  const step = new Float64Array([1, 2, 3, 4]);
  const into = step.subarray(2);
  const ids = new Int32Array([1, 1, 0]);
  assertStrictEquals(countTokens(ids, { experts: 2, into }), into);
  assertEquals([...step], [1, 2, 4, 6]);
});

Deno.test("countTokens() refuses ids that are no experts and counts nothing", () => {
  for (const id of [-2, 3, 2 ** 31 - 1]) {
    const into = new Float64Array(3);
    const ids = new Int32Array([0, 1, 2, id]);
    assertThrows(
      () => countTokens(ids, { experts: 3, into }),
      RangeError,
      `Cannot count tokens: id 3 is ${id}, not one of 3 experts or -1`,
    );
    // A mask says that a token is padding, not that its ids may be anything.
    const valid = new Uint8Array([1, 0]);
    assertThrows(() => countTokens(ids, { experts: 3, valid, into }));
    assertEquals([...into], [0, 0, 0]);
  }
});

Deno.test("countTokens() refuses sizes that do not fit", () => {
  const ids = new Int32Array(6);
  for (const tokens of [0, 4, 12]) {
    assertThrows(
      () => countTokens(ids, { experts: 1, valid: new Uint8Array(tokens) }),
      RangeError,
      `Cannot count tokens: 6 ids do not divide among ${tokens} tokens`,
    );
  }
  assertThrows(
    () => countTokens(ids, { experts: 2, into: new Float64Array(3) }),
    RangeError,
    "Cannot count tokens: into has 3 counts instead of 2",
  );
  assertThrows(
    () => countTokens(ids, { experts: 0 }),
    RangeError,
    "Cannot count tokens: experts must be an integer from 1",
  );
});

Deno.test("logicalCounts() adds up the slots of each expert", () => {
  const placement = Placement.from([[0, 1, 0, -1], [1, -1, 1, 0]], {
    ranks: 2,
  });
  const counts = new Float64Array([1, 2, 4, 0, 8, 0, 16, 32]);
  assertEquals([...logicalCounts(counts, placement)], [5, 2, 32, 24]);
});

Deno.test("logicalCounts() does not overflow where int32 would", () => {
  const placement = Placement.from([[0, 0, 0]], { ranks: 1 });
  const counts = new Int32Array(3).fill(2 ** 31 - 1);
  assertEquals([...logicalCounts(counts, placement)], [3 * (2 ** 31 - 1)]);
});

Deno.test("logicalCounts() refuses counts that do not fit the placement", () => {
  const placement = Placement.from([[0, 1, -1], [0, 1, 0]], { ranks: 1 });
  assertThrows(
    () => logicalCounts(new Int32Array(4), placement),
    RangeError,
    "Cannot add up counts: there must be 2 layers × 3 slots, there are 4 counts",
  );
  assertThrows(
    () => logicalCounts(new Int32Array([0, 0, 9, 0, 0, 0]), placement),
    RangeError,
    "Cannot add up counts: layer 0, slot 2 is empty but has 9 tokens",
  );
});
