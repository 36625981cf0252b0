// SPDX-License-Identifier: Apache-2.0

/** Name of a native status, see `cpp/include/eplb.h`. */
export type EplbErrorCode =
  | "invalid-argument"
  | "invalid-handle"
  | "busy"
  | "unsupported"
  | "bad-struct"
  | "broken"
  | "out-of-memory"
  | "system-error"
  | "cuda-error"
  | "nccl-error"
  | "timeout"
  | "aborted"
  | "peer-failed"
  | "peer-mismatch"
  | "internal-error";

const CODES: Readonly<Record<number, EplbErrorCode>> = {
  [-1]: "invalid-argument",
  [-2]: "invalid-handle",
  [-3]: "busy",
  [-4]: "unsupported",
  [-5]: "bad-struct",
  [-6]: "broken",
  [-20]: "out-of-memory",
  [-21]: "system-error",
  [-22]: "cuda-error",
  [-40]: "nccl-error",
  [-41]: "timeout",
  [-42]: "aborted",
  [-43]: "peer-failed",
  [-44]: "peer-mismatch",
};

/**
 * A failure reported by the native library.
 *
 * @example Branching on the code
 * ```ts
 * import { EplbError } from "@eplb/eplb";
 * import { assertEquals } from "@std/assert";
 *
 * const error = new EplbError(-41, "eplb_engine_run", "rank 3 did not arrive");
 * assertEquals(error.code, "timeout");
 * assertEquals(error.message, "rank 3 did not arrive");
 * ```
 */
export class EplbError extends Error {
  /** What went wrong, as a word to branch on. */
  readonly code: EplbErrorCode;
  /** The C status, negative. */
  readonly status: number;
  /** The C function that reported it. */
  readonly operation: string;

  /**
   * Creates the error of one failed call.
   *
   * @param status The C status.
   * @param operation The C function's name.
   * @param message What it wrote into the error buffer.
   */
  constructor(status: number, operation: string, message: string) {
    super(message || `${operation} failed with status ${status}`);
    this.name = "EplbError";
    this.code = CODES[status] ?? "internal-error";
    this.status = status;
    this.operation = operation;
  }
}

/**
 * The native library could not be found, or does not fit this package.
 *
 * @example What it tells
 * ```ts
 * import { EplbLibraryError } from "@eplb/eplb";
 * import { assertEquals } from "@std/assert";
 *
 * const error = new EplbLibraryError("Cannot load libeplb.so: not found", [
 *   { path: "build/cpu/libeplb.so", reason: "no such file" },
 * ]);
 * assertEquals(error.tried.length, 1);
 * ```
 */
export class EplbLibraryError extends Error {
  /** Every path that was tried, and why it did not serve. */
  readonly tried: readonly LibraryAttempt[];

  /**
   * Creates the error.
   *
   * @param message What could not be done.
   * @param tried The paths that were tried.
   * @param options The cause, if there is one.
   */
  constructor(
    message: string,
    tried: readonly LibraryAttempt[],
    options?: ErrorOptions,
  ) {
    super(message, options);
    this.name = "EplbLibraryError";
    this.tried = tried;
  }
}

/** One path at which the library was looked for. */
export interface LibraryAttempt {
  /** The file. */
  readonly path: string;
  /** Why it was not used; undefined for the one that was. */
  readonly reason?: string;
}

const ERROR_CAPACITY = 2048;

/** A buffer for the error text of one call; calls that overlap need one each. */
export class ErrorText {
  readonly buffer: Uint8Array<ArrayBuffer> = new Uint8Array(ERROR_CAPACITY);
  readonly capacity: bigint = BigInt(ERROR_CAPACITY);

  toString(): string {
    const end = this.buffer.indexOf(0);
    return new TextDecoder().decode(
      this.buffer.subarray(0, end < 0 ? undefined : end),
    );
  }
}

/** Turns a status that is not OK into an {@linkcode EplbError}. */
export function check(
  status: number,
  operation: string,
  error: ErrorText,
): void {
  if (status !== 0) throw new EplbError(status, operation, error.toString());
}
