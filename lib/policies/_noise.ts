// SPDX-License-Identifier: Apache-2.0

/**
 * How even a load can look, given that it is a sample.
 *
 * @module
 */

/** Parameters of {@linkcode noiseFloor}. */
export interface NoiseOptions {
  /** Ranks that share the tokens. */
  readonly ranks: number;
  /** How many standard deviations count as noise. */
  readonly noise: number;
}

/**
 * Imbalance that chance alone would cause if all ranks were equally busy in truth.
 *
 * Tokens go to a rank like draws of an urn: of n tokens on r ranks, the count of a rank deviates
 * from its mean by √(r ÷ n) of it, one standard deviation. Balancing a sample better than that
 * does not balance the next one better.
 *
 * @param tokens Tokens of the layer.
 * @param options Ranks, and standard deviations.
 * @returns Imbalance, from 1.
 */
export function noiseFloor(tokens: number, options: NoiseOptions): number {
  return 1 + options.noise * Math.sqrt(options.ranks / tokens);
}
