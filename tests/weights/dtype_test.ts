import { assertEquals, assertThrows } from "@std/assert";
import fc from "fast-check";
import { dtypeBits, isDtype, tensorBytes } from "../../lib/weights/dtype.ts";

Deno.test("dtypeBits() knows the element types of the safetensors format", () => {
  const bits = {
    4: ["F4"],
    6: ["F6_E2M3", "F6_E3M2"],
    8: [
      ...["BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0"],
      ...["F8_E4M3FNUZ", "F8_E5M2FNUZ"],
    ],
    16: ["U16", "I16", "F16", "BF16"],
    32: ["U32", "I32", "F32"],
    64: ["U64", "I64", "F64", "C64"],
  };
  for (const [size, names] of Object.entries(bits)) {
    for (const name of names) {
      assertEquals([name, dtypeBits(name)], [name, Number(size)]);
    }
  }
});

Deno.test("dtypeBits() refuses names of other libraries", () => {
  for (const name of ["bfloat16", "bf16", "", "__proto__", "toString"]) {
    assertEquals(isDtype(name), false);
    assertThrows(
      () => dtypeBits(name),
      TypeError,
      `Cannot size elements of dtype "${name}": known are BOOL, F4`,
    );
  }
});

Deno.test("tensorBytes() multiplies, and packs elements of less than a byte", () => {
  assertEquals(tensorBytes("F8_E4M3", [4096, 7168]), 4096 * 7168);
  assertEquals(tensorBytes("F32", [32, 56]), 7168);
  assertEquals(tensorBytes("F4", [3, 2]), 3);
  assertEquals(tensorBytes("F6_E2M3", [4]), 3);
  assertEquals(tensorBytes("I64", []), 8);
  assertEquals(tensorBytes("BF16", [5, 0, 3]), 0);
});

Deno.test("tensorBytes() agrees with exact arithmetic or refuses", () => {
  const size = fc.oneof(fc.nat(40), fc.nat(2 ** 31), fc.maxSafeNat());
  fc.assert(fc.property(fc.array(size, { maxLength: 5 }), (shape) => {
    const exact = shape.reduce((n, size) => n * BigInt(size), 32n);
    if (exact > Number.MAX_SAFE_INTEGER) {
      assertThrows(() => tensorBytes("F32", shape), RangeError, "2^53 bits");
    } else {
      assertEquals(BigInt(tensorBytes("F32", shape)), exact / 8n);
    }
  }));
});

Deno.test("tensorBytes() refuses sizes that are none", () => {
  for (const size of [-1, 1.5, NaN, Infinity, 2 ** 53]) {
    assertThrows(
      () => tensorBytes("U8", [2, size]),
      RangeError,
      `Cannot size U8 tensor of shape [2, ${size}]: ${size} is not a non-negative safe integer`,
    );
  }
  assertThrows(
    () => tensorBytes("F4", [3]),
    RangeError,
    "Cannot size F4 tensor of shape [3]: 12 bits are not a whole number of bytes",
  );
});
