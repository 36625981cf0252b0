// SPDX-License-Identifier: Apache-2.0

/**
 * One rearrangement, thought through.
 *
 * @module
 */
import { planDigest } from "../migration/digest.ts";
import { directSlots, drained } from "../migration/direct.ts";
import { planHops } from "../migration/hops.ts";
import { type MigrationPlan, planMigration } from "../migration/plan.ts";
import {
  compileProgram,
  type Program,
  stagingCellsNeeded,
} from "../migration/program.ts";
import type { SourceChoice } from "../migration/sources.ts";
import { Placement } from "../placement.ts";
import type { Topology } from "../topology.ts";

/** A planned rearrangement: {@linkcode planMove} makes one. */
export interface Move {
  /** What the weights hold before it. */
  readonly from: Placement;
  /** What they hold while it runs: slots that are written directly are empty. */
  readonly drained: Placement;
  /** What they hold after it. */
  readonly to: Placement;
  /** Where every slot gets its expert from. */
  readonly plan: MigrationPlan;
  /** What the ranks of this process do. */
  readonly program: Program;
  /** Of all that the plan follows from: must be the same on all processes. */
  readonly digest: string;
}

/** How a rearrangement is planned. */
export interface MoveOptions {
  /**
   * Which holder sends.
   *
   * @default {"balanced"}
   */
  readonly sources?: SourceChoice | undefined;
  /**
   * Whether slots that nobody reads are written without staging; see {@linkcode directSlots}. Not
   * for the transport `nccl-put`, for which {@linkcode Engine.moveSettings} leaves it out.
   *
   * @default {false}
   */
  readonly direct?: boolean | undefined;
  /**
   * The most layers that change in one batch.
   *
   * @default {as many as staging can hold}
   */
  readonly maxLayersPerBatch?: number | undefined;
}

/** All that a plan and its program follow from, beside the two placements; plain data. */
export interface MoveSettings extends MoveOptions {
  /** Where the ranks are. */
  readonly topology: Topology;
  /** Ranks of this process. */
  readonly locals: readonly number[];
  /** Bytes of one expert in each tensor. */
  readonly tensorBytes: readonly number[];
  /** Tensors of up to this many bytes move together. */
  readonly smallBytes: number;
  /** Sends and receives of one rank in one group. */
  readonly maxOpsPerGroup: number;
  /** Experts that one staging set of a rank holds. */
  readonly stagingCells: number;
}

/**
 * Plans the way from one placement to another; nothing moves yet.
 *
 * @param from What the weights hold.
 * @param to What they shall hold.
 * @param settings What {@linkcode Engine.moveSettings} says, which may come from another thread.
 * @returns The move, for {@linkcode Engine.begin}.
 * @throws {RangeError} If the placements do not fit each other or the settings, or a layer needs
 * more staging memory than there is.
 *
 * @example
 * ```ts
 * import { Placement, planMove, Topology } from "@eplb/eplb";
 * import { assertEquals } from "@std/assert";
 *
 * const from = Placement.from([[0, 1, 0, 2, 3, 1]], { ranks: 2 });
 * const to = Placement.from([[0, 1, 3, 2, 3, 0]], { ranks: 2 });
 * const move = planMove(from, to, {
 *   topology: Topology.uniform({ ranks: 2, nodes: 1 }),
 *   locals: [0, 1],
 *   tensorBytes: [4096],
 *   smallBytes: 0,
 *   maxOpsPerGroup: 64,
 *   stagingCells: 1,
 *   direct: true,
 * });
 * assertEquals([...move.drained.physicalToLogical], [0, 1, -1, 2, 3, -1]);
 * ```
 */
export function planMove(
  from: Placement,
  to: Placement,
  settings: MoveSettings,
): Move {
  const { topology, sources } = settings;
  const plan = planMigration(from, to, { topology, sources });
  return moveAlong(plan, { from, to, settings });
}

/** Works a plan out. */
function moveAlong(
  plan: MigrationPlan,
  { from, to, settings }: {
    readonly from: Placement;
    readonly to: Placement;
    readonly settings: MoveSettings;
  },
): Move {
  const { topology, locals, tensorBytes, smallBytes } = settings;
  const { sources = "balanced", maxLayersPerBatch = from.layers } = settings;
  const large = tensorBytes.filter((bytes) => bytes > smallBytes).length;
  const small = large < tensorBytes.length ? 1 : 0;
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

/**
 * Plans the way from one placement to another in as many moves as nodes and staging memory ask for.
 *
 * @param from What the weights hold.
 * @param to What they shall hold.
 * @param settings As for {@linkcode planMove}; `relay`, which is true unless told otherwise, lets an
 * expert enter a node once.
 * @returns The moves, at least one; each begins with the placement that the one before ends with.
 * @throws {RangeError} If the placements do not fit each other or the settings.
 *
 * @example
 * ```ts
 * import { Placement, planJourney, Topology } from "@eplb/eplb";
 * import { assertEquals } from "@std/assert";
 *
 * const moves = planJourney(
 *   Placement.from([[0, 1, 2, 3, 4, 5, 0, 2]], { ranks: 4 }),
 *   Placement.from([[0, 1, 2, 3, 4, 1, 5, 1]], { ranks: 4 }),
 *   {
 *     topology: Topology.uniform({ ranks: 4, nodes: 2 }),
 *     locals: [0, 1, 2, 3],
 *     tensorBytes: [4096],
 *     smallBytes: 0,
 *     maxOpsPerGroup: 64,
 *     stagingCells: 2,
 *   },
 * );
 * // Expert 1 enters the second node once, and goes on to its other rank from there.
 * assertEquals(moves.map(({ plan }) => plan.counts.crossNode), [1, 0]);
 * ```
 */
export function planJourney(
  from: Placement,
  to: Placement,
  settings: MoveSettings & { readonly relay?: boolean | undefined },
): readonly Move[] {
  const { topology, stagingCells, sources, relay = true } = settings;
  const relays = relay && topology.nodes > 1;
  const plan = planMigration(from, to, { topology, sources });
  if (!relays && fits(plan, from, settings)) {
    return [moveAlong(plan, { from, to, settings })];
  }
  const hops = planHops(from, to, { topology, stagingCells, relay });
  if (hops.length === 1) return [moveAlong(plan, { from, to, settings })];
  return hops.map((hop, i) => planMove(hops[i - 1] ?? from, hop, settings));
}

/** Whether one move will do. */
function fits(
  plan: MigrationPlan,
  from: Placement,
  { direct, stagingCells }: MoveSettings,
): boolean {
  const needed = stagingCellsNeeded(
    plan,
    direct ? directSlots(plan, from) : undefined,
  );
  return needed <= stagingCells;
}

/** Layers that are as the new placement says once so many batches are committed. */
export function layersOf(move: Move, batches: number): number {
  return move.program.batches[2 * batches] ?? move.to.layers;
}

/** What the weights hold once so many layers are committed, and after a failure. */
export function placementAt(move: Move, layers: number): Placement {
  return Placement.mix(move.drained, move.to, layers);
}
