// SPDX-License-Identifier: Apache-2.0
// Waiting for native code that other ranks can hold up.

import { GatherTimeoutError, RankFailureError } from "../cluster/failure.ts";
import type { NativeEngine } from "../native/engine.ts";
import type { Deadline, World } from "./world.ts";

/** Runs a native call that ends early when the signal fires or another rank is lost. */
export async function abortable<T>(
  native: NativeEngine,
  watch: { readonly world: World; readonly deadline: Deadline },
  call: () => Promise<T>,
): Promise<T> {
  const { world, deadline: { signal } } = watch;
  const onAbort = (): void => native.abort(-1, messageOf(signal?.reason));
  const unsubscribe = world.onFailure((rank, reason) =>
    native.abort(rank, reason)
  );
  signal?.addEventListener("abort", onAbort, { once: true });
  try {
    // A call that has not begun would forget an abort that came before it.
    signal?.throwIfAborted();
    return await call();
  } finally {
    signal?.removeEventListener("abort", onAbort);
    unsubscribe();
  }
}

/** The text of whatever was thrown. */
export function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

/** The rank an error blames, if it blames one. */
export function rankOf(error: unknown, world: World): number | undefined {
  const members = error instanceof RankFailureError
    ? error.ranks
    : error instanceof GatherTimeoutError
    ? error.missing
    : [];
  const rank = world.rankOf(members);
  return rank < 0 ? undefined : rank;
}
