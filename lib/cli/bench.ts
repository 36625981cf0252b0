// SPDX-License-Identifier: Apache-2.0

import meta from "../../deno.json" with { type: "json" };
import { EplbError } from "../native/errors.ts";
import { NativeLibrary } from "../native/library.ts";
import { formatBytes } from "../report/table.ts";
import { modelsFor, moversFor } from "./bench/cases.ts";
import { measureCeilings } from "./bench/ceilings.ts";
import {
  type Interference,
  measureInterference,
} from "./bench/interference.ts";
import { type BenchReport, benchText } from "./bench/report.ts";
import { measureServing, type Serving } from "./bench/serving.ts";
import { timeTransfer, type Transfer } from "./bench/transfers.ts";
import { type Command, EXIT, UsageError } from "./command.ts";
import type { Flags } from "./flags.ts";
import { MOST_RATE } from "./rearrange/flags.ts";
import type { Terminal } from "./terminal.ts";

const HOST_RANKS = 4;
const REPEAT = 5;
/** A decode step of a large model, in milliseconds. */
const STEP_MS = 18;
/**
 * Bound of the moves that a model shall hardly notice, in bytes per second. At full speed an H200
 * gathers some 740 GB/s, and products bound by memory slow down by 27 %.
 */
const MAX_RATE = 20e9;
/** Options that say something about what --serving leaves out. */
const NOT_SERVING = ["no-processes", "no-interference"];

/** `eplb bench`. */
export const bench: Command = {
  name: "bench",
  summary:
    "measure this machine's links, every transport, and what a model notices",
  description:
    "Measures what the links of this machine give at best, then rearranges real\n" +
    "model shapes with every transport, in one process and in one per rank, verifying\n" +
    "every byte, and times matrix products with and without weights moving beside\n" +
    "them, at full speed and within --max-rate. Without two GPUs, or with --device\n" +
    "host, it measures host memory in small shapes.\n" +
    "\n" +
    "--serving measures what a step loop notices instead: how much of its speed it\n" +
    "keeps while every layer is rearranged beside it, and for how long it pauses\n" +
    "when one step waits for that. A step is a series of decode-like products on all\n" +
    "GPUs at once; in host memory a timer stands for them.",
  groups: [{
    title: "Bench",
    flags: [
      {
        name: "device",
        value: "auto|host|cuda",
        type: "text",
        choices: ["auto", "host", "cuda"],
        help: "what to measure; auto: GPUs if there are two",
      },
      {
        name: "ranks",
        value: "N",
        type: "count",
        help:
          "ranks (default: the GPUs found, else 4); several may share a GPU",
      },
      {
        name: "models",
        value: "NAMES",
        type: "text",
        help: "only these shapes, separated by commas",
      },
      {
        name: "transports",
        value: "NAMES",
        type: "text",
        help:
          'only these, separated by commas: pull, "pull, copy engine only" as pull-ce, nccl; ' +
          "also nccl-put and nccl-put-ce, which are left out otherwise",
      },
      {
        name: "repeat",
        value: "N",
        type: "count",
        help: `rearrangements of each case that count (default: ${REPEAT})`,
      },
      {
        name: "no-processes",
        type: "switch",
        help: "skip one process per rank",
      },
      {
        name: "no-interference",
        type: "switch",
        help: "skip the matrix products",
      },
      {
        name: "max-rate",
        value: "GB/S",
        type: "number",
        max: MOST_RATE,
        help:
          "the most that a rank receives and copies, in the rows of matrix products that have " +
          `a bound (default: ${
            MAX_RATE / 1e9
          }), and with --serving (default: none)`,
      },
    ],
  }, {
    title: "Serving",
    flags: [
      {
        name: "serving",
        type: "switch",
        help:
          "measure a step loop beside rearrangements instead, all ranks in one process; " +
          "default: deepseek-r1, with copy engines only",
      },
      {
        name: "step-ms",
        value: "MS",
        type: "number",
        max: 10_000,
        help: `length of a forward pass (default: ${STEP_MS})`,
      },
    ],
  }],
  examples: [
    "bench",
    "bench --models deepseek-r1 --json",
    "bench --device host",
    "bench --serving",
    "bench --serving --max-rate 20",
  ],
  run: async (flags, terminal) => {
    refuseContradictions(flags);
    const report = await runBench(flags, terminal);
    terminal.progress("");
    terminal.print(
      flags.has("json")
        ? JSON.stringify(report, null, 2)
        : benchText(report, terminal.color),
    );
    const checked = [...report.transfers, ...report.serving?.cases ?? []];
    return checked.some(({ wrong }) => wrong > 0) ? EXIT.failed : EXIT.done;
  },
};

