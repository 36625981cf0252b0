// SPDX-License-Identifier: Apache-2.0

/**
 * The tensors that one expert consists of, alike in every layer.
 *
 * @module
 */
import { type Dtype, tensorBytes } from "./dtype.ts";

/**
 * What a tensor is to an expert.
 *
 * | role           | when an expert moves to another slot |
 * | -------------- | ------------------------------------ |
 * | `"expert"`     | its bytes move along                 |
 * | `"replicated"` | alike on all ranks: nothing to do    |
 * | `"derived"`    | computed anew from the others        |
 */
export type TensorRole = "expert" | "replicated" | "derived";

/** One tensor of an expert, as it is asked for. */
export interface ExpertTensorSpec {
  /** Name, unique in its layout. */
  readonly name: string;
  /** Element type. */
  readonly dtype: Dtype;
  /** Elements per dimension, of one expert. */
  readonly shape: readonly number[];
  /**
   * What the tensor is to the expert.
   *
   * @default {"expert"}
   */
  readonly role?: TensorRole;
}

/** One tensor of an expert. */
export interface ExpertTensor extends ExpertTensorSpec {
  /** What the tensor is to the expert. */
  readonly role: TensorRole;
  /** Bytes of one expert in this tensor. */
  readonly bytes: number;
}

/**
 * The tensors that one expert consists of, alike in every layer.
 *
 * @example
 * ```ts
 * import { ExpertLayout } from "@eplb/eplb";
 * import { assertEquals } from "@std/assert";
 *
 * const layout = new ExpertLayout([
 *   { name: "w13", dtype: "BF16", shape: [128, 64] },
 *   { name: "w2", dtype: "BF16", shape: [64, 64] },
 * ]);
 * assertEquals(layout.tensors[0]!.bytes, 16_384);
 * assertEquals(layout.expertBytes, 24_576);
 * ```
 */
export class ExpertLayout {
  /** All tensors, in the order in which they were given. */
  readonly tensors: readonly ExpertTensor[];
  /** The tensors that move with an expert: those of role `"expert"`. */
  readonly moved: readonly ExpertTensor[];
  /** Bytes that move with one expert of one layer. */
  readonly expertBytes: number;

  /**
   * Sizes the tensors.
   *
   * @param tensors Tensors of one expert; at least one has the role `"expert"`.
   * @throws {TypeError} If a dtype is not known.
   * @throws {RangeError} If a name is empty or used twice, if a tensor has no
   * bytes or no whole number of them, or if no tensor moves with the expert.
   */
  constructor(tensors: readonly ExpertTensorSpec[]) {
    this.tensors = tensors.map(sized);
    this.moved = this.tensors.filter(({ role }) => role === "expert");
    this.expertBytes = this.moved.reduce((sum, { bytes }) => sum + bytes, 0);
    checkNames(this.tensors);
    if (this.moved.length === 0) {
      throw new RangeError(
        `Cannot lay out an expert: none of its ${this.tensors.length} tensors has the role "expert"`,
      );
    }
  }
}

function sized(spec: ExpertTensorSpec): ExpertTensor {
  const { name, dtype, shape, role = "expert" } = spec;
  const bytes = tensorBytes(dtype, shape);
  if (bytes === 0) {
    throw new RangeError(
      `Cannot lay out an expert: tensor "${name}" of shape [${
        shape.join(", ")
      }] has no bytes`,
    );
  }
  return { name, dtype, shape: [...shape], role, bytes };
}

function checkNames(tensors: readonly ExpertTensor[]): void {
  const names = new Set<string>();
  for (const { name } of tensors) {
    if (name === "" || names.has(name)) {
      throw new RangeError(
        `Cannot lay out an expert: tensor name "${name}" is ${
          name === "" ? "empty" : "used twice"
        }`,
      );
    }
    names.add(name);
  }
}
