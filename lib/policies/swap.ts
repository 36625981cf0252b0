// SPDX-License-Identifier: Apache-2.0

/**
 * A placement policy that improves today's placement step by step.
 *
 * @module
 */
import { checkInteger, show } from "../_check.ts";
import { Placement } from "../placement.ts";
import { carryActive, carryLayer } from "./_carry.ts";
import { type ExchangeLimits, ExchangeSearch } from "./_exchange.ts";
import { checkInput, isDense, type PolicyJob } from "./_job.ts";
import { keepSlots } from "./_keep_slots.ts";
import { LayerState } from "./_layer_state.ts";
import { planAnew } from "./_reference.ts";
import { equalShares } from "./_shares.ts";
import { slotCost } from "./_slot_cost.ts";
import type { PolicyInput, PolicyPlan } from "./policy.ts";

/** Options of {@linkcode swapPolicy}. */
export interface SwapOptions {
  /**
   * The most slots of a layer that may change. Experts that no active rank holds are restored in
   * any case, and count. Without a current placement nothing is limited.
   *
   * @default {Infinity}
   */
  readonly maxMoves?: number;
  /**
   * By how much a step must relieve the busiest rank, as a part of the mean rank cost; a layer
   * whose imbalance is within it stays as it is.
   *
   * @default {0.01}
   */
  readonly minGain?: number;
}

/**
 * Improves today's placement by exchanges between the busiest rank and others.
 *
 * In each step, the busiest rank of a layer and the lightest rank that can help swap two
 * experts, or one of them takes a copy of an expert of the other, into an empty slot or over one
 * of several copies. Costs and gains are exact: a copy splits its expert's tokens anew between
 * all ranks that hold it. Of the steps between two ranks, the one that lowers the sum of squared
 * costs most for each slot it moves is made. Every step lowers the highest rank cost or, if
 * other ranks are about as busy, leaves it and lowers the sum of squares. It ends when no step
 * gains enough, so planning again on the same load from a result that `maxMoves` did not cut
 * short moves nothing.
 *
 * Layers without tokens are kept. Of the objective, `crossNodeCost` is not looked at. Without a
 * current placement, steps start from what `deepseekPolicy` plans.
 *
 * @param input What to decide from.
 * @param options How much may move, and for what.
 * @returns The placement, and equal shares.
 * @throws {RangeError} If the sizes do not fit together, a load is negative or not finite, the
 * active ranks have fewer slots than there are experts, or an option or the objective is out of
 * range.
 *
 * @example
 * ```ts
 * import { Placement, swapPolicy, Topology } from "@eplb/eplb";
 * import { assertEquals } from "@std/assert";
 *
 * const { placement } = swapPolicy({
 *   load: new Float64Array([60, 50, 10, 20]),
 *   experts: 4,
 *   topology: Topology.uniform({ ranks: 2, nodes: 1 }),
 *   slotsPerRank: 2,
 *   current: Placement.from([[0, 1, 2, 3]], { ranks: 2 }),
 * });
 * // 110 and 30 tokens become 70 and 70: experts 0 and 3 change places.
 * assertEquals([...placement.physicalToLogical], [3, 1, 2, 0]);
 * ```
 */
export function swapPolicy(
  input: PolicyInput,
  options: SwapOptions = {},
): PolicyPlan {
  const job = checkInput(input);
  const limits = checkLimits(options, job);
  const state = new LayerState(job, slotCost(input.objective ?? {}, job.ranks));
  const search = new ExchangeSearch(state, job.active, limits);
  const { layers, slots } = job;
  const map = startingMap(job);
  for (let layer = 0; layer < layers; layer++) {
    if (isDense(job, layer)) continue;
    const row = map.subarray(layer * slots, (layer + 1) * slots);
    state.start(row, layer);
    search.start();
    while (search.run()) {
      keepRanks(row, job, layer);
      // Sums are taken in the order of slots: looked at anew, the result must be final too.
      state.start(row, layer);
    }
  }
  const placement = Placement.from(map, job);
  return { placement, shares: equalShares(placement) };
}

/** Today's placement as far as active ranks hold it; a new one if there is none. */
function startingMap(job: PolicyJob): Int32Array {
  const { layers, slots, current } = job;
  if (current === undefined) return planAnew(job);
  const map = new Int32Array(layers * slots).fill(-1);
  for (let layer = 0; layer < layers; layer++) {
    const row = map.subarray(layer * slots, (layer + 1) * slots);
    if (isDense(job, layer)) carryLayer(row, job, layer);
    else carryActive(row, job, layer);
  }
  return map;
}

/** Puts experts that are still on their rank back into their slots. */
function keepRanks(row: Int32Array, job: PolicyJob, layer: number): void {
  const { slots, slotsPerRank: count, current } = job;
  if (current === undefined) return;
  const first = layer * slots;
  const before = current.physicalToLogical.subarray(first, first + slots);
  for (const rank of job.active) {
    keepSlots(row, before, { first: rank * count, count });
  }
}

function checkLimits(options: SwapOptions, job: PolicyJob): ExchangeLimits {
  const { maxMoves = Infinity, minGain = 0.01 } = options;
  if (maxMoves !== Infinity) {
    checkInteger(maxMoves, {
      action: "place experts",
      name: "maxMoves",
      min: 0,
    });
  }
  if (!(minGain >= 0 && minGain < Infinity)) {
    throw new RangeError(
      `Cannot place experts: minGain must be non-negative and finite, it is ${
        show(minGain)
      }`,
    );
  }
  return { maxMoves: job.current === undefined ? Infinity : maxMoves, minGain };
}
