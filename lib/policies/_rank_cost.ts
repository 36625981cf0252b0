// SPDX-License-Identifier: Apache-2.0

/**
 * What each rank's work costs: the one place where an objective is evaluated.
 *
 * @module
 */
import { show } from "../_check.ts";
import type { Placement } from "../placement.ts";
import type { Topology } from "../topology.ts";
import { primarySlots, sortRanks } from "./_primary.ts";
import { type SlotCost, slotCost } from "./_slot_cost.ts";
import type { Objective } from "./objective.ts";

/** An objective, checked and with defaults filled in. */
export interface RankObjective extends SlotCost {
  /** What a token costs on top on another node than its expert's primary, as a part of its cost. */
  readonly crossNodeCost: number;
}

/** A placement under a load. */
export interface RankCostInput {
  /** Tokens per logical expert, [layers, experts], row major. */
  readonly load: Float64Array | Int32Array;
  /** Where the experts are. */
  readonly placement: Placement;
  /** Share of its expert's tokens that each slot takes, [layers, slots]; equal if undefined. */
  readonly shares: Float32Array | Float64Array | undefined;
  /** What is balanced. */
  readonly objective: RankObjective;
  /** Which rank is on which node; all are on one if undefined. */
  readonly topology: Topology | undefined;
}

/**
 * Reads an objective.
 *
 * @param objective What is balanced.
 * @param ranks Number of ranks.
 * @returns The objective with its defaults.
 * @throws {RangeError} If a cost is negative or not finite, or there is not one positive, finite
 * speed for each rank.
 */
export function rankObjective(
  objective: Objective,
  ranks: number,
): RankObjective {
  const { crossNodeCost = 0 } = objective;
  if (!(crossNodeCost >= 0 && crossNodeCost < Infinity)) {
    throw new RangeError(
      `Cannot place experts: crossNodeCost must be non-negative and finite, it is ${
        show(crossNodeCost)
      }`,
    );
  }
  return { ...slotCost(objective, ranks), crossNodeCost };
}

/**
 * Adds up what each rank's work in one layer costs.
 *
 * @param input The placement and its load, checked.
 * @param layer The layer.
 * @returns Cost of each rank, [ranks].
 */
export function rankCosts(input: RankCostInput, layer: number): Float64Array {
  const { load, placement, shares, objective } = input;
  const { slots, slotsPerRank, experts, physicalToLogical } = placement;
  const { tokenCost, expertCost, pace } = objective;
  const row = physicalToLogical.subarray(layer * slots, (layer + 1) * slots);
  const home = homeNodes(row, input);
  const costs = new Float64Array(placement.ranks);
  for (let slot = 0; slot < slots; slot++) {
    const expert = row[slot]!;
    if (expert < 0) continue;
    const cell = layer * experts + expert;
    const tokens = load[cell]! *
      (shares === undefined
        ? 1 / placement.logicalReplicaCount[cell]!
        : shares[layer * slots + slot]!);
    if (tokens === 0) continue;
    const rank = Math.floor(slot / slotsPerRank);
    const away = home !== undefined &&
      home[expert] !== input.topology!.nodeOf[rank];
    const token = tokenCost * (away ? 1 + objective.crossNodeCost : 1);
    costs[rank]! += tokens * token + expertCost;
  }
  for (let rank = 0; rank < costs.length; rank++) costs[rank]! *= pace[rank]!;
  return costs;
}

/** Node of each expert's primary, [experts]; undefined if it makes no difference. */
function homeNodes(
  row: Int32Array,
  { placement, topology, objective }: RankCostInput,
): Int32Array | undefined {
  if (topology === undefined || objective.crossNodeCost === 0) return undefined;
  const { nodeOf } = topology;
  const { slotsPerRank } = placement;
  const ranks = Int32Array.from({ length: placement.ranks }, (_, rank) => rank);
  const traits = { slotsPerRank, nodeOf, pace: objective.pace };
  return primarySlots(row, sortRanks(row, ranks, traits), placement)
    .map((slot) => nodeOf[Math.floor(slot / slotsPerRank)]!);
}

/** Ranks that share work. */
export interface SharingRanks {
  /** Ranks that may hold experts. */
  readonly active: ArrayLike<number>;
  /** One over the speed of each rank, [ranks]. */
  readonly pace: Float64Array;
}

/**
 * Cost of the busiest rank as a multiple of what all would cost if the same work was spread evenly.
 *
 * @param costs Cost of each rank, [ranks].
 * @param sharing The ranks that share the work.
 * @returns Imbalance, from 1; 1 if there is no work.
 */
export function imbalanceOf(
  costs: Float64Array,
  { active, pace }: SharingRanks,
): number {
  let highest = 0;
  let work = 0;
  let speed = 0;
  for (let i = 0; i < active.length; i++) {
    const rank = active[i]!;
    highest = Math.max(highest, costs[rank]!);
    work += costs[rank]! / pace[rank]!;
    speed += 1 / pace[rank]!;
  }
  return highest === 0 ? 1 : Math.max(1, highest / (work / speed));
}
