// SPDX-License-Identifier: Apache-2.0

/**
 * Which rank sends an expert to a rank that needs it.
 *
 * @module
 */
import { BalancedSources } from "./_balanced.ts";
import { ChunkedSources } from "./_chunked.ts";
import type { LayerDemands, SourceChooser } from "./_demands.ts";

/**
 * How the ranks that send are chosen.
 *
 * Either way an expert comes from the destination's own node if a rank there holds it.
 *
 * | choice       | the rank that sends                                                            |
 * | ------------ | ------------------------------------------------------------------------------ |
 * | `"balanced"` | the busiest rank, then the busiest node uplink, sends as little as possible    |
 * | `"chunked"`  | destinations are dealt out to holders in contiguous chunks, as SGLang does it  |
 */
export type SourceChoice = "balanced" | "chunked";

const CHOOSERS = {
  balanced: BalancedSources,
  chunked: ChunkedSources,
} satisfies Record<SourceChoice, unknown>;

/**
 * Creates what chooses the sources of the demands of one layer after the other.
 *
 * @param choice How to choose.
 * @param demands The demands, to be written before each call.
 * @returns The chooser.
 * @throws {RangeError} If there is no such choice.
 */
export function createSourceChooser(
  choice: SourceChoice,
  demands: LayerDemands,
): SourceChooser {
  if (!Object.hasOwn(CHOOSERS, choice)) {
    const names = Object.keys(CHOOSERS).map((name) => `"${name}"`).join(" or ");
    throw new RangeError(
      `Cannot plan migration: sources must be ${names}, got "${choice}"`,
    );
  }
  return new CHOOSERS[choice](demands);
}
