// SPDX-License-Identifier: Apache-2.0

/**
 * Sizes of known models, for planning and benchmarks without a checkpoint.
 *
 * @module
 */
import { checkInteger } from "../_check.ts";
import type { Dtype } from "./dtype.ts";
import { ExpertLayout, type ExpertTensorSpec } from "./layout.ts";

/**
 * Name of a model whose sizes are known.
 *
 * | name               | MoE layers | experts | hidden | intermediate | weights        |
 * | ------------------ | ---------- | ------- | ------ | ------------ | -------------- |
 * | `"deepseek-r1"`    | 58         | 256     | 7168   | 2048         | FP8 and scales |
 * | `"qwen3-235b"`     | 94         | 128     | 4096   | 1536         | BF16           |
 * | `"mixtral-8x7b"`   | 32         | 8       | 4096   | 14336        | BF16           |
 * | `"fine-grained"`   | 58         | 128     | 1024   | 512          | FP8 and scales, without a gate: 1 MiB |
 * | `"tiny"`           | 4          | 16      | 64     | 64           | BF16 and scales |
 */
export type ModelName =
  | "deepseek-r1"
  | "qwen3-235b"
  | "mixtral-8x7b"
  | "fine-grained"
  | "tiny";

/** Layers, experts and expert layout of a model. */
export interface ModelShape {
  /** The model's name. */
  readonly name: ModelName;
  /** MoE layers. */
  readonly layers: number;
  /** Logical experts per layer. */
  readonly experts: number;
  /** Tensors of one expert. */
  readonly layout: ExpertLayout;
}

/** Options of {@linkcode modelShape}. */
export interface ModelShapeOptions {
  /**
   * MoE layers instead of the model's own number.
   *
   * @default {the model's}
   */
  readonly layers?: number;
  /**
   * Logical experts per layer instead of the model's own number.
   *
   * @default {the model's}
   */
  readonly experts?: number;
  /**
   * Divides the hidden and the intermediate size.
   *
   * @default {1}
   */
  readonly scale?: number;
}

interface Sizes {
  readonly layers: number;
  readonly experts: number;
  readonly hidden: number;
  readonly intermediate: number;
  readonly dtype: Dtype;
  readonly scales: boolean;
  /** Whether there is a gate beside the up projection; so it is unless this is false. */
  readonly gated?: boolean;
}

const MODELS: ReadonlyMap<string, Sizes> = new Map<ModelName, Sizes>([
  ["deepseek-r1", {
    layers: 58,
    experts: 256,
    hidden: 7168,
    intermediate: 2048,
    dtype: "F8_E4M3",
    scales: true,
  }],
  ["qwen3-235b", {
    layers: 94,
    experts: 128,
    hidden: 4096,
    intermediate: 1536,
    dtype: "BF16",
    scales: false,
  }],
  ["mixtral-8x7b", {
    layers: 32,
    experts: 8,
    hidden: 4096,
    intermediate: 14336,
    dtype: "BF16",
    scales: false,
  }],
  ["fine-grained", {
    layers: 58,
    experts: 128,
    hidden: 1024,
    intermediate: 512,
    dtype: "F8_E4M3",
    scales: true,
    gated: false,
  }],
  ["tiny", {
    layers: 4,
    experts: 16,
    hidden: 64,
    intermediate: 64,
    dtype: "BF16",
    scales: true,
  }],
]);

/** Side of the square that shares one scale in DeepSeek's FP8 weights. */
const SCALE_BLOCK = 128;

/**
 * Sizes of a known model, whole or reduced.
 *
 * The tensors are `w13` [2 × intermediate, hidden] (gate, then up; without a gate
 * `w1` [intermediate, hidden]), `w2` [hidden, intermediate] (down) and, where the weights have them, `w13_scale`
 * and `w2_scale`: one F32 for each 128 × 128 block of gate, up and down.
 *
 * @param name The model's name.
 * @param options Reductions.
 * @returns Layers, experts and layout.
 * @throws {RangeError} If the model is not known, if an option is not a
 * positive integer, or if `scale` does not divide the model's sizes.
 *
 * @example
 * ```ts
 * import { modelShape } from "@eplb/eplb";
 * import { assertEquals } from "@std/assert";
 *
 * const model = modelShape("deepseek-r1", { layers: 2, scale: 16 });
 * assertEquals(model.layers, 2);
 * assertEquals(model.experts, 256);
 * assertEquals(model.layout.tensors[0]!.shape, [256, 448]);
 * ```
 */
export function modelShape(
  name: string,
  options: ModelShapeOptions = {},
): ModelShape {
  const sizes = MODELS.get(name);
  if (sizes === undefined) {
    throw new RangeError(
      `Cannot size model "${name}": known are ${[...MODELS.keys()].join(", ")}`,
    );
  }
  const { layers = sizes.layers, experts = sizes.experts, scale = 1 } = options;
  for (const [option, value] of Object.entries({ layers, experts, scale })) {
    checkInteger(value, {
      action: `size model "${name}"`,
      name: option,
      min: 1,
    });
  }
  const { hidden, intermediate } = sizes;
  if (hidden % scale !== 0 || intermediate % scale !== 0) {
    throw new RangeError(
      `Cannot size model "${name}": scale ${scale} does not divide hidden size ${hidden} and intermediate size ${intermediate}`,
    );
  }
  const layout = new ExpertLayout(
    tensorSpecs(sizes, { h: hidden / scale, i: intermediate / scale }),
  );
  return { name: name as ModelName, layers, experts, layout };
}

/** Gate and up are quantized apart, so each begins a block of its own. */
function tensorSpecs(
  { dtype, scales, gated = true }: Sizes,
  { h, i }: { readonly h: number; readonly i: number },
): ExpertTensorSpec[] {
  const [up, parts] = gated ? ["w13", 2] : ["w1", 1];
  const specs: ExpertTensorSpec[] = [
    { name: up, dtype, shape: [parts * i, h] },
    { name: "w2", dtype, shape: [h, i] },
  ];
  if (scales) {
    const [hb, ib] = [Math.ceil(h / SCALE_BLOCK), Math.ceil(i / SCALE_BLOCK)];
    specs.push({ name: `${up}_scale`, dtype: "F32", shape: [parts * ib, hb] });
    specs.push({ name: "w2_scale", dtype: "F32", shape: [hb, ib] });
  }
  return specs;
}
