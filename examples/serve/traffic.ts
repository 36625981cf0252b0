// SPDX-License-Identifier: Apache-2.0
// What the model is asked, and how the load shifts: the same on every rank.

import { readLoad, totalLoad } from "@eplb/eplb";
import { basename } from "@std/path";
import type { MoeLayer, MoeModel } from "./model.ts";
import { normalize, rowOf, scoresOf } from "./moe.ts";

/** A workload: how much each expert is wanted. */
export interface Workload {
  /** Its name, for the report. */
  readonly name: string;
  /** Tokens per expert as multiples of the mean, [layers][experts]. */
  readonly load: readonly Float64Array[];
}

/** Sizes that a workload must fit. */
export interface TrafficShape {
  /** MoE layers. */
  readonly layers: number;
  /** Logical experts per layer. */
  readonly experts: number;
}

/** Options of {@linkcode Traffic}. */
export interface TrafficOptions {
  /** Workloads, one after the other, and then again from the first. */
  readonly workloads: readonly Workload[];
  /** Steps until the next workload. */
  readonly steps: number;
  /** Tokens of one step. */
  readonly tokens: number;
  /** Seed of the words. */
  readonly seed: number;
}

/** Scale of the Gumbel distribution that has a standard deviation of 1. */
const GUMBEL_SCALE = Math.sqrt(6) / Math.PI;
/** Least load that a workload gives an expert, as a multiple of the mean. */
const LEAST_LOAD = 1e-3;

/** The tokens of every step, and the routers' bias that makes them follow a workload. */
export class Traffic {
  readonly #model: MoeModel;
  readonly #options: TrafficOptions;
  /** Biases of each workload, [workloads][layers][experts]. */
  readonly #biases: readonly (readonly Float64Array[])[];

  /** Works out the biases. */
  constructor(model: MoeModel, options: TrafficOptions) {
    this.#model = model;
    this.#options = options;
    const spreads = model.layers.map((layer) => spreadOf(model, layer));
    this.#biases = options.workloads.map(({ load }) =>
      load.map((row, layer) =>
        row.map((value) => biasOf(value, spreads[layer]!))
      )
    );
  }

  /** The number of the phase that a step is in; steps count from 1. */
  phase(step: number): number {
    return Math.floor((step - 1) / this.#options.steps);
  }

  /** The workload of a step. */
  workload(step: number): Workload {
    const { workloads } = this.#options;
    return workloads[this.phase(step) % workloads.length]!;
  }

  /** What is added to the routers' scores in a step, [layers][experts]. */
  biases(step: number): readonly Float64Array[] {
    return this.#biases[this.phase(step) % this.#biases.length]!;
  }

  /**
   * Hidden states that come into the first MoE layer in a step, [tokens, hidden].
   *
   * In place of attention, a token's state is the sum of two words' embeddings.
   */
  hidden(step: number): Float32Array {
    const { hidden: width, embeddings } = this.#model;
    const { tokens, seed } = this.#options;
    const words = embeddings.length / width;
    const states = new Float32Array(tokens * width);
    for (let token = 0; token < tokens; token++) {
      const draw = (step * tokens + token) * 2;
      const one = rowOf(embeddings, hash(seed, draw) % words, width);
      const other = rowOf(embeddings, hash(seed, draw + 1) % words, width);
      states.set(one.map((value, i) => value + other[i]!), token * width);
    }
    return states;
  }
}

/** Reads recorded loads, and brings them down to the model's layers and experts. */
export async function readWorkloads(
  paths: readonly string[],
  shape: TrafficShape,
): Promise<Workload[]> {
  const traces: Float64Array[][] = [];
  for (const path of paths) {
    const trace = await readLoad(path);
    const rows = layersWithLoad(totalLoad(trace), trace.experts);
    if (trace.experts < shape.experts || rows.length < shape.layers) {
      throw new RangeError(
        `Cannot use load "${path}": it has tokens in ${rows.length} layers of ` +
          `${trace.experts} experts, the model has ${shape.layers} of ${shape.experts}`,
      );
    }
    traces.push(rows.map((row) => grouped(row, shape.experts)));
  }
  const layers = livelyLayers(traces, shape.layers);
  return traces.map((rows, index) => ({
    name: basename(paths[index]!).replace(/\.[^.]*$/, ""),
    load: layers.map((layer) => rows[layer]!),
  }));
}

