import { check, ErrorText } from "./errors.ts";
import { type NativeLibrary, symbolsOf } from "./library.ts";
import {
  engineConfig,
  engineInfo,
  type RunOutcome,
  runResult,
} from "./structs.ts";
import type { ExpertWeights } from "./weights.ts";

/** How bytes move: `pull` maps peers' memory, `nccl` sends and receives. */
export type TransportName = "pull" | "nccl";

/** `EPLB_TRANSPORT_*` */
const TRANSPORTS: Readonly<Record<TransportName, number>> = {
  pull: 1,
  nccl: 2,
};

/** What a native engine is made of. */
export interface NativeEngineOptions {
  readonly world: number;
  /** Ranks of this process, ascending. */
  readonly ranks: readonly number[];
  /** Weights of each of `ranks`. */
  readonly weights: readonly ExpertWeights[];
  readonly transport: TransportName;
  readonly stagingCells: number;
  readonly stagingSets: number;
  readonly maxCtas: number;
  readonly smallBytes: number;
  readonly copyEngineOnly: boolean;
}

/** The outcome of a run, with the native status that ended it. */
export interface NativeRun extends RunOutcome {
  /** [ranks, 2]: bytes from, and to, other ranks. */
  readonly rankBytes: readonly number[];
  /** Throws if the run failed. */
  readonly check: () => void;
}

/** One native engine: handle, calls, close. Everything above is `Engine`'s. */
export class NativeEngine {
  readonly #library: NativeLibrary;
  readonly #locals: number;
  #handle: bigint;

  constructor(library: NativeLibrary, options: NativeEngineOptions) {
    this.#library = library;
    this.#locals = options.ranks.length;
    const error = new ErrorText();
    const handle = new BigUint64Array(1);
    const config = engineConfig({
      ...options,
      locals: options.ranks.length,
      transport: TRANSPORTS[options.transport],
    });
    const status = symbolsOf(library).eplb_engine_create(
      config,
      Int32Array.from(options.ranks),
      BigUint64Array.from(options.weights, (one) => one.unsafeHandle),
      handle,
      error.buffer,
      error.capacity,
    );
    check(status, "eplb_engine_create", error);
    this.#handle = handle[0]!;
  }

  get closed(): boolean {
    return this.#handle === 0n;
  }

  #open(verb: string): bigint {
    if (this.closed) throw new TypeError(`Cannot ${verb}: engine is closed`);
    return this.#handle;
  }

  describe(): { cellBytes: number; stagingBytes: number } {
    const error = new ErrorText();
    const { view, read } = engineInfo();
    const status = symbolsOf(this.#library).eplb_engine_describe(
      this.#open("describe"),
      view,
      error.buffer,
      error.capacity,
    );
    check(status, "eplb_engine_describe", error);
    return read();
  }

  /** Bootstrap blob of the local rank at `index`. */
  exportBlob(index: number): Uint8Array<ArrayBuffer> {
    const handle = this.#open("connect");
    const bytes = new BigUint64Array(1);
    let blob = new Uint8Array(0);
    for (let attempt = 0;; attempt++) {
      const error = new ErrorText();
      const status = symbolsOf(this.#library).eplb_engine_export(
        handle,
        index,
        blob,
        BigInt(blob.length),
        bytes,
        error.buffer,
        error.capacity,
      );
      const needed = Number(bytes[0]!);
      // The first call asks for the size, the second one fills.
      if (attempt > 0 || needed <= blob.length) {
        check(status, "eplb_engine_export", error);
        return blob.subarray(0, needed);
      }
      if (needed === 0) check(status, "eplb_engine_export", error);
      blob = new Uint8Array(needed);
    }
  }

  /** Joins all ranks; `blobs` in rank order. */
  async connect(
    blobs: readonly Uint8Array[],
    timeoutMs: number,
  ): Promise<void> {
    const all = new Uint8Array(blobs.reduce((sum, b) => sum + b.length, 0));
    let offset = 0;
    for (const blob of blobs) {
      all.set(blob, offset);
      offset += blob.length;
    }
    const error = new ErrorText();
    const status = await symbolsOf(this.#library).eplb_engine_connect(
      this.#open("connect"),
      all,
      BigUint64Array.from(blobs, (blob) => BigInt(blob.length)),
      BigInt(timeoutMs),
      error.buffer,
      error.capacity,
    );
    check(status, "eplb_engine_connect", error);
  }

  /** Removes the names of shared memory; call when every rank is connected. */
  seal(): void {
    const error = new ErrorText();
    const status = symbolsOf(this.#library).eplb_engine_seal(
      this.#open("connect"),
      error.buffer,
      error.capacity,
    );
    check(status, "eplb_engine_seal", error);
  }

  async run(
    program: Int32Array<ArrayBuffer>,
    timeoutMs: number,
  ): Promise<NativeRun> {
    const error = new ErrorText();
    const { view, read } = runResult();
    const bytes = new BigUint64Array(2 * this.#locals);
    const status = await symbolsOf(this.#library).eplb_engine_run(
      this.#open("rearrange"),
      program,
      BigInt(program.length),
      BigInt(timeoutMs),
      view,
      bytes,
      error.buffer,
      error.capacity,
    );
    return {
      ...read(),
      rankBytes: Array.from(bytes, Number),
      check: () => check(status, "eplb_engine_run", error),
    };
  }

  /** Commits staged batches up to `batches`; returns how many are committed now. */
  async settle(batches: number): Promise<number> {
    const error = new ErrorText();
    const committed = new Uint32Array(1);
    const status = await symbolsOf(this.#library).eplb_engine_settle(
      this.#open("settle"),
      batches,
      committed,
      error.buffer,
      error.capacity,
    );
    check(status, "eplb_engine_settle", error);
    return committed[0]!;
  }

  /** Batches committed by the run in progress, or by the last one. */
  progress(): number {
    const error = new ErrorText();
    const batches = new Uint32Array(1);
    const status = symbolsOf(this.#library).eplb_engine_progress(
      this.#open("read progress"),
      batches,
      error.buffer,
      error.capacity,
    );
    check(status, "eplb_engine_progress", error);
    return batches[0]!;
  }

  /** Ends waits early; `failedRank` -1 blames none. No effect once closed. */
  abort(failedRank: number, reason: string): void {
    if (this.closed) return;
    const error = new ErrorText();
    const status = symbolsOf(this.#library).eplb_engine_abort(
      this.#handle,
      failedRank,
      new TextEncoder().encode(`${reason}\0`),
      error.buffer,
      error.capacity,
    );
    check(status, "eplb_engine_abort", error);
  }

  /** Aborts, waits for a call in flight, frees; may be called twice. */
  async close(): Promise<void> {
    const handle = this.#handle;
    if (handle === 0n) return;
    this.#handle = 0n;
    const error = new ErrorText();
    const status = await symbolsOf(this.#library).eplb_engine_destroy(
      handle,
      error.buffer,
      error.capacity,
    );
    check(status, "eplb_engine_destroy", error);
  }
}
