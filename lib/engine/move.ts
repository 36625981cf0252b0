// One rearrangement, thought through: the plan, the local ranks' program, and a
// digest that all processes must agree on.

import { planDigest } from "../migration/digest.ts";
import { directSlots, drained } from "../migration/direct.ts";
import { type MigrationPlan, planMigration } from "../migration/plan.ts";
import { compileProgram, type Program } from "../migration/program.ts";
import type { SourceChoice } from "../migration/sources.ts";
import { Placement } from "../placement.ts";
import type { Topology } from "../topology.ts";

/** A planned rearrangement. */
export interface Move {
  /** What the weights hold before it. */
  readonly from: Placement;
  /** What they hold while it runs: slots that are written directly are empty. */
  readonly drained: Placement;
  /** What they hold after it. */
  readonly to: Placement;
  readonly plan: MigrationPlan;
  readonly program: Program;
  readonly digest: string;
}

/** How a rearrangement is planned. */
export interface MoveOptions {
  /** Which holder sends. */
  readonly sources?: SourceChoice | undefined;
  /** Whether slots that nobody reads are written without staging. */
  readonly direct?: boolean | undefined;
  /** The most layers that change in one batch. */
  readonly maxLayersPerBatch?: number | undefined;
}

/** All that a plan and its program follow from, beside the two placements; plain data. */
export interface MoveSettings extends MoveOptions {
  readonly topology: Topology;
  /** Ranks of this process. */
  readonly locals: readonly number[];
  /** Bytes of one expert in each tensor. */
  readonly tensorBytes: readonly number[];
  readonly smallBytes: number;
  readonly maxOpsPerGroup: number;
  readonly stagingCells: number;
}

/** Plans the way from one placement to another. */
export function planMove(
  from: Placement,
  to: Placement,
  settings: MoveSettings,
): Move {
  const { topology, locals, tensorBytes, smallBytes } = settings;
  const { sources = "balanced", maxLayersPerBatch = from.layers } = settings;
  const large = tensorBytes.filter((bytes) => bytes > smallBytes).length;
  const small = large < tensorBytes.length ? 1 : 0;
  const plan = planMigration(from, to, { topology, sources });
  const direct = settings.direct
    ? directSlots(plan, from)
    : new Uint8Array(plan.cases.length);
  const schedule = {
    stagingCells: settings.stagingCells,
    maxOpsPerGroup: settings.maxOpsPerGroup,
    opsPerExpert: large + small,
    maxLayersPerBatch,
  };
  const program = compileProgram(plan, { ranks: locals, direct, ...schedule });
  const digest = planDigest({
    from,
    to,
    topology,
    tensorBytes,
    options: {
      sources,
      smallBytes,
      direct: settings.direct ? 1 : 0,
      ...schedule,
    },
  });
  return { from, drained: drained(from, direct), to, plan, program, digest };
}

/** Layers that are as the new placement says once so many batches are committed. */
export function layersOf(move: Move, batches: number): number {
  return move.program.batches[2 * batches] ?? move.to.layers;
}

/** What the weights hold once so many layers are committed, and after a failure. */
export function placementAt(move: Move, layers: number): Placement {
  return Placement.mix(move.drained, move.to, layers);
}
