import { assertEquals, assertThrows } from "@std/assert";
import {
  modelShape,
  type ModelShapeOptions,
} from "../../lib/weights/shapes.ts";

/** Name, dtype and shape of each tensor. */
function tensors(name: string, options?: ModelShapeOptions): unknown[] {
  return modelShape(name, options).layout.tensors.map(
    ({ name, dtype, shape }) => [name, dtype, shape],
  );
}

Deno.test("modelShape() has the published sizes of the models", () => {
  assertEquals(tensors("deepseek-r1"), [
    ["w13", "F8_E4M3", [4096, 7168]],
    ["w2", "F8_E4M3", [7168, 2048]],
    ["w13_scale", "F32", [32, 56]],
    ["w2_scale", "F32", [56, 16]],
  ]);
  assertEquals(tensors("qwen3-235b"), [
    ["w13", "BF16", [3072, 4096]],
    ["w2", "BF16", [4096, 1536]],
  ]);
  assertEquals(tensors("mixtral-8x7b"), [
    ["w13", "BF16", [28672, 4096]],
    ["w2", "BF16", [4096, 14336]],
  ]);
  assertEquals(tensors("tiny"), [
    ["w13", "BF16", [128, 64]],
    ["w2", "BF16", [64, 64]],
    ["w13_scale", "F32", [2, 1]],
    ["w2_scale", "F32", [1, 1]],
  ]);
  const counts = ["deepseek-r1", "qwen3-235b", "mixtral-8x7b", "tiny"]
    .map((name) => modelShape(name))
    .map(({ name, layers, experts }) => [name, layers, experts]);
  assertEquals(counts, [
    ["deepseek-r1", 58, 256],
    ["qwen3-235b", 94, 128],
    ["mixtral-8x7b", 32, 8],
    ["tiny", 4, 16],
  ]);
});

Deno.test("modelShape() agrees with the size of DeepSeek-R1's experts", () => {
  // Three 2048 × 7168 matrices of one byte, and one float per 128 × 128 block.
  const bytes = 3 * 2048 * 7168 + 3 * 16 * 56 * 4;
  assertEquals(modelShape("deepseek-r1").layout.expertBytes, bytes);
});

Deno.test("modelShape() reduces layers, experts and sizes", () => {
  const options = { layers: 3, experts: 12, scale: 32 };
  const { layers, experts } = modelShape("deepseek-r1", options);
  assertEquals([layers, experts], [3, 12]);
  // Gate and up have a scale each, however small they are.
  assertEquals(tensors("deepseek-r1", options), [
    ["w13", "F8_E4M3", [128, 224]],
    ["w2", "F8_E4M3", [224, 64]],
    ["w13_scale", "F32", [2, 2]],
    ["w2_scale", "F32", [2, 1]],
  ]);
});

Deno.test("modelShape() refuses what it cannot size", () => {
  const cases: [string, ModelShapeOptions, string][] = [
    [
      "gpt-2",
      {},
      'Cannot size model "gpt-2": known are deepseek-r1, qwen3-235b, mixtral-8x7b, fine-grained, tiny',
    ],
    [
      "qwen3-235b",
      { scale: 3 },
      'Cannot size model "qwen3-235b": scale 3 does not divide hidden size 4096 and intermediate size 1536',
    ],
    [
      "tiny",
      { layers: 0 },
      'Cannot size model "tiny": layers must be an integer from 1',
    ],
    [
      "tiny",
      { experts: 1.5 },
      'Cannot size model "tiny": experts must be an integer from 1',
    ],
    [
      "tiny",
      { scale: -1 },
      'Cannot size model "tiny": scale must be an integer from 1',
    ],
  ];
  for (const [name, options, message] of cases) {
    assertThrows(() => modelShape(name, options), RangeError, message);
  }
});
