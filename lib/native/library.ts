// SPDX-License-Identifier: Apache-2.0

import { dirname, fromFileUrl, join } from "@std/path";
import meta from "../../deno.json" with { type: "json" };
import { check, EplbLibraryError, ErrorText } from "./errors.ts";
import type { LibraryAttempt } from "./errors.ts";
import { type DeviceInfo, deviceInfo, STRUCTS } from "./structs.ts";
import { SYMBOLS, type Symbols } from "./symbols.ts";

/** The ABI this package was written for, `EPLB_ABI_VERSION`. */
export const ABI_VERSION = 1;

const CAPABILITY_CUDA = 1;
const CAPABILITY_NCCL = 2;

/** The first version of NCCL that has what `nccl-put` needs. */
const ONE_SIDED_NCCL = 22900;

/** Environment variable that names the library file. */
export const LIBRARY_VARIABLE = "EPLB_LIBRARY";

/** Options of {@linkcode NativeLibrary.open}. */
export interface OpenLibraryOptions {
  /** The library file; only this one is tried then. */
  readonly path?: string;
}

/** What `doctor` reports about NCCL. */
export interface NcclInfo {
  /** Version as a number, 22803 for 2.28.3. */
  readonly version: number;
  /** The file that was opened. */
  readonly path: string;
  /** Whether it has one-sided transfers, which `nccl-put` needs. */
  readonly oneSided: boolean;
}

function environment(name: string): string | undefined {
  try {
    return Deno.env.get(name) || undefined;
  } catch (error) {
    // Without permission to read it, a variable is as good as unset.
    if (error instanceof Deno.errors.NotCapable) return undefined;
    throw error;
  }
}

/** The checkout this module runs from; undefined when it came over the network. */
export function checkoutRoot(): string | undefined {
  if (!import.meta.url.startsWith("file:")) return undefined;
  return dirname(dirname(dirname(fromFileUrl(import.meta.url))));
}

/** The folder for libraries built by `eplb build` outside a checkout. */
export function cacheFolder(): string | undefined {
  const home = environment("HOME");
  const cache = environment("XDG_CACHE_HOME") ??
    (home === undefined ? undefined : join(home, ".cache"));
  return cache === undefined ? undefined : join(cache, "eplb", meta.version);
}

/** The files at which the library is looked for, in order. */
export function librarySearchPath(options: OpenLibraryOptions = {}): string[] {
  const named = options.path ?? environment(LIBRARY_VARIABLE);
  if (named !== undefined) return [named];
  const root = checkoutRoot() ?? cacheFolder();
  if (root === undefined) return [];
  return ["cuda", "cpu"].map((build) =>
    join(root, "build", build, "libeplb.so")
  );
}

/** The library's functions, or why the file does not serve. */
function tryOpen(path: string): Symbols | string {
  try {
    // Asked first and alone, as a library with another ABI may lack the others.
    const probe = Deno.dlopen(path, {
      eplb_abi_version: SYMBOLS.eplb_abi_version,
    });
    const abi = probe.symbols.eplb_abi_version();
    probe.close();
    if (abi !== ABI_VERSION) {
      return `it has ABI ${abi}, this package needs ABI ${ABI_VERSION}: run "eplb build"`;
    }
    return checkStructs(Deno.dlopen(path, SYMBOLS).symbols);
  } catch (error) {
    if (error instanceof Deno.errors.NotCapable) throw error;
    // The loader says "Could not open library" twice and the path once more.
    const text = error instanceof Error ? error.message : String(error);
    return text.replaceAll("Could not open library: ", "")
      .replace(`${path}: `, "");
  }
}

function checkStructs(symbols: Symbols): Symbols | string {
  for (const [name, { kind, bytes }] of Object.entries(STRUCTS)) {
    const actual = symbols.eplb_struct_size(kind);
    if (actual < bytes) {
      return `its ${name} has ${actual} bytes, this package needs ${bytes}: run "eplb build"`;
    }
  }
  return symbols;
}

/** The raw C functions; only this folder calls them. */
export let symbolsOf: (library: NativeLibrary) => Symbols;

/**
 * The loaded `libeplb.so`.
 *
 * It is looked for at the path given, else at `EPLB_LIBRARY`, else where
 * `eplb build` puts it: `build/{cuda,cpu}/` of the checkout, or of
 * `~/.cache/eplb/<version>/`. Opened once per file and kept for the life of the
 * process, because calls into an unloaded library crash it.
 *
 * Needs the permissions `ffi`, `read` and, for the variable, `env`.
 *
 * @example Which devices are there
 * ```ts
 * import { NativeLibrary } from "@eplb/eplb";
 * import { assert } from "@std/assert";
 *
 * const library = NativeLibrary.open();
 * assert(library.devices().devices.length >= 0);
 * ```
 */