/** The layers whose load changes most from trace to trace, ascending. */
function livelyLayers(
  traces: readonly (readonly Float64Array[])[],
  count: number,
): number[] {
  const least = Math.min(...traces.map((rows) => rows.length));
  const changes = Array.from({ length: least }, (_, layer) => {
    const rows = traces.map((trace) => trace[layer]!);
    return Math.max(...rows.map((row) => distance(row, rows[0]!)));
  });
  const order = changes.map((_, layer) => layer);
  order.sort((a, b) => changes[b]! - changes[a]!);
  return order.slice(0, count).sort((a, b) => a - b);
}

function distance(a: Float64Array, b: Float64Array): number {
  return a.reduce((sum, value, i) => sum + Math.abs(value - b[i]!), 0);
}

/** Makes workloads up: few experts are wanted much, in each workload others. */
export function driftingWorkloads(
  shape: TrafficShape,
  options: { readonly count: number; readonly seed: number },
): Workload[] {
  return Array.from({ length: options.count }, (_, index) => ({
    name: `drift ${index + 1}`,
    load: Array.from({ length: shape.layers }, (_, layer) => {
      const order = Array.from({ length: shape.experts }, (_, i) => i);
      const key = (expert: number): number =>
        hash(options.seed, (index * shape.layers + layer) * 65_536 + expert);
      order.sort((a, b) => key(a) - key(b));
      return grouped(
        Float64Array.from(order, (rank) => 1 / (1 + rank)),
        shape.experts,
      );
    }),
  }));
}

function layersWithLoad(load: Float64Array, experts: number): Float64Array[] {
  return Array.from(
    { length: load.length / experts },
    (_, layer) => load.subarray(layer * experts, (layer + 1) * experts),
  ).filter((row) => row.some((tokens) => tokens > 0));
}

/** Sums of neighbours, as multiples of their mean. */
function grouped(row: Float64Array, groups: number): Float64Array {
  const sums = new Float64Array(groups);
  for (const [expert, tokens] of row.entries()) {
    sums[Math.floor(expert * groups / row.length)]! += tokens;
  }
  const mean = sums.reduce((a, b) => a + b, 0) / groups;
  return sums.map((sum) => sum / mean);
}

/**
 * The bias that makes an expert's part of the tokens about proportional to its load:
 * scores with noise are drawn from a softmax of what is added to them, if the noise
 * has Gumbel's distribution. It is none, but near enough.
 */
function biasOf(load: number, spread: number): number {
  return GUMBEL_SCALE * spread * Math.log(Math.max(load, LEAST_LOAD));
}

/** Standard deviation of a router's scores over words and experts. */
function spreadOf(model: MoeModel, layer: MoeLayer): number {
  const { embeddings, hidden } = model;
  const scores: number[] = [];
  for (let word = 0; word * hidden < embeddings.length; word++) {
    const normed = normalize(model, rowOf(embeddings, word, hidden), layer);
    scores.push(...scoresOf(model, normed, layer));
  }
  const mean = scores.reduce((a, b) => a + b, 0) / scores.length;
  const squares = scores.reduce((sum, one) => sum + (one - mean) ** 2, 0);
  return Math.sqrt(squares / scores.length);
}

/** 32 bits that depend on seed and position alone. */
function hash(seed: number, position: number): number {
  let bits = Math.imul(seed + 1, 0x9e3779b1) ^ Math.imul(position, 0x85ebca6b);
  bits = Math.imul(bits ^ (bits >>> 16), 0x21f0aaad);
  bits = Math.imul(bits ^ (bits >>> 15), 0x735a2d97);
  return (bits ^ (bits >>> 15)) >>> 0;
}
