// SPDX-License-Identifier: Apache-2.0

/**
 * Element types of weight tensors, under the names that safetensors files use.
 *
 * @module
 */

/** Name of an element type in a safetensors file. */
export type Dtype =
  | "BOOL"
  | "F4"
  | "F6_E2M3"
  | "F6_E3M2"
  | "U8"
  | "I8"
  | "F8_E5M2"
  | "F8_E4M3"
  | "F8_E8M0"
  | "F8_E4M3FNUZ"
  | "F8_E5M2FNUZ"
  | "U16"
  | "I16"
  | "F16"
  | "BF16"
  | "U32"
  | "I32"
  | "F32"
  | "C64"
  | "U64"
  | "I64"
  | "F64";

const BITS: ReadonlyMap<string, number> = new Map<Dtype, number>([
  ["BOOL", 8],
  ["F4", 4],
  ["F6_E2M3", 6],
  ["F6_E3M2", 6],
  ["U8", 8],
  ["I8", 8],
  ["F8_E5M2", 8],
  ["F8_E4M3", 8],
  ["F8_E8M0", 8],
  ["F8_E4M3FNUZ", 8],
  ["F8_E5M2FNUZ", 8],
  ["U16", 16],
  ["I16", 16],
  ["F16", 16],
  ["BF16", 16],
  ["U32", 32],
  ["I32", 32],
  ["F32", 32],
  ["C64", 64],
  ["U64", 64],
  ["I64", 64],
  ["F64", 64],
]);

/**
 * Tells whether a text is the name of a known element type.
 *
 * @param name Text to test.
 * @returns `true` if `name` is a {@linkcode Dtype}.
 */
export function isDtype(name: string): name is Dtype {
  return BITS.has(name);
}

/**
 * Bits of one element.
 *
 * @param dtype Name of the element type.
 * @returns Bits per element; 4 for `F4`, which packs two elements into a byte.
 * @throws {TypeError} If the name is not known.
 */
export function dtypeBits(dtype: string): number {
  const bits = BITS.get(dtype);
  if (bits === undefined) {
    throw new TypeError(
      `Cannot size elements of dtype "${dtype}": known are ${
        [...BITS.keys()].join(", ")
      }`,
    );
  }
  return bits;
}

/**
 * Bytes of a contiguous tensor.
 *
 * @param dtype Name of the element type.
 * @param shape Elements per dimension; an empty shape is a single element.
 * @returns Size in bytes.
 * @throws {TypeError} If the dtype is not known.
 * @throws {RangeError} If a dimension is not a non-negative safe integer, or if
 * the size is above 2^53 bits or not a whole number of bytes.
 */
export function tensorBytes(dtype: string, shape: readonly number[]): number {
  const bits = dtypeBits(dtype);
  const tensor = `${dtype} tensor of shape [${shape.join(", ")}]`;
  for (const size of shape) {
    if (!Number.isSafeInteger(size) || size < 0) {
      throw new RangeError(
        `Cannot size ${tensor}: ${size} is not a non-negative safe integer`,
      );
    }
  }
  if (shape.includes(0)) return 0;
  let total = bits;
  for (const size of shape) {
    total *= size;
    // Stops before numbers are rounded, and before a long list costs time.
    if (total > Number.MAX_SAFE_INTEGER) {
      throw new RangeError(`Cannot size ${tensor}: it has more than 2^53 bits`);
    }
  }
  if (total % 8 !== 0) {
    throw new RangeError(
      `Cannot size ${tensor}: ${total} bits are not a whole number of bytes`,
    );
  }
  return total / 8;
}
