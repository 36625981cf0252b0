// One rearrangement, thought through: the plan, the local ranks' program, and a
// digest that all processes must agree on.

import { planDigest } from "../migration/digest.ts";
import { type MigrationPlan, planMigration } from "../migration/plan.ts";
import { compileProgram, type Program } from "../migration/program.ts";
import type { Placement } from "../placement.ts";
import type { EngineOptions, RearrangeOptions } from "./options.ts";
import type { Staging } from "./staging.ts";

/** Tensors of up to this many bytes share one message, unless told otherwise. */
export const SMALL_BYTES = 1 << 20;
const MAX_OPS_PER_GROUP = 64;

/** A planned rearrangement. */
export interface Move {
  readonly from: Placement;
  readonly to: Placement;
  readonly plan: MigrationPlan;
  readonly program: Program;
  readonly digest: string;
}

/** Plans the way from one placement to another. */
export function planMove(
  from: Placement,
  to: Placement,
  options: {
    readonly engine: EngineOptions;
    readonly locals: readonly number[];
    readonly staging: Staging;
    readonly rearrange: RearrangeOptions;
  },
): Move {
  const { topology, weights } = options.engine;
  const tensorBytes = weights[0]!.tensorBytes;
  const smallBytes = options.engine.smallBytes ?? SMALL_BYTES;
  const maxOpsPerGroup = options.engine.maxOpsPerGroup ?? MAX_OPS_PER_GROUP;
  const sources = options.rearrange.sources ?? "balanced";
  const large = tensorBytes.filter((bytes) => bytes > smallBytes).length;
  const small = large < tensorBytes.length ? 1 : 0;
  const plan = planMigration(from, to, { topology, sources });
  const schedule = {
    stagingCells: options.staging.cells,
    maxOpsPerGroup,
    opsPerExpert: large + small,
  };
  const program = compileProgram(plan, { ranks: options.locals, ...schedule });
  const digest = planDigest({
    from,
    to,
    topology,
    tensorBytes,
    options: { sources, smallBytes, ...schedule },
  });
  return { from, to, plan, program, digest };
}

/** Layers that are as the new placement says once so many batches are committed. */
export function committedLayers(move: Move, batches: number): number {
  const firstLayer = move.program.batches[2 * batches];
  return firstLayer ?? move.to.layers;
}
