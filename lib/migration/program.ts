// SPDX-License-Identifier: Apache-2.0

/**
 * The flat array that tells the native engine what to move.
 *
 * @module
 */
import { checkInteger } from "../_check.ts";
import { packLayers, stagedExperts } from "./_batches.ts";
import { BATCH_WORDS, HEADER_WORDS } from "./operation.ts";
import { ProgramWriter } from "./_program_writer.ts";
import type { MigrationPlan } from "./plan.ts";

/** Options of {@linkcode compileProgram}. */
export interface CompileProgramOptions {
  /** Experts that a rank can stage at once, at least {@linkcode stagingCellsNeeded}. */
  readonly stagingCells: number;
  /**
   * The ranks whose operations the program has.
   *
   * @default {all ranks}
   */
  readonly ranks?: readonly number[];
  /**
   * The most sends and receives that a rank starts together.
   *
   * @default {64}
   */
  readonly maxOpsPerGroup?: number;
  /**
   * Sends, or receives, that one expert takes.
   *
   * @default {1}
   */
  readonly opsPerExpert?: number;
  /**
   * The most layers in which something moves in a batch, which are committed together.
   *
   * @default {all layers}
   */
  readonly maxLayersPerBatch?: number;
  /**
   * 1 for each slot that is written without staging, [layers, slots]: some of those that
   * {@linkcode directSlots} finds.
   *
   * @default {all are staged}
   */
  readonly direct?: Uint8Array;
}

/** What some ranks do in a migration. It is immutable: do not write into its arrays. */
export interface Program {
  /** The whole program, laid out as `eplb.h` says: header, batches, operations. */
  readonly words: Int32Array<ArrayBuffer>;
  /**
   * First layer and one past the last layer of each batch, [batches, 2].
   *
   * The batches cover all layers without a gap; there are none if nothing moves.
   */
  readonly batches: Int32Array;
  /**
   * Batch, round, rank, {@linkcode OperationCode}, layer, slot, peer and peer's slot of each
   * operation, [operations, 8]. Slots are numbered inside their rank.
   */
  readonly operations: Int32Array;
  /** Number of batches. */
  readonly batchCount: number;
  /** Number of operations. */
  readonly operationCount: number;
}

/**
 * Counts the staging cells that any program of a plan needs.
 *
 * @param plan The plan.
 * @param direct Slots that are written without staging, [layers, slots]; default: none.
 * @returns The most experts that one rank stages in one layer; 0 if nothing moves.
 *
 * @example Usage
 * ```ts
 * import { Placement, planMigration, stagingCellsNeeded, Topology } from "@eplb/eplb";
 * import { assertEquals } from "@std/assert";
 *
 * const plan = planMigration(
 *   Placement.from([[0, 1, 2, 3]], { ranks: 2 }),
 *   Placement.from([[0, 2, 3, 1]], { ranks: 2 }),
 *   { topology: Topology.uniform({ ranks: 2, nodes: 1 }) },
 * );
 *
 * // Rank 0 receives expert 2; rank 1 receives expert 1 and moves expert 3 from slot to slot.
 * assertEquals(stagingCellsNeeded(plan), 2);
 * ```
 */
export function stagingCellsNeeded(
  plan: MigrationPlan,
  direct?: Uint8Array,
): number {
  return stagedExperts(plan, direct).reduce((a, b) => Math.max(a, b), 0);
}

/**
 * Compiles a plan into the operations of some ranks.
 *
 * Layers are packed into batches that fit into the staging cells of every rank, and the transfers
 * of a batch into rounds that start at most `maxOpsPerGroup` sends and receives on any rank. Both
 * follow from the whole plan, so that ranks agree however they are spread over processes.
 *
 * @param plan The plan.
 * @param options The staging cells, the ranks, and the bounds of a round.
 * @returns The program.
 * @throws {RangeError} If an option is not valid, or a layer does not fit into the staging cells.
 *
 * @example Usage
 * ```ts
 * import { compileProgram, OperationCode, Placement, planMigration, Topology } from "@eplb/eplb";
 * import { assertEquals } from "@std/assert";
 *
 * const plan = planMigration(
 *   Placement.from([[0, 1, 2, 0]], { ranks: 2 }),
 *   Placement.from([[0, 2, 2, 1]], { ranks: 2 }),
 *   { topology: Topology.uniform({ ranks: 2, nodes: 1 }) },
 * );
 * const program = compileProgram(plan, { stagingCells: 1, ranks: [0] });
 *
 * const { receive, send } = OperationCode;
 * assertEquals([...program.operations], [
 *   ...[0, 0, 0, receive, 0, 1, 1, 0], // slot 1 of rank 0 gets what rank 1 holds in slot 0
 *   ...[0, 0, 0, send, 0, 1, 1, 1], // slot 1 of rank 0 goes to slot 1 of rank 1
 * ]);
 * ```
 */
export function compileProgram(
  plan: MigrationPlan,
  options: CompileProgramOptions,
): Program {
  const { stagingCells, ranks, direct } = options;
  const { maxOpsPerGroup = 64, opsPerExpert = 1 } = options;
  const maxLayers = options.maxLayersPerBatch ?? plan.layers;
  for (
    const [name, value] of Object.entries({
      stagingCells,
      maxOpsPerGroup,
      opsPerExpert,
      maxLayersPerBatch: maxLayers,
    })
  ) {
    checkInteger(value, { action: "compile program", name, min: 1 });
  }
  checkFlags(direct, plan);
  const batches = packLayers(plan, { stagingCells, maxLayers, direct });
  const writer = new ProgramWriter(plan, {
    batches,
    direct,
    ranks: localFlags(ranks, plan.ranks),
    transfersPerGroup: Math.max(1, Math.floor(maxOpsPerGroup / opsPerExpert)),
  });
  for (let batch = 0; batch < batches.length / 2; batch++) writer.write(batch);
  return readProgram(writer.words);
}

/**
 * Finds the parts of a program in its words.
 *
 * @param words What {@linkcode compileProgram} has written.
 * @returns The program; it shares the words.
 */
export function readProgram(words: Int32Array<ArrayBuffer>): Program {
  const [, , batchCount, operationCount] = words;
  const table = HEADER_WORDS + batchCount! * BATCH_WORDS;
  return Object.freeze({
    words,
    batches: words.subarray(HEADER_WORDS, table),
    operations: words.subarray(table),
    batchCount: batchCount!,
    operationCount: operationCount!,
  });
}

function checkFlags(direct: Uint8Array | undefined, plan: MigrationPlan): void {
  if (direct === undefined || direct.length === plan.cases.length) return;
  throw new RangeError(
    `Cannot compile program: there are ${direct.length} flags of direct slots for ${plan.cases.length} slots`,
  );
}

// 1 for each rank whose operations are wanted, [ranks].
function localFlags(
  ranks: readonly number[] | undefined,
  count: number,
): Uint8Array {
  const flags = new Uint8Array(count).fill(ranks === undefined ? 1 : 0);
  for (const rank of ranks ?? []) {
    checkInteger(rank, {
      action: "compile program",
      name: "a rank",
      min: 0,
      max: count - 1,
    });
    flags[rank] = 1;
  }
  return flags;
}
