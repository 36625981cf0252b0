// SPDX-License-Identifier: Apache-2.0

/**
 * Comparing secrets.
 *
 * @module
 */

/**
 * Compares two secrets in time that depends on the length of the second only,
 * so that answering tells nothing about the first.
 *
 * @param expected The secret.
 * @param shown What a peer showed.
 * @returns Whether they are the same.
 */
export function sameToken(expected: string, shown: string): boolean {
  const encoder = new TextEncoder();
  const a = encoder.encode(expected);
  const b = encoder.encode(shown);
  let difference = a.length ^ b.length;
  for (let i = 0; i < b.length; i++) difference |= b[i]! ^ a[i % a.length]!;
  return difference === 0;
}
