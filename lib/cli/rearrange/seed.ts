// SPDX-License-Identifier: Apache-2.0

import { UsageError } from "../command.ts";

/** Largest seed: counting up from it stays a 32-bit number. */
const LARGEST = 2 ** 31;

/** The seed of a text such as "random:7"; undefined if it does not begin so. */
export function seedOf(text: string, kind: string): number | undefined {
  if (text !== kind && !text.startsWith(`${kind}:`)) return undefined;
  const digits = text.slice(kind.length + 1);
  const seed = Number(digits);
  if (/^\d+$/.test(digits) && seed <= LARGEST) return seed;
  throw new UsageError(
    `The seed in "${text}" must be a whole number from 0 to ${LARGEST}, as in ${kind}:1`,
  );
}
