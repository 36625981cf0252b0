import { assertEquals, assertThrows } from "@std/assert";
import { ExpertLayout } from "../../lib/weights/layout.ts";

Deno.test("ExpertLayout() sizes its tensors", () => {
  const layout = new ExpertLayout([
    { name: "w13", dtype: "F8_E4M3", shape: [4096, 7168] },
    { name: "w13_scale", dtype: "F32", shape: [32, 56] },
  ]);
  assertEquals(layout.tensors, [
    {
      name: "w13",
      dtype: "F8_E4M3",
      shape: [4096, 7168],
      role: "expert",
      bytes: 29_360_128,
    },
    {
      name: "w13_scale",
      dtype: "F32",
      shape: [32, 56],
      role: "expert",
      bytes: 7168,
    },
  ]);
  assertEquals(layout.moved, layout.tensors);
  assertEquals(layout.expertBytes, 29_367_296);
});

Deno.test("ExpertLayout() counts only what moves with an expert", () => {
  const layout = new ExpertLayout([
    { name: "w", dtype: "U8", shape: [100] },
    { name: "table", dtype: "U8", shape: [7], role: "replicated" },
    { name: "sums", dtype: "U8", shape: [9], role: "derived" },
  ]);
  assertEquals(layout.tensors.length, 3);
  assertEquals(layout.moved.map(({ name }) => name), ["w"]);
  assertEquals(layout.expertBytes, 100);
});

Deno.test("ExpertLayout() keeps its own copy of a shape", () => {
  const shape = [2, 3];
  const layout = new ExpertLayout([{ name: "w", dtype: "U8", shape }]);
  shape[0] = 9;
  assertEquals(layout.tensors[0]!.shape, [2, 3]);
});

Deno.test("ExpertLayout() refuses tensors that make no expert", () => {
  const w = { name: "w", dtype: "U8", shape: [4] } as const;
  const cases: [ConstructorParameters<typeof ExpertLayout>[0], string][] = [
    [[w, w], 'tensor name "w" is used twice'],
    [[{ ...w, name: "" }], 'tensor name "" is empty'],
    [[{ ...w, shape: [4, 0] }], 'tensor "w" of shape [4, 0] has no bytes'],
    [[], 'none of its 0 tensors has the role "expert"'],
    [
      [{ ...w, role: "derived" }],
      'none of its 1 tensors has the role "expert"',
    ],
  ];
  for (const [tensors, message] of cases) {
    assertThrows(
      () => new ExpertLayout(tensors),
      RangeError,
      `Cannot lay out an expert: ${message}`,
    );
  }
});
