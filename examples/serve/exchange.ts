// SPDX-License-Identifier: Apache-2.0
// What ranks in several processes send each other during a forward pass.

import type { Cluster } from "@eplb/eplb";

/** The ranks of this process among all, and the way to the others. */
export interface World {
  /** Number of ranks. */
  readonly ranks: number;
  /** Ranks of this process: all of them, or one of them with a cluster. */
  readonly locals: readonly number[];
  /** The way to the other processes, where there are any. */
  readonly cluster?: Cluster;
}

/** All ranks in this process. */
export function wholeWorld(ranks: number): World {
  return { ranks, locals: Array.from({ length: ranks }, (_, rank) => rank) };
}

/** The tokens that a rank cares for: equal parts, in order of the ranks. */
export function tokensOf(
  rank: number,
  { ranks, tokens }: { readonly ranks: number; readonly tokens: number },
): [begin: number, end: number] {
  return [
    Math.floor(rank * tokens / ranks),
    Math.floor((rank + 1) * tokens / ranks),
  ];
}

/**
 * Gives every process the bytes of all, one part for each process in order of ranks.
 *
 * A serving stack sends tokens through its own all-to-all; for this little model the
 * store is fast enough.
 */
export async function exchange(
  { cluster }: World,
  name: string,
  part: Int32Array<ArrayBuffer> | Float32Array<ArrayBuffer>,
): Promise<ArrayBuffer[]> {
  const { buffer, byteOffset, byteLength } = part;
  const bytes = new Uint8Array(buffer, byteOffset, byteLength);
  const all = await cluster?.gather(`serve ${name}`, bytes) ?? [bytes];
  // Copied: what comes from the store need not be aligned.
  return all.map((one) => one.slice().buffer as ArrayBuffer);
}
