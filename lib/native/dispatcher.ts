// SPDX-License-Identifier: Apache-2.0

import { checkInteger, show } from "../_check.ts";
import type { DispatchTables } from "../dispatch/tables.ts";
import type {
  DispatchAddresses,
  DispatcherOptions,
  DispatchLaunchOptions,
  DispatchOptions,
  ReadLoadsOptions,
  SnapshotLoadsOptions,
  UpdateTablesOptions,
} from "./dispatcher_options.ts";
import { check, ErrorText } from "./errors.ts";
import { type NativeLibrary, symbolsOf } from "./library.ts";
import {
  CALL_ADDRESS,
  CALL_WORD,
  dispatchCall,
  dispatchConfig,
} from "./structs.ts";

const DEFAULT_TIMEOUT = 60_000;
const UINT32_MAX = 2 ** 32 - 1;
/** Counts of this many tokens and more are no safe integers. */
const UNSAFE_HIGH_WORD = 2 ** 21;

/**
 * Sends tokens to replicas: turns logical expert ids into slots, and counts the tokens of each
 * expert in the same pass.
 *
 * The choice depends on the tables, the row of the token, the expert and a salt alone, and is the
 * same on the host and on every GPU. On a GPU each call is one kernel that neither waits nor
 * allocates, and may be captured into a CUDA graph; tables and loads keep their addresses.
 *
 * @example Two replicas share the tokens of expert 0
 * ```ts
 * import { buildDispatchTables, Dispatcher, NativeLibrary, Placement } from "@eplb/eplb";
 * import { assert, assertEquals } from "@std/assert";
 *
 * const placement = Placement.from([[0, 1, 0]], { ranks: 3 });
 * const tables = buildDispatchTables(placement);
 * using dispatcher = Dispatcher.create(NativeLibrary.open(), tables);
 * dispatcher.update(tables);
 *
 * // Three tokens, two experts each; -1 is no expert.
 * const logical = new Int32Array([0, 1, 1, 0, 0, -1]);
 * const physical = new Int32Array(6);
 * dispatcher.dispatch(logical, physical, { layer: 0, topK: 2 });
 * assert([0, 2].includes(physical[0]!));
 * assertEquals([physical[1], physical[2], physical[5]], [1, 1, -1]);
 *
 * dispatcher.snapshot();
 * assertEquals(await dispatcher.read(), new Float64Array([3, 2]));
 * ```
 */
export class Dispatcher implements Disposable {
  readonly #library: NativeLibrary;
  #handle: bigint;
  // Of the calls that answer at once, which come one after the other.
  readonly #call = dispatchCall();
  readonly #error = new ErrorText();
  /** MoE layers. */
  readonly layers: number;
  /** Logical experts of each layer. */
  readonly experts: number;
  /** Replicas of one expert that the tables have room for. */
  readonly maxReplicas: number;
  /** CUDA device number, or "host". */
  readonly device: number | "host";

