import { assertEquals } from "@std/assert";
import fc from "fast-check";
import { sameToken } from "../../lib/cluster/token.ts";

Deno.test("sameToken() tells equal tokens from others", () => {
  const token = fc.string({ minLength: 1, maxLength: 8, unit: "grapheme" });
  fc.assert(fc.property(token, fc.string({ maxLength: 8 }), (a, b) => {
    assertEquals(sameToken(a, a), true);
    assertEquals(sameToken(a, b), a === b);
    assertEquals(sameToken(a, a + a), false);
    assertEquals(sameToken(a, ""), false);
  }));
});
