// SPDX-License-Identifier: Apache-2.0

import meta from "../../deno.json" with { type: "json" };
import { findProgram, hasDriver } from "../native/build.ts";
import { EplbError, EplbLibraryError } from "../native/errors.ts";
import {
  ABI_VERSION,
  LIBRARY_VARIABLE,
  librarySearchPath,
  NativeLibrary,
  type NcclInfo,
} from "../native/library.ts";
import type { DeviceInfo } from "../native/structs.ts";
import { formatBytes, formatTable } from "../report/table.ts";
import { type Command, EXIT } from "./command.ts";
import type { Terminal } from "./terminal.ts";

/** What doctor finds; the JSON document as it is. */
interface Diagnosis {
  readonly eplb: string;
  readonly deno: string;
  readonly target: string;
  readonly abi: number;
  readonly library:
    | { path: string; version: string; cuda: boolean; nccl: boolean }
    | null;
  /** The paths before the library's, and why those were not used. */
  readonly lookedFor: { path: string; reason: string }[];
  readonly devices: DeviceInfo[];
  /** peerAccess[i][j]: device i can map memory of device j. */
  readonly peerAccess: boolean[][];
  readonly nccl: NcclInfo | null;
  readonly driver: boolean;
  readonly tools: Record<string, string | null>;
  readonly advice: string[];
}

/** `eplb doctor`. */
export const doctor: Command = {
  name: "doctor",
  summary: "show what works on this machine, and what to do about the rest",
  description:
    "Looks for the native library, GPUs, peer access, NCCL and build tools, and says\n" +
    "what to do about what is missing. Exit code 1 if the library cannot be loaded.",
  groups: [],
  examples: ["doctor", "doctor --json"],
  run: async (flags, terminal) => {
    const diagnosis = await diagnose();
    if (flags.has("json")) {
      terminal.print(JSON.stringify(diagnosis, null, 2));
    } else {
      report(diagnosis, terminal);
    }
    return diagnosis.library === null ? EXIT.failed : EXIT.done;
  },
};

async function diagnose(): Promise<Diagnosis> {
  const advice: string[] = [];
  const { library, lookedFor } = await openLibrary(advice);
  const driver = await hasDriver();
  const tools: Record<string, string | null> = {};
  for (const name of ["cmake", "c++", "ninja", "nvcc"]) {
    tools[name] = await findProgram(name) ?? null;
  }
  if (library === undefined && (!tools["cmake"] || !tools["c++"])) {
    advice.push(
      "to build the library: apt-get install -y cmake g++ ninja-build",
    );
  }
  const { devices, reason } = library?.devices() ?? { devices: [], reason: "" };
  if (library !== undefined && devices.length === 0) {
    advice.push(
      driver && !library.hasCuda
        ? 'there is an NVIDIA driver, but the library is host only: "eplb build --cuda on"'
        : `no GPUs (${reason}): weights stay in host memory`,
    );
  }
  return {
    eplb: meta.version,
    deno: Deno.version.deno,
    target: Deno.build.target,
    abi: ABI_VERSION,
    library: library === undefined ? null : {
      path: library.path,
      version: library.version,
      cuda: library.hasCuda,
      nccl: library.hasNccl,
    },
    lookedFor,
    devices,
    peerAccess: devices.map(({ ordinal }) =>
      devices.map((peer) =>
        peer.ordinal !== ordinal && library!.peerAccess(ordinal, peer.ordinal)
      )
    ),
    nccl: openNccl(library, devices, advice),
    driver,
    tools,
    advice,
  };
}

/** Opens the first library that can be, and says what is wrong with those before it. */
async function openLibrary(advice: string[]): Promise<{
  library: NativeLibrary | undefined;
  lookedFor: { path: string; reason: string }[];
}> {
  const lookedFor: { path: string; reason: string }[] = [];
  for (const path of librarySearchPath()) {
    try {
      return { library: NativeLibrary.open({ path }), lookedFor };
    } catch (error) {
      if (!(error instanceof EplbLibraryError)) throw error;
      const reason = error.tried[0]?.reason ?? error.message;
      const there = await exists(path);
      lookedFor.push({ path, reason: there ? reason : "no such file" });
    }
  }
  advice.push(
    Deno.env.get(LIBRARY_VARIABLE)
      ? `${LIBRARY_VARIABLE} is set, so nothing else was looked for: correct or unset it`
      : `to get the library: "eplb build" (in a checkout "deno task build"), or name its file with ${LIBRARY_VARIABLE}`,
  );
  return { library: undefined, lookedFor };
}

async function exists(path: string): Promise<boolean> {
  try {
    await Deno.stat(path);
    return true;
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return false;
    throw error;
  }
}

function openNccl(
  library: NativeLibrary | undefined,
  devices: readonly DeviceInfo[],
  advice: string[],
): NcclInfo | null {
  if (library === undefined || !library.hasCuda) return null;
  if (!library.hasNccl) {
    advice.push(
      "the library is built without NCCL support: install NCCL's header (libnccl-dev, or pip install nvidia-nccl-cu13) and build again",
    );
    return null;
  }
  try {
    return library.nccl();
  } catch (error) {
    if (!(error instanceof EplbError)) throw error;
    if (devices.length > 0) {
      advice.push(
        `NCCL cannot be opened (${error.message}): install libnccl2 or name the file with EPLB_NCCL_LIBRARY`,
      );
    }
    return null;
  }
}

function report(found: Diagnosis, terminal: Terminal): void {
  const { library, nccl } = found;
  const rows: [string, string][] = [
    ["eplb", `${found.eplb} (ABI ${found.abi})`],
    ["Deno", `${found.deno} on ${found.target}`],
    ["library", library === null ? "not found" : library.path],
  ];
  if (library !== null) {
    const parts = [
      library.cuda ? "CUDA" : "host only",
      ...(library.nccl ? ["NCCL"] : []),
    ];
    rows.push(["built", `${library.version}, ${parts.join(", ")}`]);
  }
  for (const { path, reason } of found.lookedFor) {
    rows.push(["looked for", `${path}: ${reason}`]);
  }
  rows.push(["NVIDIA driver", found.driver ? "yes" : "no"]);
  rows.push(["NCCL", describeNccl(nccl)]);
  for (const [name, path] of Object.entries(found.tools)) {
    rows.push([name, path ?? "not found"]);
  }
  terminal.print(
    formatTable(rows, {
      columns: [{ header: "what" }, { header: "found" }],
      color: terminal.color,
    }),
  );
  if (found.devices.length > 0) reportDevices(found, terminal);
  for (const line of found.advice) terminal.print(`- ${line}`);
}

/** Which NCCL there is, and whether it will do for `nccl-put`. */
export function describeNccl(nccl: NcclInfo | null): string {
  if (nccl === null) return "no";
  const { version, path, oneSided } = nccl;
  return `${version} at ${path}, ${
    oneSided ? "new enough" : "too old"
  } for nccl-put`;
}

function reportDevices(found: Diagnosis, terminal: Terminal): void {
  const rows = found.devices.map((device, i) => [
    String(device.ordinal),
    device.name,
    device.computeCapability,
    formatBytes(device.totalBytes),
    formatBytes(device.freeBytes),
    found.peerAccess[i]!.flatMap((yes, j) => yes ? [j] : []).join(" ") || "-",
  ]);
  terminal.print("");
  terminal.print(formatTable(rows, {
    columns: [
      { header: "GPU", align: "right" },
      { header: "name" },
      { header: "capability" },
      { header: "memory", align: "right" },
      { header: "free", align: "right" },
      { header: "maps memory of" },
    ],
    color: terminal.color,
  }));
}
