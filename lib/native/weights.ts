// SPDX-License-Identifier: Apache-2.0

import type { ExpertLayout } from "../weights/layout.ts";
import { check, ErrorText } from "./errors.ts";
import { type NativeLibrary, symbolsOf } from "./library.ts";
import { weightsConfig } from "./structs.ts";

/** The size of one rank's expert memory. */
export interface WeightsShape {
  /** The tensors of one expert. */
  readonly layout: ExpertLayout;
  /** MoE layers. */
  readonly layers: number;
  /** Slots of this rank in each layer. */
  readonly slots: number;
  /**
   * CUDA device number, or "host".
   *
   * @default {"host"}
   */
  readonly device?: number | "host";
}

/** Options of {@linkcode ExpertWeights.allocate}. */
export interface AllocateOptions extends WeightsShape {
  /**
   * Whether ranks in other processes may map the memory (host: POSIX shared memory).
   *
   * @default {false}
   */
  readonly shareable?: boolean;
}

/** Where one tensor of one layer lives, in memory the caller owns. */
export interface TensorMemory {
  /** Address of slot 0. */
  readonly address: bigint;
  /**
   * Bytes from one slot to the next.
   *
   * @default {the tensor's bytes per expert}
   */
  readonly stride?: number;
}

/** Options of {@linkcode ExpertWeights.register}. */
export interface RegisterOptions extends WeightsShape {
  /** `memory[layer][tensor]`, tensors in the layout's order, without replicated and derived ones. */
  readonly memory: readonly (readonly TensorMemory[])[];
}

/** One tensor of one expert: where to read or write. */
export interface ExpertPosition {
  /** Layer, 0 … layers-1. */
  readonly layer: number;
  /** Slot of this rank, 0 … slots-1. */
  readonly slot: number;
  /** Index of the tensor among those that move. */
  readonly tensor: number;
  /**
   * Bytes to skip inside the tensor.
   *
   * @default {0}
   */
  readonly offset?: number;
}

/**
 * The expert memory of one rank, on the host or on a GPU.
 *
 * @example Writing and reading an expert
 * ```ts
 * import { ExpertLayout, ExpertWeights, NativeLibrary } from "@eplb/eplb";
 * import { assertEquals } from "@std/assert";
 *
 * const layout = new ExpertLayout([{ name: "w", dtype: "U8", shape: [4] }]);
 * using weights = await ExpertWeights.allocate(NativeLibrary.open(), {
 *   layout,
 *   layers: 1,
 *   slots: 2,
 * });
 * weights.write({ layer: 0, slot: 1, tensor: 0 }, new Uint8Array([1, 2, 3, 4]));
 * const bytes = weights.read({ layer: 0, slot: 1, tensor: 0 });
 * assertEquals([...bytes], [1, 2, 3, 4]);
 * ```
 */
export class ExpertWeights implements Disposable {
  readonly #library: NativeLibrary;
  #handle: bigint;
  /** The tensors of one expert. */
  readonly layout: ExpertLayout;
  /** Bytes of one expert in each tensor that moves. */
  readonly tensorBytes: readonly number[];
  /** MoE layers. */
  readonly layers: number;
  /** Slots of this rank in each layer. */
  readonly slots: number;
  /** CUDA device number, or "host". */
  readonly device: number | "host";

  private constructor(library: NativeLibrary, shape: WeightsShape) {
    this.#library = library;
    this.layout = shape.layout;
    this.tensorBytes = shape.layout.moved.map(({ bytes }) => bytes);
    this.layers = shape.layers;
    this.slots = shape.slots;
    this.device = shape.device ?? "host";
    const error = new ErrorText();
    const handle = new BigUint64Array(1);
    const config = weightsConfig({
      ordinal: this.device === "host" ? -1 : this.device,
      layers: this.layers,
      slots: this.slots,
      tensors: this.tensorBytes.length,
    });
    const status = symbolsOf(library).eplb_weights_create(
      config,
      BigUint64Array.from(this.tensorBytes, BigInt),
      handle,
      error.buffer,
      error.capacity,
    );
    check(status, "eplb_weights_create", error);
    this.#handle = handle[0]!;
  }

  /**
   * Allocates zeroed expert memory.
   *
   * @param library The native library.
   * @param options Sizes, device, and whether other processes may map it.
   * @returns The weights, which own their memory.
   * @throws {EplbError} If there is not enough memory, or no such device.
   */
  static async allocate(
    library: NativeLibrary,
    options: AllocateOptions,
  ): Promise<ExpertWeights> {
    const weights = new ExpertWeights(library, options);
    const error = new ErrorText();
    const status = await symbolsOf(library).eplb_weights_allocate(
      weights.#handle,
      options.shareable ? 1 : 0,
      error.buffer,
      error.capacity,
    );
    if (status !== 0) weights.close();
    check(status, "eplb_weights_allocate", error);
    return weights;
  }

  /**
   * Registers memory that the caller owns and keeps until `close()`.
   *
   * @param library The native library.
   * @param options Sizes, device, and an address for each layer and tensor.
   * @returns The weights, which own nothing.
   * @throws {RangeError} If `memory` does not have one entry per layer and tensor.
   * @throws {EplbError} If addresses are null, strides are smaller than an expert, ranges overlap, or memory is not the device's.
   */
  static register(
    library: NativeLibrary,
    options: RegisterOptions,
  ): ExpertWeights {
    const weights = new ExpertWeights(library, options);
    try {
      const table = registrationTable(weights, options.memory);
      const error = new ErrorText();
      const status = symbolsOf(library).eplb_weights_register(
        weights.#handle,
        table,
        error.buffer,
        error.capacity,
      );
      check(status, "eplb_weights_register", error);
      return weights;
    } catch (error) {
      weights.close();
      throw error;
    }
  }

