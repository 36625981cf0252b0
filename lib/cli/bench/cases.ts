// SPDX-License-Identifier: Apache-2.0
// The rearrangements that `bench` times: real shapes, every transport.

/** One way to move bytes. */
export interface Mover {
  readonly name: string;
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

/** Ways to move GPU memory inside one node. */
export const GPU_MOVERS: readonly Mover[] = [
  { name: "pull", args: ["--transport", "pull"] },
  {
    name: "pull, copy engine only",
    args: ["--transport", "pull", "--copy-engine-only"],
  },
  {
    name: "nccl",
    args: ["--transport", "nccl", ...NCCL_BEST],
  },
];

/** The way to move host memory. */
export const HOST_MOVERS: readonly Mover[] = [
  { name: "pull", args: ["--transport", "pull"] },
];

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
export const GPU_MODELS: readonly Model[] = [
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
export const HOST_MODELS: readonly Model[] = [
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
