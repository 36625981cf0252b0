// SPDX-License-Identifier: Apache-2.0
// Building libeplb.so with CMake: in a checkout in place, else from sources
// fetched beside this module, in the user's cache folder.

import { dirname, join } from "@std/path";
import { cacheFolder, checkoutRoot } from "./library.ts";
import { NATIVE_SOURCES } from "./sources.ts";

/** Options of {@linkcode buildLibrary}. */
export interface BuildOptions {
  /**
   * Whether to build for GPUs; `auto`: if there are nvcc and an NVIDIA driver.
   *
   * @default {"auto"}
   */
  readonly cuda?: "auto" | "on" | "off";
  /** Called with each line the tools print. */
  readonly onLine?: (line: string) => void;
}

/** What was built. */
export interface BuiltLibrary {
  /** The library file. */
  readonly path: string;
  /** Whether it was built for GPUs. */
  readonly cuda: boolean;
}

/** A program that building needs, and the Debian package it is in. */
const TOOLS: readonly (readonly [string, string])[] = [
  ["cmake", "cmake"],
  ["c++", "g++"],
  ["make", "make"],
];

/**
 * Builds the native library with CMake.
 *
 * @param options For GPUs or not; where the tools' output goes.
 * @returns The library's file.
 * @throws {Error} If a tool is missing (names the package to install) or the build fails (with its last lines).
 *
 * @example Building for this machine
 * ```ts ignore
 * import { buildLibrary, NativeLibrary } from "@eplb/eplb";
 *
 * const { path } = await buildLibrary({ onLine: console.log });
 * const library = NativeLibrary.open({ path });
 * ```
 */
export async function buildLibrary(
  options: BuildOptions = {},
): Promise<BuiltLibrary> {
  await requireTools();
  const cuda = await wantsCuda(options.cuda ?? "auto");
  const root = checkoutRoot() ?? await fetchSources(options);
  const folder = join(root, "build", cuda ? "cuda" : "cpu");
  // Make is CMake's own choice; without it Ninja serves as well.
  const ninja = await findProgram("make") === undefined;
  await run("cmake", [
    ...["-S", join(root, "cpp"), "-B", folder],
    ...(ninja ? ["-G", "Ninja"] : []),
    "-DCMAKE_BUILD_TYPE=Release",
    `-DEPLB_ENABLE_CUDA=${cuda ? "ON" : "OFF"}`,
    "-DEPLB_BUILD_TESTS=OFF",
  ], options);
  const jobs = String(navigator.hardwareConcurrency);
  await run("cmake", ["--build", folder, "--parallel", jobs], options);
  return { path: join(folder, "libeplb.so"), cuda };
}

/** The full path of a program on the PATH; undefined if it is not there. */
export async function findProgram(name: string): Promise<string | undefined> {
  const folders = (Deno.env.get("PATH") ?? "").split(":");
  if (name === "nvcc") folders.push("/usr/local/cuda/bin");
  for (const folder of folders) {
    const path = join(folder, name);
    try {
      if ((await Deno.stat(path)).isFile) return path;
    } catch {
      // Not there, or not readable: look on.
    }
  }
  return undefined;
}

/** Whether this machine has an NVIDIA driver. */
export async function hasDriver(): Promise<boolean> {
  try {
    await Deno.stat("/dev/nvidiactl");
    return true;
  } catch {
    return false;
  }
}

async function requireTools(): Promise<void> {
  const missing: string[] = [];
  const ninja = await findProgram("ninja") !== undefined;
  for (const [program, debianPackage] of TOOLS) {
    if (program === "make" && ninja) continue;
    if (await findProgram(program) === undefined) missing.push(debianPackage);
  }
  if (missing.length > 0) {
    throw new Error(
      `Cannot build libeplb.so: a tool is missing, install it first: ` +
        `apt-get install -y ${missing.join(" ")}`,
    );
  }
}

async function wantsCuda(cuda: "auto" | "on" | "off"): Promise<boolean> {
  if (cuda === "off") return false;
  const nvcc = await findProgram("nvcc");
  if (cuda === "on" && nvcc === undefined) {
    throw new Error(
      "Cannot build libeplb.so for GPUs: nvcc is neither on the PATH nor in /usr/local/cuda/bin",
    );
  }
  return cuda === "on" || (nvcc !== undefined && await hasDriver());
}

/** Copies the sources that lie beside this module to the cache; returns the folder. */
async function fetchSources(options: BuildOptions): Promise<string> {
  const root = cacheFolder();
  if (root === undefined) {
    throw new Error(
      "Cannot build libeplb.so: there is no folder for it, as HOME is not set",
    );
  }
  options.onLine?.(`fetching sources to ${join(root, "cpp")}`);
  for (const name of NATIVE_SOURCES) {
    const url = new URL(`../../cpp/${name}`, import.meta.url);
    const response = await fetch(url);
    if (!response.ok) {
      throw new Error(`Cannot fetch ${url}: status ${response.status}`);
    }
    const path = join(root, "cpp", name);
    await Deno.mkdir(dirname(path), { recursive: true });
    await Deno.writeFile(path, await response.bytes());
  }
  return root;
}

/** Runs a tool to its end; throws with its last lines when it fails. */
async function run(
  program: string,
  args: readonly string[],
  options: BuildOptions,
): Promise<void> {
  const command = new Deno.Command("sh", {
    // One pipe for both streams keeps compilers' messages in order.
    args: ["-c", 'exec "$0" "$@" 2>&1', program, ...args],
    stdout: "piped",
    stderr: "null",
  });
  const child = command.spawn();
  const last: string[] = [];
  const report = (line: string): void => {
    options.onLine?.(line);
    last.push(line);
    if (last.length > 30) last.shift();
  };
  let rest = "";
  for await (const text of child.stdout.pipeThrough(new TextDecoderStream())) {
    const lines = (rest + text).split("\n");
    rest = lines.pop()!;
    lines.forEach(report);
  }
  if (rest !== "") report(rest);
  const { code } = await child.status;
  if (code !== 0) {
    throw new Error(
      `Cannot build libeplb.so: "${program} ${args.join(" ")}" failed ` +
        `with exit code ${code}:\n${last.join("\n")}`,
    );
  }
}
