// SPDX-License-Identifier: Apache-2.0

/**
 * What a state tells about its cycles.
 *
 * @module
 */
import type { MigrationCounts } from "../migration/plan.ts";
import type { GateDecision } from "../policies/gate.ts";

/** What all events of a cycle have. */
export interface CycleEvent {
  /** Name of the model. */
  readonly model: string;
  /** Number of the cycle, from 1, counted over all models of the state. */
  readonly cycle: number;
  /** The step at whose end it happened, from 1. */
  readonly step: number;
}

/** A cycle begins: the load is about to be reduced. */
export interface CycleStarted extends CycleEvent {
  /** Tells it from other events. */
  readonly type: "cycle-started";
  /** Why now: the step interval has passed, the caller asked for it, or other ranks are active. */
  readonly trigger: CycleTrigger;
}

/** Why a cycle begins. */
export type CycleTrigger = "interval" | "request" | "active-ranks";

/** The load is reduced, and the policy and the gate have decided. */
export interface CycleDecided extends CycleEvent {
  /** Tells it from other events. */
  readonly type: "cycle-decided";
  /** Tokens in the load window, over all ranks, layers and experts. */
  readonly tokens: number;
  /** Mean and largest tokens of a rank, over the layers with load, under the map of before. */
  readonly rankTokens: { readonly mean: number; readonly max: number };
  /** Balancedness of each layer under the map and shares of before, [layers], in (0, 1]. */
  readonly balancednessBefore: Float64Array;
  /** The same under what was decided. */
  readonly balancednessAfter: Float64Array;
  /** Why each layer moves or not, [layers]; empty without a gate. */
  readonly decisions: readonly GateDecision[];
  /** Slots that get another expert, over all layers. */
  readonly movedSlots: number;
  /** Seconds that reducing the load over the ranks took. */
  readonly loadSeconds: number;
  /** Seconds that the policy and the gate took. */
  readonly planSeconds: number;
}

/** Layers have new weights and maps, on every rank, from the next forward pass on. */
export interface LayersCommitted extends CycleEvent {
  /** Tells it from other events. */
  readonly type: "layers-committed";
  /** The first of them. */
  readonly firstLayer: number;
  /** How many. */
  readonly layers: number;
  /** Seconds that putting them in place took, maps included. */
  readonly commitSeconds: number;
  /** Seconds for which the step was held up: the same, and the wait for the votes of other ranks. */
  readonly stallSeconds: number;
}

/** How a cycle ended. */
export type CycleOutcome =
  | "committed"
  | "resplit"
  | "unchanged"
  | "abandoned"
  | "failed";

/** A cycle is over; maps and weights agree, whatever the outcome. */
export interface CycleEnded extends CycleEvent {
  /** Tells it from other events. */
  readonly type: "cycle-ended";
  /**
   * | outcome | what happened |
   * | --- | --- |
   * | `committed` | every layer is as decided |
   * | `resplit` | nothing was to be moved, but tokens are split anew over the replicas |
   * | `unchanged` | everything stays as it is |
   * | `abandoned` | given up by all ranks together; the state goes on |
   * | `failed` | a rank was lost; the state serves on with the maps it has, and balances no more |
   */
  readonly outcome: CycleOutcome;
  /** Why it was abandoned or failed. */
  readonly reason: string | undefined;
  /** The rank to blame for that, if one is known. */
  readonly failedRank: number | undefined;
  /** Layers that are as decided. */
  readonly committedLayers: number;
  /** All layers. */
  readonly layers: number;
  /** Slots of the committed layers, over all ranks, by what happened to them. */
  readonly moves: MigrationCounts;
  /** Bytes into slots of the committed layers, over all ranks, by where they came from. */
  readonly bytes: BytesByCase;
  /** Steps from the first to the last of the cycle. */
  readonly steps: number;
  /** Seconds from the first byte to the last commit. */
  readonly moveSeconds: number;
  /** Seconds for which steps were held up, in all. */
  readonly stallSeconds: number;
  /** Seconds from start to end. */
  readonly seconds: number;
}

/** Bytes that entered slots, by where they came from. */
export interface BytesByCase {
  /** From another slot of the same rank, or shared with one that receives them. */
  readonly sameRank: number;
  /** From another rank of the same node. */
  readonly sameNode: number;
  /** From another node. */
  readonly crossNode: number;
}

/** A cycle was due while one was in progress. */
export interface CycleSkipped {
  /** Tells it from other events. */
  readonly type: "cycle-skipped";
  /** The step at whose end it was due. */
  readonly step: number;
  /** The cycle in progress. */
  readonly cycle: number;
}

/** Whatever a state tells. */
export type EplbEvent =
  | CycleStarted
  | CycleDecided
  | LayersCommitted
  | CycleEnded
  | CycleSkipped;

/**
 * Says in one line how a cycle ended, for a log.
 *
 * @param event The end of the cycle.
 * @returns The line, without a line break.
 *
 * @example
 * ```ts
 * import { describeCycle } from "@eplb/eplb";
 * import { assertEquals } from "@std/assert";
 *
 * const line = describeCycle({
 *   type: "cycle-ended",
 *   model: "main",
 *   cycle: 3,
 *   step: 9000,
 *   outcome: "abandoned",
 *   reason: "no progress for 30000 ms",
 *   failedRank: undefined,
 *   committedLayers: 2,
 *   layers: 58,
 *   moves: { unchanged: 540, sameRank: 0, duplicate: 0, sameNode: 36, crossNode: 0 },
 *   bytes: { sameRank: 0, sameNode: 36 * 44e6, crossNode: 0 },
 *   steps: 12,
 *   moveSeconds: 0.25,
 *   stallSeconds: 0.001,
 *   seconds: 31,
 * });
 * assertEquals(
 *   line,
 *   "main: cycle 3 abandoned at step 9000 after 12 steps, 31.0 s: 2 of 58 layers, " +
 *     "1.58 GB, stalled 1.0 ms (no progress for 30000 ms)",
 * );
 * ```
 */
export function describeCycle(event: CycleEnded): string {
  const { model, cycle, outcome, step, steps, bytes } = event;
  const moved = bytes.sameRank + bytes.sameNode + bytes.crossNode;
  const parts = [
    `${event.committedLayers} of ${event.layers} layers`,
    `${(moved / 1e9).toFixed(2)} GB`,
    `stalled ${(event.stallSeconds * 1e3).toFixed(1)} ms`,
  ];
  const reason = event.reason === undefined ? "" : ` (${event.reason})`;
  return `${model}: cycle ${cycle} ${outcome} at step ${step} after ${steps} steps, ` +
    `${event.seconds.toFixed(1)} s: ${parts.join(", ")}${reason}`;
}
