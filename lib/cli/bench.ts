import meta from "../../deno.json" with { type: "json" };
import { EplbError } from "../native/errors.ts";
import { NativeLibrary } from "../native/library.ts";
import { formatBytes } from "../report/table.ts";
import {
  GPU_MODELS,
  GPU_MOVERS,
  HOST_MODELS,
  HOST_MOVERS,
} from "./bench/cases.ts";
import { measureCeilings } from "./bench/ceilings.ts";
import {
  type Interference,
  measureInterference,
} from "./bench/interference.ts";
import { type BenchReport, benchText } from "./bench/report.ts";
import { timeTransfer, type Transfer } from "./bench/transfers.ts";
import { type Command, EXIT, UsageError } from "./command.ts";
import type { Flags } from "./flags.ts";
import type { Terminal } from "./terminal.ts";

const HOST_RANKS = 4;
const REPEAT = 5;

/** `eplb bench`. */
export const bench: Command = {
  name: "bench",
  summary:
    "measure this machine's links, every transport, and what a model notices",
  description:
    "Measures what the links of this machine give at best, then rearranges real\n" +
    "model shapes with every transport, in one process and in one per rank, verifying\n" +
    "every byte, and times matrix products with and without weights moving beside\n" +
    "them. Without two GPUs, or with --device host, it measures host memory in small\n" +
    "shapes.",
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
          'only these, separated by commas: pull, "pull, copy engine only" as pull-ce, nccl',
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
    ],
  }],
  examples: [
    "bench",
    "bench --models deepseek-r1 --json",
    "bench --device host",
  ],
  run: async (flags, terminal) => {
    const report = await runBench(flags, terminal);
    terminal.progress("");
    terminal.print(
      flags.has("json")
        ? JSON.stringify(report, null, 2)
        : benchText(report, terminal.color),
    );
    const wrong = report.transfers.some((one) => one.wrong > 0);
    return wrong ? EXIT.failed : EXIT.done;
  },
};

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
  const ceilings = device === "host" ? [] : await measureCeilings(library, {
    gpus,
    onSize: (bytes) =>
      terminal.progress(`ceilings: pieces of ${formatBytes(bytes)}`),
  });
  const transfers = await timeAll(flags, { terminal, device, ranks, gpus });
  const interference = await interfere(flags, {
    library,
    device,
    gpus,
    terminal,
  });
  return {
    eplb: meta.version,
    date: new Date().toISOString(),
    device: device === "host" ? "host memory" : `${gpus} x ${devices[0]!.name}`,
    ranks,
    nccl: device === "host" ? null : ncclVersion(library),
    ceilings,
    transfers,
    interference,
  };
}

async function timeAll(
  flags: Flags,
  options: {
    readonly terminal: Terminal;
    readonly device: "host" | "cuda";
    readonly ranks: number;
    readonly gpus: number;
  },
): Promise<Transfer[]> {
  const { terminal, device, ranks, gpus } = options;
  const onGpus = device === "cuda";
  const models = chosen(
    flags.text("models"),
    onGpus ? GPU_MODELS : HOST_MODELS,
  );
  const movers = chosen(
    flags.text("transports"),
    onGpus ? GPU_MOVERS : HOST_MOVERS,
  )
    // NCCL needs a GPU for each rank.
    .filter((mover) => mover.name !== "nccl" || ranks <= gpus);
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
  options: {
    readonly library: NativeLibrary;
    readonly device: "host" | "cuda";
    readonly gpus: number;
    readonly terminal: Terminal;
  },
): Promise<Interference[]> {
  const { library, device, gpus, terminal } = options;
  if (device === "host" || gpus < 2 || flags.has("no-interference")) return [];
  try {
    const onCase = (name: string): void => terminal.note(`${name} …`);
    return await measureInterference(library, { gpus, onCase });
  } catch (error) {
    // Without cuBLAS there is nothing to compare with, but all else stands.
    if (!(error instanceof EplbError && error.code === "unsupported")) {
      throw error;
    }
    terminal.note(error.message);
    return [];
  }
}

/** Picks by name; "pull-ce" is short for the copy engine only. */
function chosen<T extends { readonly name: string }>(
  names: string | undefined,
  all: readonly T[],
): readonly T[] {
  if (names === undefined) return all;
  return names.split(",").map((name) => {
    const full = name === "pull-ce" ? "pull, copy engine only" : name.trim();
    const found = all.find((one) => one.name === full);
    if (found !== undefined) return found;
    const list = all.map((one) => one.name).join("; ");
    throw new UsageError(`"${name}" is not one of: ${list}`);
  });
}

function ncclVersion(library: NativeLibrary): number | null {
  try {
    return library.nccl().version;
  } catch (error) {
    if (error instanceof EplbError) return null;
    throw error;
  }
}