function refuseContradictions(flags: Flags): void {
  if (!flags.has("serving")) {
    if (flags.has("max-rate") && flags.has("no-interference")) {
      throw new UsageError(
        "--max-rate cannot be combined with --no-interference",
      );
    }
    if (!flags.has("step-ms")) return;
    throw new UsageError("--step-ms needs --serving");
  }
  for (const name of NOT_SERVING) {
    if (!flags.has(name)) continue;
    throw new UsageError(`--${name} cannot be combined with --serving`);
  }
}

async function runBench(
  flags: Flags,
  terminal: Terminal,
): Promise<BenchReport> {
  const library = NativeLibrary.open();
  const { devices, reason } = library.devices();
  const gpus = devices.length;
  const wanted = flags.text("device") ?? "auto";
  if (wanted === "cuda" && gpus === 0) {
    throw new UsageError(`--device cuda needs a GPU: ${reason}`);
  }
  const device = wanted === "cuda" || (wanted === "auto" && gpus > 1)
    ? "cuda"
    : "host";
  const ranks = flags.number("ranks") ??
    (device === "cuda" ? gpus : HOST_RANKS);
  const head = {
    eplb: meta.version,
    date: new Date().toISOString(),
    device: device === "host" ? "host memory" : `${gpus} x ${devices[0]!.name}`,
    ranks,
    nccl: device === "host" ? null : ncclVersion(library),
  };
  const options = { library, terminal, device, ranks, gpus } as const;
  if (flags.has("serving")) {
    const nothing = { ceilings: [], transfers: [], interference: [] };
    return { ...head, ...nothing, serving: await serve(flags, options) };
  }
  if (flags.has("max-rate") && (device === "host" || gpus < 2)) {
    throw new UsageError(
      "--max-rate needs two GPUs, or --serving: it bounds what moves beside a model",
    );
  }
  return {
    ...head,
    ceilings: device === "host" ? [] : await measureCeilings(library, {
      gpus,
      onSize: (bytes) =>
        terminal.progress(`ceilings: pieces of ${formatBytes(bytes)}`),
    }),
    transfers: await timeAll(flags, options),
    interference: await interfere(flags, options),
    serving: null,
  };
}

/** What all parts of the measurement know. */
interface BenchOptions {
  readonly library: NativeLibrary;
  readonly terminal: Terminal;
  readonly device: "host" | "cuda";
  readonly ranks: number;
  readonly gpus: number;
}

async function serve(flags: Flags, options: BenchOptions): Promise<Serving> {
  const models = flags.text("models") ?? "deepseek-r1";
  const { device, ranks, gpus } = options;
  const transports = flags.text("transports") ??
    (device === "cuda" ? "pull-ce" : "pull");
  const movers = moversFor(transports, options);
  if (movers.length === 0) {
    throw new UsageError(
      `--transports ${transports} needs a GPU for each of ${ranks} ranks: there are ${gpus}`,
    );
  }
  const pairs = modelsFor(models, device).flatMap((model) =>
    movers.map((mover) => ({ model, mover }))
  );
  return await measureServing(pairs, {
    ...options,
    repeat: flags.number("repeat") ?? REPEAT,
    stepSeconds: (flags.number("step-ms") ?? STEP_MS) / 1e3,
    maxRate: flags.rate("max-rate"),
  });
}

async function timeAll(
  flags: Flags,
  options: BenchOptions,
): Promise<Transfer[]> {
  const { terminal, device, ranks } = options;
  const models = modelsFor(flags.text("models"), device);
  const movers = moversFor(flags.text("transports"), options);
  const transfers: Transfer[] = [];
  for (const model of models) {
    for (const mover of movers) {
      for (
        const processes of flags.has("no-processes") ? [false] : [false, true]
      ) {
        const where = processes ? `${ranks} processes` : "one process";
        terminal.note(`${model.name}, ${mover.name}, ${where} …`);
        transfers.push(
          await timeTransfer(model, mover, {
            ...{ ranks, device, processes, terminal },
            repeat: flags.number("repeat") ?? REPEAT,
          }),
        );
      }
    }
  }
  return transfers;
}

async function interfere(
  flags: Flags,
  options: BenchOptions,
): Promise<Interference[]> {
  const { library, device, gpus, terminal } = options;
  if (device === "host" || gpus < 2 || flags.has("no-interference")) return [];
  try {
    const onCase = (name: string): void => terminal.note(`${name} …`);
    const maxRate = flags.rate("max-rate") ?? MAX_RATE;
    return await measureInterference(library, { gpus, maxRate, onCase });
  } catch (error) {
    // Without cuBLAS there is nothing to compare with, but all else stands.
    if (!(error instanceof EplbError && error.code === "unsupported")) {
      throw error;
    }
    terminal.note(error.message);
    return [];
  }
}

function ncclVersion(library: NativeLibrary): number | null {
  try {
    return library.nccl().version;
  } catch (error) {
    if (error instanceof EplbError) return null;
    throw error;
  }
}
