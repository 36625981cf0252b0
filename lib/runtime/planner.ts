// SPDX-License-Identifier: Apache-2.0

/**
 * Deciding and planning, here or in another thread.
 *
 * @module
 */
import { type Move, type MoveSettings, planJourney } from "../engine/move.ts";
import { planMigration } from "../migration/plan.ts";
import { decide, type Decision, type DecisionInput } from "./decision.ts";

/** What a cycle asks for. */
export interface PlanRequest {
  /** What is decided from. */
  readonly input: DecisionInput;
  /** How the way there is planned. */
  readonly settings: MoveSettings;
}

/** What a cycle gets. */
export interface Planned {
  /** Where experts shall be. */
  readonly decision: Decision;
  /** The way there: moves that follow each other, at least one. */
  readonly moves: readonly Move[];
  /** What happens to each slot, [layers, slots], whatever way it takes: `MigrationCase`. */
  readonly cases: Uint8Array;
}

/** Decides and plans. */
export interface Planner {
  /**
   * @param request What is decided from.
   * @returns The decision and the way there; the same on every process.
   */
  plan(request: PlanRequest): Promise<Planned>;
  /** Frees what the planner has. */
  close(): void;
}

/** Decides and plans in this thread. */
export const inlinePlanner: Planner = {
  // deno-lint-ignore require-await -- what it throws becomes a rejection
  async plan({ input, settings }: PlanRequest): Promise<Planned> {
    const decision = decide(input);
    const { placement: from, topology } = input;
    const { placement: to } = decision;
    const moves = planJourney(from, to, settings);
    const plan = moves.length === 1
      ? moves[0]!.plan
      : planMigration(from, to, { topology });
    return { decision, moves, cases: plan.cases };
  },
  close(): void {},
};
