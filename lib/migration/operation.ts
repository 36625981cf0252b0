// SPDX-License-Identifier: Apache-2.0

/**
 * The words of a program, as in the header of the native library.
 *
 * @module
 */

/**
 * What an operation of a program does.
 *
 * @example Usage
 * ```ts
 * import { OperationCode } from "@eplb/eplb";
 * import { assertEquals } from "@std/assert";
 *
 * assertEquals(Object.keys(OperationCode), ["send", "receive", "copy", "duplicate"]);
 * ```
 */
export const OperationCode = {
  /** The rank's slot goes to the peer's slot. */
  send: 1,
  /** The rank's slot gets what the peer's slot holds. */
  receive: 2,
  /** The rank's slot gets what another slot of the rank holds. */
  copy: 3,
  /** The rank's slot gets what this batch receives or copies into another slot of the rank. */
  duplicate: 4,
} as const;

/** One of the values of {@linkcode OperationCode}. */
export type OperationCode = typeof OperationCode[keyof typeof OperationCode];

/** First word of a program: "EPLB". */
export const PROGRAM_MAGIC = 0x424c5045;
/** Version of the layout. */
export const PROGRAM_VERSION = 1;
/** Words of the header. */
export const HEADER_WORDS = 8;
/** Words of an entry in the table of batches. */
export const BATCH_WORDS = 2;
/** Words of an operation. */
export const OPERATION_WORDS = 8;
/** Or-ed to the code of a receive or copy: the slot is written while its batch is staged. */
export const OPERATION_DIRECT = 0x100;
