// SPDX-License-Identifier: Apache-2.0
// The arithmetic of an MoE layer. Sums are made in float64 in a fixed order and
// rounded to float32 once, so equal weights give equal bits, wherever they lie.

import type { Expert, MoeLayer, MoeModel, RoutingRule } from "./model.ts";

/** Where the tokens of one layer go. */
export interface Routing {
  /** What the experts get, [tokens, hidden]. */
  readonly normed: Float32Array;
  /** Logical experts of each token, [tokens, topK]. */
  readonly experts: Int32Array;
  /** What their outputs are multiplied by, [tokens, topK]. */
  readonly weights: Float64Array;
}

/** What went on in one layer. */
export interface LayerOutcome {
  /** Logical experts of each token, [tokens, topK]. */
  readonly experts: Int32Array;
  /** What these experts made of the token, [tokens, topK, hidden]. */
  readonly outputs: Float32Array;
  /** The hidden states after the layer, [tokens, hidden]. */
  readonly hidden: Float32Array;
}

/** Computes the experts that tokens were routed to, [tokens, topK, hidden]. */
export type ExpertStage = (
  layer: number,
  routing: Routing,
) => Float32Array | Promise<Float32Array>;

/**
 * Runs the MoE layers; how the experts are computed is up to the caller.
 *
 * @param model The model.
 * @param input Hidden states, [tokens, hidden].
 * @param options What is added to the routers' scores, [layers][experts], and the experts.
 * @returns What went on in each layer.
 */
export async function runLayers(
  model: MoeModel,
  input: Float32Array,
  options: {
    readonly biases: readonly Float64Array[];
    readonly experts: ExpertStage;
  },
): Promise<LayerOutcome[]> {
  const outcomes: LayerOutcome[] = [];
  let hidden = input;
  for (const [index, layer] of model.layers.entries()) {
    const routing = route(model, hidden, {
      layer,
      bias: options.biases[index]!,
    });
    const outputs = await options.experts(index, routing);
    hidden = combine(hidden, { model, layer, routing, outputs });
    outcomes.push({ experts: routing.experts, outputs, hidden });
  }
  return outcomes;
}

/** Computes one expert for one token. */
export function runExpert(
  { w13, w2 }: Expert,
  input: Float32Array,
  output: Float32Array,
): void {
  const inner = w2.length / input.length;
  const projected = new Float64Array(2 * inner);
  multiply(w13, input, projected);
  const activated = new Float32Array(inner);
  for (let i = 0; i < inner; i++) {
    const gate = projected[i]!;
    activated[i] = gate / (1 + Math.exp(-gate)) * projected[inner + i]!;
  }
  const result = new Float64Array(input.length);
  multiply(w2, activated, result);
  for (let i = 0; i < output.length; i++) output[i] = result[i]!;
}

/** The scores by which tokens choose, [experts], without any bias. */
export function scoresOf(
  model: MoeModel,
  normed: Float32Array,
  layer: MoeLayer,
): Float64Array {
  const scores = new Float64Array(model.experts);
  multiply(layer.router, normed, scores);
  return model.rule.score === "sigmoid"
    ? scores.map((logit) => 1 / (1 + Math.exp(-logit)))
    : scores;
}

/** Scales a hidden state to a mean square of 1. */
export function normalize(
  model: MoeModel,
  hidden: Float32Array,
  layer: MoeLayer,
): Float32Array {
  const square = hidden.reduce((sum, value) => sum + value * value, 0);
  const scale = 1 / Math.sqrt(square / hidden.length + model.epsilon);
  return hidden.map((value, i) => value * scale * layer.norm[i]!);
}

/** Normalizes hidden states, and chooses experts and their weights. */
function route(
  model: MoeModel,
  hidden: Float32Array,
  options: { readonly layer: MoeLayer; readonly bias: Float64Array },
): Routing {
  const { topK, rule } = model;
  const { layer, bias } = options;
  const tokens = hidden.length / model.hidden;
  const normed = new Float32Array(hidden.length);
  const experts = new Int32Array(tokens * topK);
  const weights = new Float64Array(tokens * topK);
  for (let token = 0; token < tokens; token++) {
    const row = normalize(model, rowOf(hidden, token, model.hidden), layer);
    normed.set(row, token * model.hidden);
    const scores = scoresOf(model, row, layer);
    const biased = scores.map((score, expert) =>
      score + layer.correction[expert]! + bias[expert]!
    );
    const chosen = choose(biased, rule, topK);
    experts.set(chosen, token * topK);
    // A bias of the sigmoid kind chooses only; a softmax is taken of all there is.
    const logits = rule.score === "sigmoid" ? scores : softmax(biased);
    weights.set(weigh(chosen.map((one) => logits[one]!), rule), token * topK);
  }
  return { normed, experts, weights };
}

