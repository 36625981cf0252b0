import { assertEquals, assertThrows } from "@std/assert";
import { policies } from "../../lib/policies/registry.ts";
import { assertPlan } from "./_contract.ts";
import { golden, jobOf } from "./_golden.ts";

Deno.test("policies names functions that plan under one contract", () => {
  for (const policy of Object.values(policies)) {
    for (const sizes of golden) {
      const first = jobOf(sizes, sizes.load);
      const current = policy(first).placement;
      const next = { ...jobOf(sizes, sizes.next_load), current };
      assertPlan(first, policy(first));
      assertPlan(next, policy(next));
    }
  }
});

Deno.test("policies cannot be changed", () => {
  assertThrows(() => Object.assign(policies, { swap: undefined }), TypeError);
  assertEquals(policies.swap.name, "swapPolicy");
});