export class NativeLibrary {
  static {
    symbolsOf = (library) => library.#symbols;
  }

  static readonly #opened = new Map<string, NativeLibrary>();
  readonly #symbols: Symbols;
  /** The file that was loaded. */
  readonly path: string;

  private constructor(symbols: Symbols, path: string) {
    this.#symbols = symbols;
    this.path = path;
  }

  /**
   * Loads the library, or returns it when it is loaded already.
   *
   * @param options Where to look.
   * @returns The library.
   * @throws {EplbLibraryError} If no file fits; lists each that was tried.
   */
  static open(options: OpenLibraryOptions = {}): NativeLibrary {
    const tried: LibraryAttempt[] = [];
    for (const path of librarySearchPath(options)) {
      const known = NativeLibrary.#opened.get(path);
      if (known !== undefined) return known;
      const opened = tryOpen(path);
      if (typeof opened !== "string") {
        const library = new NativeLibrary(opened, path);
        NativeLibrary.#opened.set(path, library);
        return library;
      }
      tried.push({ path, reason: opened });
    }
    const list = tried.map(({ path, reason }) => `\n  ${path}: ${reason}`);
    throw new EplbLibraryError(
      `Cannot load libeplb.so: build it with "eplb build" (in a checkout ` +
        `"deno task build"), or name it with ${LIBRARY_VARIABLE}; tried:` +
        (list.join("") || " nothing, as HOME is not set"),
      tried,
    );
  }

  /** Version of the loaded library, such as "0.1.0". */
  get version(): string {
    const text = new ErrorText();
    this.#symbols.eplb_version(text.buffer, text.capacity);
    return text.toString();
  }

  /** Whether the library was built with CUDA. */
  get hasCuda(): boolean {
    return (this.#symbols.eplb_capabilities() & CAPABILITY_CUDA) !== 0;
  }

  /** Whether the library was built with NCCL support. */
  get hasNccl(): boolean {
    return (this.#symbols.eplb_capabilities() & CAPABILITY_NCCL) !== 0;
  }

  /**
   * Lists the CUDA devices.
   *
   * @returns The devices, and if there are none, why.
   */
  devices(): { devices: DeviceInfo[]; reason: string } {
    const error = new ErrorText();
    const count = new Int32Array(1);
    check(
      this.#symbols.eplb_device_count(count, error.buffer, error.capacity),
      "eplb_device_count",
      error,
    );
    const devices = Array.from(
      { length: count[0]! },
      (_, ordinal) => this.#describe(ordinal),
    );
    return { devices, reason: devices.length > 0 ? "" : error.toString() };
  }

  #describe(ordinal: number): DeviceInfo {
    const error = new ErrorText();
    const { view, read } = deviceInfo();
    const status = this.#symbols.eplb_device_describe(
      ordinal,
      view,
      error.buffer,
      error.capacity,
    );
    check(status, "eplb_device_describe", error);
    return read();
  }

  /**
   * Tells whether one CUDA device can map the memory of another.
   *
   * @param ordinal The device that reads.
   * @param peer The device whose memory it is.
   * @returns Whether it can.
   */
  peerAccess(ordinal: number, peer: number): boolean {
    const error = new ErrorText();
    const reachable = new Int32Array(1);
    const status = this.#symbols.eplb_device_peer_access(
      ordinal,
      peer,
      reachable,
      error.buffer,
      error.capacity,
    );
    check(status, "eplb_device_peer_access", error);
    return reachable[0] === 1;
  }

  /**
   * Opens NCCL at run time, as the transports with NCCL do.
   *
   * @param path The NCCL library; default: `EPLB_NCCL_LIBRARY`, then the system's.
   * @returns Its version and file.
   * @throws {EplbError} If it cannot be opened or is too old.
   */
  nccl(path = ""): NcclInfo {
    const error = new ErrorText();
    const found = new ErrorText();
    const version = new Int32Array(1);
    const status = this.#symbols.eplb_nccl_open(
      new TextEncoder().encode(`${path}\0`),
      version,
      found.buffer,
      found.capacity,
      error.buffer,
      error.capacity,
    );
    check(status, "eplb_nccl_open", error);
    return {
      version: version[0]!,
      path: found.toString(),
      oneSided: version[0]! >= ONE_SIDED_NCCL,
    };
  }
}
