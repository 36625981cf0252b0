// SPDX-License-Identifier: Apache-2.0

import { buildLibrary } from "../native/build.ts";
import { type Command, EXIT } from "./command.ts";

/** `eplb build`. */
export const build: Command = {
  name: "build",
  summary: "build the native library, libeplb.so",
  description:
    "Builds libeplb.so with CMake: in a checkout in build/, else from sources\n" +
    "fetched with this package, in ~/.cache/eplb/. Needs cmake and a C++17 compiler;\n" +
    "for GPUs nvcc, and NCCL's header for transports with NCCL.",
  groups: [{
    title: "Build",
    flags: [{
      name: "cuda",
      value: "auto|on|off",
      type: "text",
      choices: ["auto", "on", "off"],
      help: "build for GPUs; auto: if there are nvcc and an NVIDIA driver",
    }, {
      name: "verbose",
      type: "switch",
      help: "show what the tools print",
    }],
  }],
  examples: ["build", "build --cuda on --verbose"],
  run: async (flags, terminal) => {
    const verbose = flags.has("verbose");
    const started = performance.now();
    const built = await buildLibrary({
      cuda: (flags.text("cuda") ?? "auto") as "auto" | "on" | "off",
      onLine: (line) => verbose ? terminal.note(line) : terminal.progress(line),
    });
    terminal.progress("");
    const seconds = (performance.now() - started) / 1e3;
    if (flags.has("json")) {
      terminal.print(JSON.stringify({ ...built, seconds }, null, 2));
    } else {
      terminal.print(
        `built ${built.path} (${built.cuda ? "CUDA" : "host only"}) in ${
          seconds.toFixed(1)
        } s`,
      );
    }
    return EXIT.done;
  },
};
