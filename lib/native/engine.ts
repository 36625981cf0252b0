// SPDX-License-Identifier: Apache-2.0

import { check, EplbError, ErrorText } from "./errors.ts";
import { type NativeLibrary, symbolsOf } from "./library.ts";
import {
  engineConfig,
  engineInfo,
  runConfig,
  type RunOutcome,
  runResult,
} from "./structs.ts";
import { type TransportName, valueOf } from "./transport.ts";
import type { ExpertWeights } from "./weights.ts";

/** `EPLB_TIMEOUT` */
const TIMEOUT = -41;
/** Milliseconds for which a commit may hold the event loop. */
const COMMIT_HERE = 2;

/** What a native engine is made of. */
export interface NativeEngineOptions {
  readonly world: number;
  /** Ranks of this process, ascending. */
  readonly ranks: readonly number[];
  /** Node of each of `ranks`. */
  readonly nodes: readonly number[];
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

/** How a program is run. */
export interface NativeRunOptions {
  /** Limit of the whole run, waits for permission included. */
  readonly timeoutMs: number;
  /** Batches are committed only as {@linkcode NativeEngine.commit} permits it. */
  readonly held: boolean;
  /** The most bytes per second that each rank gathers, a whole number; no bound without. */
  readonly bytesPerSecond?: number;
}

/** How far a run is, in batches. */
export interface NativeProgress {
  /** Committed by every local rank; in a held run they are in place. */
  readonly committed: number;
  /** Staged by every rank of the job, and so at least `committed`. */
  readonly agreed: number;
}

/** One native engine: handle, calls, close. Everything above is `Engine`'s. */
export class NativeEngine {
  readonly #library: NativeLibrary;
  readonly #locals: number;
  #handle: bigint;
  // Native runs start on a thread some time after run() was called: the number
  // that the run in flight has there, 0 if there is none.
  #inFlight = 0;

  constructor(library: NativeLibrary, options: NativeEngineOptions) {
    this.#library = library;
    this.#locals = options.ranks.length;
    const error = new ErrorText();
    const handle = new BigUint64Array(1);
    const config = engineConfig({
      ...options,
      locals: options.ranks.length,
      transport: valueOf(options.transport),
    });
    const status = symbolsOf(library).eplb_engine_create(
      config,
      Int32Array.from(options.ranks),
      Int32Array.from(options.nodes),
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

  /** Executes a program on all local ranks. */
  async run(
    program: Int32Array<ArrayBuffer>,
    options: NativeRunOptions,
  ): Promise<NativeRun> {
    const error = new ErrorText();
    const { view, read } = runResult();
    const bytes = new BigUint64Array(2 * this.#locals);
    this.#inFlight = this.#counts("rearrange").runs + 1;
    const status = await symbolsOf(this.#library).eplb_engine_run(
      this.#handle,
      program,
      BigInt(program.length),
      runConfig({ bytesPerSecond: 0, ...options }),
      view,
      bytes,
      error.buffer,
      error.capacity,
    );
    this.#inFlight = 0;
    return {
      ...read(),
      rankBytes: Array.from(bytes, Number),
      check: () => check(status, "eplb_engine_run", error),
    };
  }

  /**
   * Permits a held run in flight to commit its leading `batches` batches and waits
   * until they are in place on every local rank; returns how many are. Throws what
   * ended the run, or an {@linkcode EplbError} when the timeout is over.
   */
  async commit(batches: number, timeoutMs: number): Promise<number> {
    await this.#begun(timeoutMs);
    const error = new ErrorText();
    const committed = new Uint32Array(1);
    const symbols = symbolsOf(this.#library);
    const call = (milliseconds: number) =>
      [
        this.#open("commit"),
        batches,
        BigInt(milliseconds),
        committed,
        error.buffer,
        error.capacity,
      ] as const;
    // A model stands still: what can be committed at once is, before another thread has the call.
    const here = Math.min(timeoutMs, COMMIT_HERE);
    let status = symbols.eplb_engine_commit_here(...call(here));
    if (status === TIMEOUT && timeoutMs > here) {
      status = await symbols.eplb_engine_commit(...call(timeoutMs - here));
    }
    check(status, "eplb_engine_commit", error);
    return committed[0]!;
  }

  /** Else a commit would be taken for one of the run before. */
  async #begun(timeoutMs: number): Promise<void> {
    const run = this.#inFlight;
    const deadline = performance.now() + timeoutMs;
    const refuse = (status: number, why: string) => {
      throw new EplbError(
        status,
        "eplb_engine_commit",
        `Cannot commit batches: ${why}`,
      );
    };
    while (this.#counts("commit").runs < run) {
      if (this.#inFlight !== run) refuse(-1, "the run was refused");
      if (performance.now() >= deadline) {
        refuse(TIMEOUT, "the run has not begun");
      }
      await new Promise((resolve) => setTimeout(resolve, 1));
    }
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

  /** How far the run in flight is, or the last one came. */
  progress(): NativeProgress {
    const { committed, agreed, runs } = this.#counts("read progress");
    if (runs < this.#inFlight) return { committed: 0, agreed: 0 };
    return { committed, agreed };
  }

  // Of calls that answer at once, each of which is over before the next one: made once.
  readonly #asked = {
    error: new ErrorText(),
    committed: new Uint32Array(1),
    agreed: new Uint32Array(1),
    runs: new Uint32Array(1),
  };

  #counts(verb: string): NativeProgress & { readonly runs: number } {
    const { error, committed, agreed, runs } = this.#asked;
    const status = symbolsOf(this.#library).eplb_engine_progress(
      this.#open(verb),
      committed,
      agreed,
      runs,
      error.buffer,
      error.capacity,
    );
    check(status, "eplb_engine_progress", error);
    return { committed: committed[0]!, agreed: agreed[0]!, runs: runs[0]! };
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
