// The native library, opened before any test so that no test seems to leak it.

import { EplbError } from "../lib/native/errors.ts";
import { NativeLibrary } from "../lib/native/library.ts";

/** libeplb.so, as "deno task build" made it. */
export const library = NativeLibrary.open();

/** Whether there is an NCCL that `nccl-put` can work with. */
export function hasOneSidedNccl(): boolean {
  try {
    return library.nccl().oneSided;
  } catch (error) {
    if (error instanceof EplbError) return false;
    throw error;
  }
}
