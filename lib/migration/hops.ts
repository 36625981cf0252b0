// SPDX-License-Identifier: Apache-2.0

/**
 * A rearrangement on a way of several hops.
 *
 * @module
 */
import { checkInteger } from "../_check.ts";
import { checkSameShape } from "../_physical_map.ts";
import { Placement } from "../placement.ts";
import type { Topology } from "../topology.ts";
import { HopSequence } from "./_hop_sequence.ts";

/** Options of {@linkcode planHops}. */
export interface PlanHopsOptions {
  /** Where the ranks are. */
  readonly topology: Topology;
  /** Experts that a rank can stage at once, at least 1. */
  readonly stagingCells: number;
  /**
   * Whether an expert enters a node on one rank only, and goes on to the node's other ranks in a
   * later hop.
   *
   * @default {true}
   */
  readonly relay?: boolean;
}

/**
 * Finds the hops in which a rearrangement crosses nodes least, and fits into the staging memory.
 *
 * Each hop is a rearrangement of its own, between two placements in which every expert has a slot. It
 * brings at most `stagingCells` experts into each rank in each layer, and an expert that a node does
 * not hold into one rank of that node. An expert arrives where it is to stay as early as it can;
 * it only makes a detour where experts trade places in a circle that is too wide for the staging
 * cells. Layers do not depend on each other: those that are done stay as they are.
 *
 * Slots that are to be empty keep what they hold until their layer's last hop. The hops depend on the
 * arguments alone, so all ranks find the same ones.
 *
 * @param from The placement as it is.
 * @param to The placement as it is to be, of the same shape.
 * @param options The topology and the staging memory.
 * @returns The placement after each hop; the last one is `to` itself, and the only one where one
 * hop does.
 * @throws {RangeError} If the shapes differ, an option is not valid, or experts trade places inside
 * the only rank and there is neither a second cell nor a redundant or empty slot.
 *
 * @example One expert enters a node once
 * ```ts
 * import { Placement, planHops, Topology } from "@eplb/eplb";
 * import { assert, assertEquals } from "@std/assert";
 *
 * // Two nodes of three ranks. The first and the last rank of the second node are to get expert 0.
 * const from = Placement.from([[0, 1, 2, 2, 3, 3]], { ranks: 6 });
 * const to = Placement.from([[0, 1, 2, 0, 3, 0]], { ranks: 6 });
 * const topology = Topology.fromNodes([0, 0, 0, 1, 1, 1]);
 *
 * const hops = planHops(from, to, { topology, stagingCells: 1 });
 * assertEquals(hops.map((hop) => [...hop.physicalToLogical]), [
 *   [0, 1, 2, 0, 3, 3],
 *   [0, 1, 2, 0, 3, 0],
 * ]);
 * assert(hops[1] === to);
 * ```
 *
 * @example One staging cell
 * ```ts
 * import { Placement, planHops, Topology } from "@eplb/eplb";
 * import { assertEquals } from "@std/assert";
 *
 * // Each rank gets two experts, and can stage one.
 * const from = Placement.from([[0, 1, 2, 3]], { ranks: 2 });
 * const to = Placement.from([[2, 3, 0, 1]], { ranks: 2 });
 * const topology = Topology.uniform({ ranks: 2, nodes: 1 });
 *
 * const hops = planHops(from, to, { topology, stagingCells: 1 });
 * assertEquals(hops.map((hop) => [...hop.physicalToLogical]), [
 *   [2, 1, 0, 3],
 *   [2, 3, 0, 1],
 * ]);
 * ```
 */
export function planHops(
  from: Placement,
  to: Placement,
  options: PlanHopsOptions,
): readonly Placement[] {
  const { topology, stagingCells: cells, relay = true } = options;
  checkSameShape(from, to, "plan hops");
  if (topology.ranks !== from.ranks) {
    throw new RangeError(
      `Cannot plan hops: the topology has ${topology.ranks} ranks, the placements ${from.ranks}`,
    );
  }
  checkInteger(cells, { action: "plan hops", name: "stagingCells", min: 1 });
  if (cells === 1) checkRoom(from, to);
  const sequence = new HopSequence(from, { topology, cells, relay });
  const layers = Array.from(
    { length: from.layers },
    (_, layer) => sequence.of(rowOf(from, layer), rowOf(to, layer)),
  );
  const between = layers.reduce((most, rows) => Math.max(most, rows.length), 0);
  const hops = Array.from({ length: between }, (_, hop) => {
    const map = to.physicalToLogical.slice();
    layers.forEach((rows, layer) => {
      if (hop < rows.length) map.set(rows[hop]!, layer * from.slots);
    });
    return Placement.from(map, from);
  });
  return [...hops, to];
}

function rowOf(
  { physicalToLogical, slots }: Placement,
  layer: number,
): Int32Array {
  return physicalToLogical.subarray(layer * slots, (layer + 1) * slots);
}

// One rank with one cell can only copy, and without a second copy or an empty slot it must not.
function checkRoom(from: Placement, to: Placement): void {
  if (from.ranks > 1 || from.slots > from.experts) return;
  const moved = from.physicalToLogical.findIndex((expert, cell) =>
    expert !== to.physicalToLogical[cell]
  );
  if (moved < 0) return;
  throw new RangeError(
    `Cannot plan hops: experts of layer ${
      Math.floor(moved / from.slots)
    } trade places on the only rank, which has one staging cell and no redundant or empty slot`,
  );
}
