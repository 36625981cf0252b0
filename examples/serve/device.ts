// SPDX-License-Identifier: Apache-2.0
// The engine's own way to the memory of its ranks. The library moves weights while the
// engine computes, so the engine reads them where they are, as its kernels would.

import type { Dispatcher } from "@eplb/eplb";

/** What tokens of one rank and layer are dispatched with. */
export interface DispatchCall {
  /** Logical experts, [tokens, topK]. */
  readonly logical: Int32Array<ArrayBuffer>;
  /** Filled with slots, [tokens, topK]. */
  readonly slots: Int32Array<ArrayBuffer>;
  /** The layer. */
  readonly layer: number;
  /** Experts of each token. */
  readonly topK: number;
  /** Lets a token choose other replicas in another step. */
  readonly salt: number;
}

/** Where the weights and maps of a rank are. */
export interface RankDevice extends Disposable {
  /** Copies bytes from the rank's memory. */
  read(address: bigint, target: Uint8Array<ArrayBuffer>): void;
  /** Sends tokens to slots. */
  dispatch(dispatcher: Dispatcher, call: DispatchCall): void;
}

/** Host memory. */
export const HOST: RankDevice = {
  read(address: bigint, target: Uint8Array<ArrayBuffer>): void {
    const pointer = Deno.UnsafePointer.create(address)!;
    new Deno.UnsafePointerView(pointer).copyInto(target);
  },
  dispatch(dispatcher: Dispatcher, call: DispatchCall): void {
    const { logical, slots, ...options } = call;
    dispatcher.dispatch(logical, slots, options);
  },
  [Symbol.dispose](): void {},
};

const SYMBOLS = {
  cuInit: { parameters: ["u32"], result: "i32" },
  cuDeviceGet: { parameters: ["buffer", "i32"], result: "i32" },
  cuDevicePrimaryCtxRetain: { parameters: ["buffer", "i32"], result: "i32" },
  cuDevicePrimaryCtxRelease_v2: { parameters: ["i32"], result: "i32" },
  cuCtxSetCurrent: { parameters: ["u64"], result: "i32" },
  cuMemAlloc_v2: { parameters: ["buffer", "usize"], result: "i32" },
  cuMemFree_v2: { parameters: ["u64"], result: "i32" },
  cuMemcpyHtoD_v2: { parameters: ["u64", "buffer", "usize"], result: "i32" },
  cuMemcpyDtoH_v2: { parameters: ["buffer", "u64", "usize"], result: "i32" },
} as const satisfies Deno.ForeignLibraryInterface;

/** A GPU, through the driver: copies in the order of the default stream. */
export class GpuDevice implements RankDevice {
  readonly #driver = Deno.dlopen("libcuda.so.1", SYMBOLS);
  readonly #device: number;
  readonly #context: bigint;
  /** Logical ids, then slots. */
  readonly #ids: bigint;
  readonly #idBytes: number;

  /** Opens a GPU by its CUDA number, with room for so many ids of tokens. */
  constructor(ordinal: number, ids: number) {
    const { symbols } = this.#driver;
    this.#idBytes = 4 * ids;
    check("cuInit", symbols.cuInit(0));
    const device = new Int32Array(1);
    check("cuDeviceGet", symbols.cuDeviceGet(device, ordinal));
    this.#device = device[0]!;
    const handle = new BigUint64Array(1);
    check(
      "cuDevicePrimaryCtxRetain",
      symbols.cuDevicePrimaryCtxRetain(handle, this.#device),
    );
    this.#context = handle[0]!;
    this.#enter();
    const bytes = BigInt(2 * this.#idBytes);
    check("cuMemAlloc", symbols.cuMemAlloc_v2(handle, bytes));
    this.#ids = handle[0]!;
  }

  read(address: bigint, target: Uint8Array<ArrayBuffer>): void {
    this.#enter();
    this.#copyOut(address, target);
  }

  dispatch(dispatcher: Dispatcher, call: DispatchCall): void {
    const { logical, slots, layer, topK, salt } = call;
    const [from, to] = [this.#ids, this.#ids + BigInt(this.#idBytes)];
    const bytes = BigInt(logical.byteLength);
    const tokens = logical.length / topK;
    if (tokens === 0) return;
    this.#enter();
    check(
      "cuMemcpyHtoD",
      this.#driver.symbols.cuMemcpyHtoD_v2(from, logical, bytes),
    );
    dispatcher.launch({
      layer,
      topK,
      salt,
      tokens,
      logical: from,
      physical: to,
    });
    // The kernel and this copy are both on the default stream.
    this.#copyOut(to, slots);
  }

  [Symbol.dispose](): void {
    const { symbols } = this.#driver;
    this.#enter();
    symbols.cuMemFree_v2(this.#ids);
    symbols.cuDevicePrimaryCtxRelease_v2(this.#device);
    this.#driver.close();
  }

  /** Other calls of this thread may have chosen another GPU. */
  #enter(): void {
    const { symbols } = this.#driver;
    check("cuCtxSetCurrent", symbols.cuCtxSetCurrent(this.#context));
  }

  #copyOut(
    address: bigint,
    target: Uint8Array<ArrayBuffer> | Int32Array<ArrayBuffer>,
  ): void {
    const bytes = BigInt(target.byteLength);
    const { symbols } = this.#driver;
    check("cuMemcpyDtoH", symbols.cuMemcpyDtoH_v2(target, address, bytes));
  }
}

function check(name: string, result: number): void {
  if (result === 0) return;
  throw new Error(`Cannot use GPU: ${name} returned ${result}`);
}
