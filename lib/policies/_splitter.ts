// SPDX-License-Identifier: Apache-2.0

/**
 * Splitting layers' tokens over the copies that are there.
 *
 * @module
 */
import { gatherWork } from "./_activation.ts";
import type { PolicyJob } from "./_job.ts";
import type { RankObjective } from "./_rank_cost.ts";
import { SplitLayer } from "./_split_layer.ts";
import { TokenFlow } from "./_token_flow.ts";

/** Smaller shares than this are rounding. */
const SMALLEST_SHARE = 1e-9;

/** Splits layers one after the other; memory is used again for each. */
export class Splitter {
  /** The layer that was split last. */
  readonly layer: SplitLayer;
  /** What spreads its work. */
  readonly flow: TokenFlow;
  readonly #objective: RankObjective;

  /**
   * Prepares for a job.
   *
   * @param job What is planned.
   * @param objective What is balanced.
   */
  constructor(job: PolicyJob, objective: RankObjective) {
    this.layer = new SplitLayer(job, objective);
    this.flow = new TokenFlow(this.layer);
    this.#objective = objective;
  }

  /**
   * Splits the tokens of a layer so that the busiest rank costs as little as the copies allow.
   *
   * @param row Expert of each slot, [slots]; every expert has one on an active rank.
   * @param layer The layer.
   * @returns Cost of the busiest rank.
   */
  split(row: Int32Array, layer: number): number {
    this.layer.start(row, layer);
    return this.flow.settle();
  }

  /**
   * Writes the shares of the layer that was split last.
   *
   * @param shares Share of its expert's tokens that each slot takes, [slots], zeros; written.
   */
  share(shares: Float64Array): void {
    if (this.#objective.expertCost > 0) {
      gatherWork(this.layer, this.#objective);
    }
    writeShares(this.layer, shares);
  }
}

/** Turns what the slots carry into shares; experts without work share alike. */
function writeShares(layer: SplitLayer, shares: Float64Array): void {
  const { ranks, slotsPerRank, rankAt, expertAt, copies, work } = layer;
  for (let rank = 0; rank < ranks; rank++) {
    for (let i = 0; i < slotsPerRank; i++) {
      const slot = rank * slotsPerRank + i;
      const expert = expertAt[slot]!;
      if (expert < 0) continue;
      const to = rankAt[rank]! * slotsPerRank + i;
      if (copies[expert] === 1) shares[to] = 1;
      else if (work[expert] === 0) shares[to] = 1 / copies[expert]!;
      else shares[to] = shareOf(layer, slot);
    }
  }
}

function shareOf(layer: SplitLayer, slot: number): number {
  const { carried, firstSlot, nextSlot, expertAt, work } = layer;
  const expert = expertAt[slot]!;
  const least = work[expert]! * SMALLEST_SHARE;
  if (carried[slot]! < least) return 0;
  let sum = 0;
  for (let at = firstSlot[expert]!; at >= 0; at = nextSlot[at]!) {
    if (carried[at]! >= least) sum += carried[at]!;
  }
  return carried[slot]! / sum;
}
