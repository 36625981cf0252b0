// The native library, opened before any test so that no test seems to leak it.

import { NativeLibrary } from "../lib/native/library.ts";

/** libeplb.so, as "deno task build" made it. */
export const library = NativeLibrary.open();
