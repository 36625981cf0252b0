// SPDX-License-Identifier: Apache-2.0
// The rearrangements that `bench` times: real shapes, every transport.

import { type TransportName, usesNccl } from "../../native/transport.ts";
import { UsageError } from "../command.ts";

/** One way to move bytes. */
export interface Mover {
  readonly name: string;
  readonly transport: TransportName;
  readonly args: readonly string[];
}

/** One model, sized so that each rank has the same work whatever their number. */
export interface Model {
  readonly name: string;
  readonly args: (ranks: number) => readonly string[];
}

/**
 * What measured best with NCCL on NVLink: twice the thread blocks it would take, and
 * one message per pair of ranks and round, gathered and scattered by kernels.
 */
const NCCL_BEST = ["--max-ctas", "48", "--small-bytes", "64MiB"];

/** Ends the name of a way without kernels; "-ce" is short for it. */
const COPY_ENGINE_ONLY = ", copy engine only";

function mover(
  transport: TransportName,
  more: readonly string[] = [],
): Mover {
  const args = ["--transport", transport, ...more];
  return { name: transport, transport, args };
}

function byCopyEngine(
  transport: TransportName,
  more: readonly string[] = [],
): Mover {
  const name = `${transport}${COPY_ENGINE_ONLY}`;
  return { ...mover(transport, ["--copy-engine-only", ...more]), name };
}

/** Ways to move GPU memory inside one node. */
const GPU_MOVERS: readonly Mover[] = [
  mover("pull"),
  byCopyEngine("pull"),
  mover("nccl", NCCL_BEST),
];

/** What measured best with puts: a set more, as other ranks have to say that one is free. */
const PUT_BEST = ["--staging-sets", "3"];

/** Ways that most machines' NCCL is too old for: measured only when asked for. */
const MORE_GPU_MOVERS: readonly Mover[] = [
  mover("nccl-put", PUT_BEST),
  byCopyEngine("nccl-put", PUT_BEST),
];

/** The way to move host memory. */
const HOST_MOVERS: readonly Mover[] = [mover("pull")];

function model(
  shape: string,
  sizes: {
    readonly layers: number;
    readonly slots: number;
    readonly experts: (ranks: number) => number;
    readonly extra?: readonly string[];
  },
): Model {
  return {
    name: shape,
    args: (ranks) => [
      ...["--shape", shape, "--layers", String(sizes.layers)],
      ...["--slots", String(sizes.slots)],
      ...["--experts", String(sizes.experts(ranks))],
      ...(sizes.extra ?? []),
    ],
  };
}

/** Models on GPUs, in their real shapes. */
const GPU_MODELS: readonly Model[] = [
  model("deepseek-r1", { layers: 58, slots: 9, experts: (ranks) => 8 * ranks }),
  model("qwen3-235b", { layers: 94, slots: 9, experts: (ranks) => 8 * ranks }),
  model("mixtral-8x7b", { layers: 32, slots: 5, experts: () => 8 }),
  // The hard case: experts of 1 MiB in four tensors, two of them small.
  model("fine-grained", {
    layers: 58,
    slots: 72,
    experts: (ranks) => 64 * ranks,
    extra: ["--staging", "512MiB"],
  }),
];

/** The same on host memory, small enough for a laptop. */
const HOST_MODELS: readonly Model[] = [
  model("deepseek-r1", {
    layers: 8,
    slots: 9,
    experts: (ranks) => 8 * ranks,
    extra: ["--scale", "8"],
  }),
  model("fine-grained", {
    layers: 4,
    slots: 16,
    experts: (ranks) => 14 * ranks,
  }),
];

/** The models of these names, separated by commas; all without names. */
export function modelsFor(
  names: string | undefined,
  device: "host" | "cuda",
): readonly Model[] {
  const all = device === "cuda" ? GPU_MODELS : HOST_MODELS;
  return names === undefined ? all : chosen(names, all);
}

/** The ways of these names, the usual ones without names; only those that so many ranks can use. */
export function moversFor(
  names: string | undefined,
  options: {
    readonly device: "host" | "cuda";
    readonly ranks: number;
    readonly gpus: number;
  },
): readonly Mover[] {
  const { device, ranks, gpus } = options;
  const usual = device === "cuda" ? GPU_MOVERS : HOST_MOVERS;
  const more = device === "cuda" ? MORE_GPU_MOVERS : [];
  const movers = names === undefined
    ? usual
    : chosen(names, [...usual, ...more]);
  // NCCL needs a GPU for each rank.
  return movers.filter(({ transport }) =>
    !usesNccl(transport) || ranks <= gpus
  );
}

function chosen<T extends { readonly name: string }>(
  names: string,
  all: readonly T[],
): readonly T[] {
  return names.split(",").map((name) => {
    const full = name.trim().replace(/-ce$/, COPY_ENGINE_ONLY);
    const found = all.find((one) => one.name === full);
    if (found !== undefined) return found;
    const list = all.map((one) => one.name).join("; ");
    throw new UsageError(`"${name}" is not one of: ${list}`);
  });
}