  private constructor(library: NativeLibrary, options: DispatcherOptions) {
    this.#library = library;
    this.layers = options.layers;
    this.experts = options.experts;
    this.maxReplicas = options.maxReplicas;
    this.device = options.device ?? "host";
    for (const name of ["layers", "experts", "maxReplicas"] as const) {
      checkInteger(options[name], {
        action: "create dispatcher",
        name,
        min: 1,
      });
    }
    const handle = new BigUint64Array(1);
    const config = dispatchConfig({
      ordinal: this.device === "host" ? -1 : this.device,
      layers: this.layers,
      experts: this.experts,
      maxReplicas: this.maxReplicas,
    });
    const status = symbolsOf(library).eplb_dispatch_create(
      config,
      handle,
      this.#error.buffer,
      this.#error.capacity,
    );
    check(status, "eplb_dispatch_create", this.#error);
    this.#handle = handle[0]!;
  }

  /**
   * Allocates a dispatcher. Until {@linkcode Dispatcher.update}, no expert has slots.
   *
   * @param library The native library.
   * @param options Sizes and device; tables of all layers serve, too.
   * @returns The dispatcher, which owns its memory.
   * @throws {RangeError} If a size is below 1.
   * @throws {EplbError} If there is not enough memory, or no such device.
   */
  static create(
    library: NativeLibrary,
    options: DispatcherOptions,
  ): Dispatcher {
    return new Dispatcher(library, options);
  }

  /** **UNSAFE**: the native handle. */
  get unsafeHandle(): bigint {
    if (this.#handle === 0n) {
      throw new TypeError("Cannot use dispatcher: it is closed");
    }
    return this.#handle;
  }

  /**
   * Replaces the tables of some layers, ordered with the launches of a stream.
   *
   * The arrays may be changed as soon as it returns. Not for streams that are being captured.
   *
   * @param tables The tables, from `buildDispatchTables`.
   * @param options Stream and timeout.
   * @throws {RangeError} If the tables are of another size.
   * @throws {EplbError} If the tables are not valid, the timeout passes, or the device fails.
   */
  update(tables: DispatchTables, options: UpdateTablesOptions = {}): void {
    this.#checkSizes(tables);
    const status = symbolsOf(this.#library).eplb_dispatch_update(
      this.unsafeHandle,
      tables.firstLayer,
      tables.layers,
      tables.logicalToPhysical,
      tables.replicaCount,
      tables.thresholds,
      options.stream ?? 0n,
      milliseconds(options.timeout),
      this.#error.buffer,
      this.#error.capacity,
    );
    check(status, "eplb_dispatch_update", this.#error);
  }

  #checkSizes(tables: DispatchTables): void {
    const { layers, experts, maxReplicas } = tables;
    if (experts !== this.experts || maxReplicas !== this.maxReplicas) {
      throw new RangeError(
        `Cannot update dispatch tables: they are for ${experts} experts of up to ${maxReplicas} replicas, ` +
          `the dispatcher for ${this.experts} of up to ${this.maxReplicas}`,
      );
    }
    for (const name of ["firstLayer", "layers"] as const) {
      const action = "update dispatch tables";
      checkInteger(tables[name], { action, name, min: 0 });
    }
    const cells = layers * experts;
    const places = cells * maxReplicas;
    const { logicalToPhysical, replicaCount, thresholds } = tables;
    if (
      logicalToPhysical.length !== places || replicaCount.length !== cells ||
      thresholds.length !== places
    ) {
      throw new RangeError(
        `Cannot update dispatch tables: the arrays have ${logicalToPhysical.length}, ${replicaCount.length} ` +
          `and ${thresholds.length} entries, not ${places}, ${cells} and ${places}`,
      );
    }
  }

  /**
   * Turns logical ids into slots, on a host dispatcher.
   *
   * Padding, -1, ids that are no expert's and experts without slots give -1; of these only the last
   * are counted.
   *
   * @param logical Logical ids, [tokens, topK].
   * @param physical Where the slots go, [tokens, topK]; may be `logical`.
   * @param options Layer, top k, padding, salt, and whether to count.
   * @throws {RangeError} If the arrays are not alike or not whole rows, or an option is out of range.
   * @throws {EplbError} If the dispatcher is on a GPU, or the layer is out of range.
   */
  dispatch(
    logical: Int32Array,
    physical: Int32Array,
    options: DispatchOptions,
  ): void {
    const topK = word(options.topK, "topK");
    const tokens = logical.length / topK;
    if (physical.length !== logical.length || !Number.isInteger(tokens)) {
      throw new RangeError(
        `Cannot dispatch: ${logical.length} logical and ${physical.length} physical ids ` +
          `are not as many rows of ${topK}`,
      );
    }
    const valid = word(options.validTokens ?? tokens, "validTokens");
    if (valid > tokens) {
      throw new RangeError(
        `Cannot dispatch: ${valid} of ${tokens} rows are said to be valid`,
      );
    }
    const { words } = this.#call;
    words[CALL_WORD.layer] = word(options.layer, "layer");
    words[CALL_WORD.tokens] = valid; // padding comes last
    words[CALL_WORD.topK] = topK;
    words[CALL_WORD.idBytes] = 4;
    words[CALL_WORD.salt] = word(options.salt ?? 0, "salt");
    words[CALL_WORD.record] = options.record === false ? 0 : 1;
    this.#call.addresses.fill(0n, CALL_ADDRESS.logical);
    const status = symbolsOf(this.#library).eplb_dispatch_host(
      this.unsafeHandle,
      words,
      logical,
      physical,
      this.#error.buffer,
      this.#error.capacity,
    );
    check(status, "eplb_dispatch_host", this.#error);
    if (valid < tokens) physical.fill(-1, valid * topK);
  }

  /**
   * Turns logical ids into slots, where the ids are: one kernel on a stream, which is not waited for.
   *
   * On the host it is done when it returns. See {@linkcode Dispatcher.dispatch} for what becomes of
   * ids that are no expert's.
   *
   * @param options Layer, addresses, sizes, stream, padding, salt, and whether to count.
   * @throws {RangeError} If an option is out of range.
   * @throws {EplbError} If the layer is out of range, an address is null or not aligned, or the
   * device fails.
   */
  launch(options: DispatchLaunchOptions): void {
    this.#fill(this.#call, options);
    const status = symbolsOf(this.#library).eplb_dispatch_launch(
      this.unsafeHandle,
      this.#call.words,
      this.#error.buffer,
      this.#error.capacity,
    );
    check(status, "eplb_dispatch_launch", this.#error);
  }

  #fill(
    { words, addresses }: ReturnType<typeof dispatchCall>,
    options: DispatchLaunchOptions,
  ): void {
    words[CALL_WORD.layer] = word(options.layer, "layer");
    words[CALL_WORD.tokens] = word(options.tokens, "tokens");
    words[CALL_WORD.topK] = word(options.topK, "topK");
    words[CALL_WORD.idBytes] = options.idBytes ?? 4;
    words[CALL_WORD.salt] = word(options.salt ?? 0, "salt");
    words[CALL_WORD.record] = options.record === false ? 0 : 1;
    addresses[CALL_ADDRESS.logical] = options.logical;
    addresses[CALL_ADDRESS.physical] = options.physical;
    addresses[CALL_ADDRESS.validTokens] = options.validTokens ?? 0n;
    addresses[CALL_ADDRESS.stepSalt] = options.stepSalt ?? 0n;
    addresses[CALL_ADDRESS.stream] = options.stream ?? 0n;
  }

  /**
   * Takes the loads counted so far and begins anew from 0, in the order of a stream, without waiting.
   *
   * Each token is in one snapshot. Not for streams that are being captured.
   *
   * @param options Stream.
   * @throws {EplbError} "busy" until the last snapshot is read.
   */
  snapshot(options: SnapshotLoadsOptions = {}): void {
    const status = symbolsOf(this.#library).eplb_dispatch_snapshot(
      this.unsafeHandle,
      options.stream ?? 0n,
      this.#error.buffer,
      this.#error.capacity,
    );
    check(status, "eplb_dispatch_snapshot", this.#error);
  }

  /**
   * Waits for the snapshot and reads it; other calls may go on meanwhile.
   *
   * @param options Timeout, after which it may be called again.
   * @returns Tokens of each logical expert, [layers, experts].
   * @throws {RangeError} If a count is above 2⁵³ − 1.
   * @throws {EplbError} If there is no snapshot, the timeout passes, or the device fails.
   */
  async read(options: ReadLoadsOptions = {}): Promise<Float64Array> {
    const words = new Uint32Array(2 * this.layers * this.experts);
    const error = new ErrorText();
    const status = await symbolsOf(this.#library).eplb_dispatch_read(
      this.unsafeHandle,
      milliseconds(options.timeout),
      words,
      error.buffer,
      error.capacity,
    );
    check(status, "eplb_dispatch_read", error);
    return this.#counts(words);
  }

  /** Numbers from low and high words, [layers, experts, 2]. */
  #counts(words: Uint32Array): Float64Array {
    const counts = new Float64Array(words.length / 2);
    for (let cell = 0; cell < counts.length; cell++) {
      const high = words[2 * cell + 1]!;
      if (high >= UNSAFE_HIGH_WORD) {
        const layer = Math.floor(cell / this.experts);
        const expert = cell % this.experts;
        throw new RangeError(
          `Cannot read dispatch loads: layer ${layer}, expert ${expert} has more than 2^53 - 1 tokens`,
        );
      }
      counts[cell] = high * 2 ** 32 + words[2 * cell]!;
    }
    return counts;
  }

  /**
   * Tells where the tables and the loads are, for kernels of others.
   *
   * @returns The addresses, on the dispatcher's device.
   */
  addresses(): DispatchAddresses {
    const addresses = new BigUint64Array(4);
    const status = symbolsOf(this.#library).eplb_dispatch_address(
      this.unsafeHandle,
      addresses,
      this.#error.buffer,
      this.#error.capacity,
    );
    check(status, "eplb_dispatch_address", this.#error);
    const [logicalToPhysical, replicaCount, thresholds, loads] = addresses;
    return {
      logicalToPhysical: logicalToPhysical!,
      replicaCount: replicaCount!,
      thresholds: thresholds!,
      loads: loads!,
    };
  }

  /**
   * Measures how long a launch takes on the device.
   *
   * Launches it over and over, on a stream of its own, and counts tokens each time; on a GPU each
   * result is the mean of 20 launches in a row.
   *
   * @param options What to launch; not in place, as results would be taken for logical ids.
   * @param repeats How many results, 1 to 65,536.
   * @returns Seconds of one launch, [repeats].
   * @throws {RangeError} If an option is out of range.
   * @throws {EplbError} As {@linkcode Dispatcher.launch}.
   */
  async measure(
    options: DispatchLaunchOptions,
    repeats: number,
  ): Promise<Float64Array> {
    const call = dispatchCall();
    this.#fill(call, options);
    const action = "measure dispatch";
    checkInteger(repeats, { action, name: "repeats", min: 1, max: 65_536 });
    const seconds = new Float64Array(repeats);
    const error = new ErrorText();
    const status = await symbolsOf(this.#library).eplb_dispatch_measure(
      this.unsafeHandle,
      call.words,
      repeats,
      seconds,
      error.buffer,
      error.capacity,
    );
    check(status, "eplb_dispatch_measure", error);
    return seconds;
  }

  /** Frees the arrays, ending reads that wait; may be called twice. */
  close(): void {
    if (this.#handle === 0n) return;
    const status = symbolsOf(this.#library).eplb_dispatch_destroy(
      this.#handle,
      this.#error.buffer,
      this.#error.capacity,
    );
    check(status, "eplb_dispatch_destroy", this.#error);
    this.#handle = 0n;
  }

  /** Same as {@linkcode Dispatcher.close}. */
  [Symbol.dispose](): void {
    this.close();
  }
}

/** A field of 32 bits, which the native side would see cut off or rounded otherwise. */
function word(value: number, name: string): number {
  if (value >>> 0 === value) return value;
  throw new RangeError(
    `Cannot dispatch: ${name} must be an integer from 0 to ${UINT32_MAX}, got ${
      show(value)
    }`,
  );
}

function milliseconds(timeout = DEFAULT_TIMEOUT): bigint {
  if (timeout > 0 && timeout < 2 ** 31) return BigInt(Math.ceil(timeout));
  throw new RangeError(
    `Cannot wait ${timeout} ms: a timeout must be above 0 and below 2^31`,
  );
}
