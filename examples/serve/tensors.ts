// SPDX-License-Identifier: Apache-2.0
// Tensors of a checkpoint as numbers to compute with.

import {
  type Dtype,
  openSafetensors,
  type SafetensorsReader,
} from "@eplb/eplb";
import { join } from "@std/path";

/** All tensors of a checkpoint, whatever its shards. */
export class Tensors implements Disposable {
  readonly #files: readonly SafetensorsReader[];

  private constructor(files: readonly SafetensorsReader[]) {
    this.#files = files;
  }

  /** Opens every safetensors file of a folder. */
  static async open(folder: string): Promise<Tensors> {
    const files: SafetensorsReader[] = [];
    try {
      for await (const { name } of Deno.readDir(folder)) {
        if (!name.endsWith(".safetensors")) continue;
        files.push(await openSafetensors(join(folder, name)));
      }
      return new Tensors(files);
    } catch (error) {
      for (const file of files) file.close();
      throw error;
    }
  }

  /** Reads a tensor, row major; undefined if the checkpoint has none of this name. */
  async find(name: string): Promise<Float32Array | undefined> {
    const file = this.#files.find((one) => one.has(name));
    if (file === undefined) return undefined;
    return decode(await file.read(name), file.info(name).dtype);
  }

  /** Reads a tensor that must be there. */
  async read(name: string): Promise<Float32Array> {
    const values = await this.find(name);
    if (values !== undefined) return values;
    throw new RangeError(`Cannot read model: there is no tensor "${name}"`);
  }

  /** Closes the files. */
  [Symbol.dispose](): void {
    for (const file of this.#files) file.close();
  }
}

/**
 * Widens weights to float32, which loses nothing.
 *
 * @param bytes Weights as they lie in memory, aligned to their elements.
 * @param dtype Their type: BF16 or F32.
 * @param target Where to put them.
 * @returns `target`.
 */
export function decode(
  bytes: Uint8Array<ArrayBuffer>,
  dtype: Dtype,
  target: Float32Array<ArrayBuffer> = new Float32Array(
    bytes.byteLength / (dtype === "BF16" ? 2 : 4),
  ),
): Float32Array<ArrayBuffer> {
  const { buffer, byteOffset } = bytes;
  if (dtype === "F32") {
    target.set(new Float32Array(buffer, byteOffset, target.length));
  } else if (dtype === "BF16") {
    // A bfloat16 is the upper half of a float32.
    const halves = new Uint16Array(buffer, byteOffset, target.length);
    const words = new Uint32Array(
      target.buffer,
      target.byteOffset,
      target.length,
    );
    for (let i = 0; i < words.length; i++) words[i] = halves[i]! << 16;
  } else {
    throw new TypeError(
      `Cannot compute with weights of type ${dtype}: known are BF16 and F32`,
    );
  }
  return target;
}
