// SPDX-License-Identifier: Apache-2.0

/**
 * What placement policies have in common.
 *
 * @module
 */
import type { Placement } from "../placement.ts";
import type { Topology } from "../topology.ts";
import type { Objective } from "./objective.ts";

/** What a policy decides from. */
export interface PolicyInput {
  /** Tokens per logical expert, [layers, experts], row major; a layer of zeros is a dense one. */
  readonly load: Float64Array;
  /** Logical experts per layer. */
  readonly experts: number;
  /** Ranks and nodes, link rates where known. */
  readonly topology: Topology;
  /** Slots of one rank in each layer. */
  readonly slotsPerRank: number;
  /**
   * Where the experts are today.
   *
   * @default {nowhere: everything is placed anew}
   */
  readonly current?: Placement;
  /**
   * Ranks that may hold experts, ascending; slots of all others become empty.
   *
   * @default {all ranks}
   */
  readonly active?: readonly number[];
  /**
   * Groups that the experts form, for policies that keep a group on one node.
   *
   * @default {1}
   */
  readonly groups?: number;
  /**
   * What is balanced.
   *
   * @default {tokens}
   */
  readonly objective?: Objective;
}

/** What a policy decides. */
export interface PolicyPlan {
  /** Where the experts shall be. */
  readonly placement: Placement;
  /**
   * Share of its expert's tokens that each slot takes, [layers, slots], row major;
   * the shares of an expert's slots add up to 1, empty slots have 0.
   */
  readonly shares: Float64Array;
}

/** Decides where experts shall be; pure, and the same on every rank. */
export type Policy = (input: PolicyInput) => PolicyPlan;
