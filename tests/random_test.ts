import { assert, assertEquals, assertThrows } from "@std/assert";
import { SeededRandom } from "../lib/random.ts";

Deno.test("SeededRandom.uint32() gives the sequence of splitmix32", () => {
  // Computed with arbitrary-precision integers, reduced modulo 2³² at each step.
  const golden = [
    [0, [1684164658, 3653269916, 2939563536]],
    [1, [1580013426, 350525680, 3524174333]],
    [2 ** 32 - 1, [3950124170, 4293442868]],
  ] as const;
  for (const [seed, expected] of golden) {
    const random = new SeededRandom(seed);
    assertEquals(expected.map(() => random.uint32()), [...expected]);
  }
});

Deno.test("SeededRandom.below() gives every value about equally often", () => {
  const random = new SeededRandom(5);
  const counts = new Array<number>(7).fill(0);
  for (let draw = 0; draw < 7000; draw++) counts[random.below(7)]!++;
  assertEquals(counts.length, 7);
  // 1000 each are expected, with a standard deviation of 29.
  for (const count of counts) assert(Math.abs(count - 1000) < 150, `${counts}`);
});

Deno.test("SeededRandom.shuffle() gives every order about equally often", () => {
  const random = new SeededRandom(6);
  const seen = new Map<string, number>();
  for (let draw = 0; draw < 6000; draw++) {
    const values = Int32Array.of(1, 2, 3);
    random.shuffle(values);
    seen.set(values.join(), (seen.get(values.join()) ?? 0) + 1);
  }
  assertEquals([...seen.keys()].sort(), [
    "1,2,3",
    "1,3,2",
    "2,1,3",
    "2,3,1",
    "3,1,2",
    "3,2,1",
  ]);
  for (const count of seen.values()) assert(Math.abs(count - 1000) < 150);
});

Deno.test("new SeededRandom() refuses a seed that is not 32 bits", () => {
  for (const seed of [-1, 0.5, 2 ** 32, NaN]) {
    assertThrows(
      () => new SeededRandom(seed),
      RangeError,
      `Cannot seed random numbers: the seed must be an integer from 0 to 4294967295, got ${seed}`,
    );
  }
});