/** The best experts of the best groups, best first; ties go to the lowest index. */
function choose(
  scores: Float64Array,
  { groups, groupsPerToken }: RoutingRule,
  topK: number,
): number[] {
  const size = scores.length / groups;
  const groupScores = Array.from({ length: groups }, (_, group) => {
    const sorted = scores.slice(group * size, (group + 1) * size).sort();
    return sorted.at(-1)! + (sorted.at(-2) ?? 0);
  });
  const open = new Set(best(groupScores, groupsPerToken));
  const masked = Array.from(
    scores,
    (score, expert) => open.has(Math.floor(expert / size)) ? score : -Infinity,
  );
  return best(masked, topK);
}

function best(values: readonly number[], count: number): number[] {
  const order = values.map((_, index) => index);
  // Sorting is stable, so ties stay in order.
  return order.sort((a, b) => values[b]! - values[a]!).slice(0, count);
}

function softmax(logits: Float64Array): Float64Array {
  const highest = logits.reduce((a, b) => Math.max(a, b), -Infinity);
  const powers = logits.map((logit) => Math.exp(logit - highest));
  const sum = powers.reduce((a, b) => a + b, 0);
  return powers.map((power) => power / sum);
}

function weigh(scores: readonly number[], rule: RoutingRule): number[] {
  const sum = rule.normalize ? scores.reduce((a, b) => a + b, 0) : 1;
  return scores.map((score) => score / sum * rule.scale);
}

/** Residual, plus the experts' outputs in the order of choice, plus the shared expert's. */
function combine(
  hidden: Float32Array,
  { model, layer, routing, outputs }: {
    readonly model: MoeModel;
    readonly layer: MoeLayer;
    readonly routing: Routing;
    readonly outputs: Float32Array;
  },
): Float32Array {
  const { topK, hidden: width } = model;
  const result = new Float32Array(hidden.length);
  const shared = new Float32Array(width);
  for (let token = 0; token * width < hidden.length; token++) {
    if (layer.shared !== undefined) {
      runExpert(layer.shared, rowOf(routing.normed, token, width), shared);
    }
    for (let i = 0; i < width; i++) {
      let sum = 0;
      for (let k = token * topK; k < (token + 1) * topK; k++) {
        sum += routing.weights[k]! * outputs[k * width + i]!;
      }
      result[token * width + i] = hidden[token * width + i]! + sum + shared[i]!;
    }
  }
  return result;
}

/** One row of a matrix, as a view. */
export function rowOf(
  matrix: Float32Array,
  row: number,
  width: number,
): Float32Array {
  return matrix.subarray(row * width, (row + 1) * width);
}

/**
 * Product of a matrix, [rows, vector's length], and a vector.
 *
 * Four rows at a time, so that no sum waits for itself; each is made from left to right.
 */
function multiply(
  matrix: Float32Array,
  vector: Float32Array,
  result: Float64Array,
): void {
  const width = vector.length;
  let row = 0;
  for (; row + 3 < result.length; row += 4) {
    const first = row * width;
    const second = first + width;
    const third = second + width;
    const fourth = third + width;
    let a = 0;
    let b = 0;
    let c = 0;
    let d = 0;
    for (let i = 0; i < width; i++) {
      const value = vector[i]!;
      a += matrix[first + i]! * value;
      b += matrix[second + i]! * value;
      c += matrix[third + i]! * value;
      d += matrix[fourth + i]! * value;
    }
    result[row] = a;
    result[row + 1] = b;
    result[row + 2] = c;
    result[row + 3] = d;
  }
  for (; row < result.length; row++) {
    let sum = 0;
    for (let i = 0; i < width; i++) {
      sum += matrix[row * width + i]! * vector[i]!;
    }
    result[row] = sum;
  }
}