  /** **UNSAFE**: the native handle. */
  get unsafeHandle(): bigint {
    if (this.#handle === 0n) {
      throw new TypeError("Cannot use expert weights: they are closed");
    }
    return this.#handle;
  }

  /**
   * Copies bytes into one expert's tensor.
   *
   * @param position Where.
   * @param source The bytes; may be fewer than the tensor has.
   * @throws {EplbError} If the position or the size is out of range.
   */
  write(position: ExpertPosition, source: Uint8Array<ArrayBuffer>): void {
    const error = new ErrorText();
    const status = symbolsOf(this.#library).eplb_weights_write(
      this.unsafeHandle,
      position.layer,
      position.slot,
      position.tensor,
      BigInt(position.offset ?? 0),
      source,
      BigInt(source.byteLength),
      error.buffer,
      error.capacity,
    );
    check(status, "eplb_weights_write", error);
  }

  /**
   * Copies bytes out of one expert's tensor.
   *
   * @param position Where.
   * @param target Where to put them; default: a new array for the whole tensor.
   * @returns `target`.
   * @throws {EplbError} If the position or the size is out of range.
   */
  read(
    position: ExpertPosition,
    target?: Uint8Array<ArrayBuffer>,
  ): Uint8Array<ArrayBuffer> {
    const bytes = target ??
      new Uint8Array(this.tensorBytes[position.tensor] ?? 0);
    const error = new ErrorText();
    const status = symbolsOf(this.#library).eplb_weights_read(
      this.unsafeHandle,
      position.layer,
      position.slot,
      position.tensor,
      BigInt(position.offset ?? 0),
      bytes,
      BigInt(bytes.byteLength),
      error.buffer,
      error.capacity,
    );
    check(status, "eplb_weights_read", error);
    return bytes;
  }

  /**
   * Writes synthetic weights that depend on seed, layer, expert and tensor alone.
   *
   * @param experts Logical expert of each slot, [layers, slots]; -1 leaves a slot as it is.
   * @param options `seed`, default 0.
   * @throws {EplbError} If the device fails.
   */
  async fill(
    experts: Int32Array<ArrayBuffer>,
    options: { readonly seed?: number } = {},
  ): Promise<void> {
    if (experts.length !== this.layers * this.slots) {
      throw new RangeError(
        `Cannot fill weights: ${experts.length} experts are given for ` +
          `${this.layers} layers of ${this.slots} slots`,
      );
    }
    const error = new ErrorText();
    const status = await symbolsOf(this.#library).eplb_weights_fill(
      this.unsafeHandle,
      experts,
      BigInt(options.seed ?? 0),
      error.buffer,
      error.capacity,
    );
    check(status, "eplb_weights_fill", error);
  }

  /**
   * Computes a 64-bit digest of each tensor of each expert, where the bytes are.
   *
   * @returns [layers, slots, tensors], as pairs of 32-bit words (low, high).
   * @throws {EplbError} If the device fails.
   */
  async digest(): Promise<Uint32Array<ArrayBuffer>> {
    const digests = new Uint32Array(
      2 * this.layers * this.slots * this.tensorBytes.length,
    );
    const error = new ErrorText();
    const status = await symbolsOf(this.#library).eplb_weights_digest(
      this.unsafeHandle,
      digests,
      error.buffer,
      error.capacity,
    );
    check(status, "eplb_weights_digest", error);
    return digests;
  }

  /**
   * Tells where a tensor of one layer lives, for code that computes with it.
   *
   * @param layer The layer.
   * @param tensor Index of the tensor among those that move.
   * @returns Address of slot 0 and bytes from one slot to the next.
   * @throws {EplbError} If either is out of range.
   */
  address(layer: number, tensor: number): Required<TensorMemory> {
    const error = new ErrorText();
    const address = new BigUint64Array(1);
    const stride = new BigUint64Array(1);
    const status = symbolsOf(this.#library).eplb_weights_address(
      this.unsafeHandle,
      layer,
      tensor,
      address,
      stride,
      error.buffer,
      error.capacity,
    );
    check(status, "eplb_weights_address", error);
    return { address: address[0]!, stride: Number(stride[0]!) };
  }

  /** Frees the memory, if it is the library's; may be called twice. */
  close(): void {
    if (this.#handle === 0n) return;
    const error = new ErrorText();
    const status = symbolsOf(this.#library).eplb_weights_destroy(
      this.#handle,
      error.buffer,
      error.capacity,
    );
    check(status, "eplb_weights_destroy", error);
    this.#handle = 0n;
  }

  /** Same as {@linkcode ExpertWeights.close}. */
  [Symbol.dispose](): void {
    this.close();
  }
}

function registrationTable(
  weights: ExpertWeights,
  memory: RegisterOptions["memory"],
): BigUint64Array<ArrayBuffer> {
  const tensors = weights.tensorBytes.length;
  if (memory.length !== weights.layers) {
    throw new RangeError(
      `Cannot register weights: memory has ${memory.length} layers, not ${weights.layers}`,
    );
  }
  const table = new BigUint64Array(weights.layers * tensors * 2);
  for (const [layer, row] of memory.entries()) {
    if (row.length !== tensors) {
      throw new RangeError(
        `Cannot register weights: layer ${layer} has ${row.length} tensors, not ${tensors}`,
      );
    }
    for (const [tensor, { address, stride }] of row.entries()) {
      const entry = 2 * (layer * tensors + tensor);
      table[entry] = address;
      table[entry + 1] = BigInt(stride ?? weights.tensorBytes[tensor]!);
    }
  }
  return table;
}
