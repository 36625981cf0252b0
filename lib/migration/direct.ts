// SPDX-License-Identifier: Apache-2.0

/**
 * Which slots can be written without staging.
 *
 * @module
 */
import { Placement } from "../placement.ts";
import { MigrationCase, type MigrationPlan } from "./plan.ts";

/**
 * Finds the slots that a plan can write while other layers and ranks are still being read.
 *
 * An expert that arrives in such a slot needs no staging memory and no second copy. Nobody reads the
 * slot in this migration, and the expert that it holds today lives on in another slot, so that
 * nothing is lost if the migration fails half-way: the slot is empty then, see
 * {@linkcode drained}.
 *
 * @param plan The plan.
 * @param from The placement that the plan starts from.
 * @returns 1 for each such slot, [layers, slots].
 *
 * @example The redundant copies are sinks
 * ```ts
 * import { directSlots, Placement, planMigration, Topology } from "@eplb/eplb";
 * import { assertEquals } from "@std/assert";
 *
 * const from = Placement.from([[0, 1, 0, 2, 3, 1]], { ranks: 2 });
 * const to = Placement.from([[0, 1, 3, 2, 3, 0]], { ranks: 2 });
 * const plan = planMigration(from, to, {
 *   topology: Topology.uniform({ ranks: 2, nodes: 1 }),
 * });
 * assertEquals([...directSlots(plan, from)], [0, 0, 1, 0, 0, 1]);
 * ```
 */
export function directSlots(plan: MigrationPlan, from: Placement): Uint8Array {
  const direct = new Uint8Array(plan.layers * plan.slots);
  const left = new Int32Array(from.experts);
  for (let layer = 0; layer < plan.layers; layer++) {
    const base = layer * plan.slots;
    const needed = neededSlots(plan, base);
    left.set(
      from.logicalReplicaCount.subarray(
        layer * from.experts,
        (layer + 1) * from.experts,
      ),
    );
    for (let slot = 0; slot < plan.slots; slot++) {
      if (!arrives(plan.cases[base + slot]!) || needed[slot]) continue;
      const expert = from.physicalToLogical[base + slot]!;
      // The last copy of an expert waits until its layer is staged everywhere.
      if (expert >= 0 && --left[expert]! === 0) left[expert] = 1;
      else direct[base + slot] = 1;
    }
  }
  return direct;
}

/**
 * Empties the slots that are about to be written directly.
 *
 * It is what a model must serve with while the migration runs, and what is true if it fails.
 *
 * @param from The placement.
 * @param direct 1 for each slot that becomes empty, [layers, slots].
 * @returns The placement without them, in which every expert has a slot left; `from` itself if they
 * are all empty already.
 * @throws {RangeError} If an expert would have no slot left, or the sizes differ.
 *
 * @example
 * ```ts
 * import { drained, Placement } from "@eplb/eplb";
 * import { assertEquals } from "@std/assert";
 *
 * const from = Placement.from([[0, 1, 0]], { ranks: 1 });
 * const without = drained(from, Uint8Array.of(0, 0, 1));
 * assertEquals([...without.physicalToLogical], [0, 1, -1]);
 * ```
 */
export function drained(from: Placement, direct: Uint8Array): Placement {
  if (direct.length !== from.physicalToLogical.length) {
    throw new RangeError(
      `Cannot drain slots: there are ${direct.length} flags for ${from.physicalToLogical.length} slots`,
    );
  }
  const { physicalToLogical } = from;
  if (!direct.some((flag, cell) => flag && physicalToLogical[cell]! >= 0)) {
    return from;
  }
  const map = physicalToLogical.map((expert, cell) =>
    direct[cell] ? -1 : expert
  );
  return Placement.from(map, from);
}

/** Whether an expert is copied into the slot, other than as a second copy of an arrival. */
function arrives(kind: number): boolean {
  return kind === MigrationCase.sameRank || kind >= MigrationCase.sameNode;
}

/** 1 for each slot of a layer that is read, or shares an arrival with others, [slots]. */
function neededSlots(plan: MigrationPlan, base: number): Uint8Array {
  const { slots, cases, source } = plan;
  const needed = new Uint8Array(slots);
  // 1 + the first slot that each slot is copied to inside its rank; the others share its bytes.
  const copied = new Int32Array(slots);
  for (let slot = 0; slot < slots; slot++) {
    const kind = cases[base + slot]!;
    if (kind < MigrationCase.sameRank) continue;
    const from = source[base + slot]!;
    needed[from] = 1;
    if (kind !== MigrationCase.sameRank) continue;
    if (copied[from] === 0) copied[from] = slot + 1;
    else needed[copied[from]! - 1] = needed[slot] = 1;
  }
  return needed;
}
