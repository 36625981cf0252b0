// SPDX-License-Identifier: Apache-2.0

/**
 * Reading the expert statistics that TensorRT-LLM writes.
 *
 * @module
 */
import { join } from "@std/path";
import { show } from "../_check.ts";
import {
  openSafetensors,
  type SafetensorsReader,
} from "../weights/safetensors.ts";
import { MOST_ROWS, MOST_TOKENS, refuse, type StepLoad } from "./_trace.ts";
import type { ReadLoadOptions } from "./files.ts";

const META = "meta_info.json";

/** Counts of one rank per iteration and layer; "_raw" files hold each token's experts. */
const RANK_FILE = /^rank(\d+)\.safetensors$/;

/** Name of a tensor: iteration and layer. */
const KEY = /^(\d{1,15})_(\d{1,15})$/;

/** Counts of an iteration by layer, summed over ranks. */
type Iteration = Map<number, Float64Array>;

/**
 * Reads a folder of expert statistics.
 *
 * @param path The folder.
 * @param options Its name in quotes, and the sizes that are wanted.
 * @returns One step per iteration; layers that no tensor is of are zero.
 */
export async function readTensorrtSteps(
  path: string,
  options: ReadLoadOptions & { readonly where: string },
): Promise<StepLoad[]> {
  const { where } = options;
  const experts = await readExperts(join(path, META), where);
  const iterations = new Map<number, Iteration>();
  for (const name of await rankFiles(path, where)) {
    using file = await openSafetensors(join(path, name));
    await addRank(file, { iterations, experts, where: `${where}, "${name}"` });
  }
  const present = [...iterations.values()].flatMap((it) => [...it.keys()]);
  const ids = [...new Set(present)].sort((a, b) => a - b);
  const layers = Math.max(
    ids.reduce((most, id) => Math.max(most, id + 1), 0),
    options.layers ?? 0,
  );
  const inOrder = [...iterations].sort(([a], [b]) => a - b);
  return inOrder.map(([number, counts]) => {
    const load = new Float64Array(layers * experts);
    for (const id of ids) {
      const row = counts.get(id);
      if (row === undefined) {
        refuse(where, `iteration ${number} has no layer ${id}, others have`);
      }
      load.set(row, id * experts);
    }
    return { load, layers, experts };
  });
}

async function readExperts(path: string, where: string): Promise<number> {
  const place = `${where}, "${META}"`;
  let meta: { readonly num_experts?: unknown } | null;
  try {
    meta = JSON.parse(await Deno.readTextFile(path));
  } catch (cause) {
    if (cause instanceof Deno.errors.NotFound) {
      throw new Deno.errors.NotFound(
        `Cannot read ${where}: the folder has no "${META}"`,
      );
    }
    const { message } = cause as Error;
    throw new SyntaxError(`Cannot read ${place}: ${message}`, { cause });
  }
  const experts = meta?.num_experts;
  if (
    !Number.isInteger(experts) || experts as number < 1 ||
    experts as number > MOST_ROWS
  ) {
    refuse(
      place,
      `num_experts must be an integer from 1 to ${MOST_ROWS}, it is ${
        show(experts)
      }`,
    );
  }
  return experts as number;
}

/** Names of the ranks' files; a rank that is missing would only look like less load. */
async function rankFiles(path: string, where: string): Promise<string[]> {
  const names = new Map<number, string>();
  for await (const { name } of Deno.readDir(path)) {
    const rank = RANK_FILE.exec(name)?.[1];
    if (rank !== undefined) names.set(Number(rank), name);
  }
  const ranks = names.size === 0 ? 1 : Math.max(...names.keys()) + 1;
  return Array.from(
    { length: ranks },
    (_, rank) =>
      names.get(rank) ?? refuse(where, `there is no "rank${rank}.safetensors"`),
  );
}

async function addRank(
  file: SafetensorsReader,
  options: {
    readonly iterations: Map<number, Iteration>;
    readonly experts: number;
    readonly where: string;
  },
): Promise<void> {
  const { iterations, experts, where } = options;
  for (const name of file.names) {
    const [, iteration, layer] = (KEY.exec(name) ?? []).map(Number);
    if (iteration === undefined || layer === undefined || layer >= MOST_ROWS) {
      refuse(
        where,
        `tensor "${name}" is not named by an iteration and a layer`,
      );
    }
    const counts = await readCounts(file, { name, experts, where });
    const layers = iterations.get(iteration) ?? new Map();
    iterations.set(iteration, layers);
    const sum = layers.get(layer) ?? new Float64Array(experts);
    layers.set(layer, sum);
    for (let expert = 0; expert < experts; expert++) {
      sum[expert] += counts[expert]!;
      if (counts[expert]! >= 0 && sum[expert] <= MOST_TOKENS) continue;
      refuse(
        where,
        `tensor "${name}", expert ${expert} has count ${
          counts[expert]
        }, not one from 0 to ${MOST_TOKENS} with those of other ranks`,
      );
    }
  }
}

async function readCounts(
  file: SafetensorsReader,
  options: {
    readonly name: string;
    readonly experts: number;
    readonly where: string;
  },
): Promise<Float64Array> {
  const { name, experts, where } = options;
  const { dtype, shape } = file.info(name);
  if (
    (dtype !== "I64" && dtype !== "I32") || shape.length !== 1 ||
    shape[0] !== experts
  ) {
    refuse(
      where,
      `tensor "${name}" must be of dtype I64 or I32 and shape [${experts}], it is of ${dtype} and [${
        shape.join(", ")
      }]`,
    );
  }
  const bytes = await file.read(name);
  const view = new DataView(bytes.buffer);
  return new Float64Array(experts).map((_, i) =>
    dtype === "I32"
      ? view.getInt32(4 * i, true)
      : view.getInt32(8 * i + 4, true) * 2 ** 32 + view.getUint32(8 * i, true)
  );
}
