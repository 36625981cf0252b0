// SPDX-License-Identifier: Apache-2.0

/**
 * Random counts.
 *
 * @module
 */
import type { SeededRandom } from "./random.ts";

/** Expected counts above which a binomial is drawn as a rounded normal. */
const NORMAL_FROM = 50;

/**
 * Adds a multinomial draw to `target`: `count` tokens, each to an expert with a probability in
 * proportion to its weight. Weights that are all zero draw nothing.
 *
 * Experts are drawn one after the other from what is left. Rare ones exactly, by inversion; where
 * hits and misses are both many, from the normal distribution that the binomial then is.
 */
export function drawMultinomial(
  weights: Float64Array,
  options: {
    readonly count: number;
    readonly target: Float64Array;
    readonly random: SeededRandom;
  },
): void {
  const { target, random } = options;
  let rest = weights.reduce((sum, weight) => sum + weight, 0);
  let left = options.count;
  for (let i = 0; i < weights.length && left > 0 && rest > 0; i++) {
    const probability = Math.min(1, weights[i]! / rest);
    const hits = drawBinomial(left, probability, random);
    target[i]! += hits;
    left -= hits;
    rest -= weights[i]!;
  }
}

function drawBinomial(
  count: number,
  probability: number,
  random: SeededRandom,
): number {
  if (probability >= 1) return count;
  if (probability > 0.5) {
    return count - drawBinomial(count, 1 - probability, random);
  }
  const mean = count * probability;
  if (mean < NORMAL_FROM) return invertBinomial(count, probability, random);
  const deviation = Math.sqrt(mean * (1 - probability));
  const hits = Math.round(mean + deviation * drawNormal(random));
  return Math.min(count, Math.max(0, hits));
}

/** Skips from hit to hit: the misses between two are geometric. */
function invertBinomial(
  count: number,
  probability: number,
  random: SeededRandom,
): number {
  if (probability <= 0) return 0;
  const scale = 1 / Math.log1p(-probability);
  let [hits, at] = [0, 0];
  for (;;) {
    at += Math.floor(Math.log(uniform(random)) * scale) + 1;
    if (at > count) return hits;
    hits++;
  }
}

/** Box and Muller's way. */
function drawNormal(random: SeededRandom): number {
  const radius = Math.sqrt(-2 * Math.log(uniform(random)));
  return radius * Math.cos(2 * Math.PI * uniform(random));
}

/** In (0, 1]. */
function uniform(random: SeededRandom): number {
  return (random.uint32() + 1) / 2 ** 32;
}
