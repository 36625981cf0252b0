// SPDX-License-Identifier: Apache-2.0

/**
 * Checking and deriving the arrays of a placement.
 *
 * @module
 */
import { checkInteger, INT32_MAX, show } from "./_check.ts";
import type { Placement, PlacementShape } from "./placement.ts";

const ACTION = "create placement";

/**
 * Refuses two placements that differ in layers, ranks, slots or experts.
 *
 * @param from A placement.
 * @param to Another one.
 * @param action What needs them to be alike, for the error.
 * @throws {RangeError} If they differ.
 */
export function checkSameShape(
  from: Placement,
  to: Placement,
  action: string,
): void {
  if (shapeOf(from) !== shapeOf(to)) {
    throw new RangeError(
      `Cannot ${action}: the shapes differ, ${shapeOf(from)} and ${
        shapeOf(to)
      }`,
    );
  }
}

/** Writes the sizes of a placement: alike for placements of the same shape only. */
export function shapeOf(
  { layers, ranks, slotsPerRank, experts }: PlacementShape,
): string {
  return `${layers} layers on ${ranks} ranks of ${slotsPerRank} slots with ${experts} experts`;
}

/** Refuses sizes that no placement has. */
export function checkShape(shape: PlacementShape): void {
  for (const name of ["layers", "ranks", "slotsPerRank", "experts"] as const) {
    checkInteger(shape[name], { action: ACTION, name, min: 1 });
  }
  const { layers, experts } = shape;
  const slots = shape.ranks * shape.slotsPerRank;
  for (const [name, cells] of Object.entries({ slots, experts })) {
    checkInteger(layers * cells, {
      action: ACTION,
      name: `layers * ${name}`,
      min: 1,
    });
  }
  if (slots < experts) {
    throw new RangeError(
      `Cannot ${ACTION}: ${slots} slots cannot hold ${experts} experts`,
    );
  }
}

/** Copies either form of a map into one flat array, and tells its sizes. */
export function flatten(
  map: Int32Array | readonly (readonly number[])[],
  layers: number | undefined,
): { flat: Int32Array; layers: number; slots: number } {
  if (!Array.isArray(map) && !(map instanceof Int32Array)) {
    throw new TypeError(
      `Cannot ${ACTION}: the map must be an Int32Array or an array of layers, got ${
        show(map)
      }`,
    );
  }
  const given = layers ?? (map instanceof Int32Array ? undefined : map.length);
  checkInteger(given, { action: ACTION, name: "layers", min: 1 });
  if (map instanceof Int32Array) {
    if (map.length % given !== 0) {
      throw new RangeError(
        `Cannot ${ACTION}: ${map.length} entries do not divide into ${given} layers`,
      );
    }
    return { flat: map.slice(), layers: given, slots: map.length / given };
  }
  if (map.length !== given) {
    throw new RangeError(
      `Cannot ${ACTION}: the map has ${map.length} layers instead of ${given}`,
    );
  }
  return { flat: flattenRows(map), layers: given, slots: map[0]!.length };
}

function flattenRows(rows: readonly (readonly number[])[]): Int32Array {
  const slots = rows[0]?.length ?? 0;
  checkInteger(rows.length * slots, {
    action: ACTION,
    name: "layers * slots",
    min: 0,
  });
  const flat = new Int32Array(rows.length * slots);
  rows.forEach((row, layer) => {
    if (!Array.isArray(row)) {
      throw new TypeError(
        `Cannot ${ACTION}: layer ${layer} must be an array, got ${show(row)}`,
      );
    }
    if (row.length !== slots) {
      throw new RangeError(
        `Cannot ${ACTION}: layer ${layer} has ${row.length} slots instead of ${slots}`,
      );
    }
    for (let slot = 0; slot < slots; slot++) {
      checkInteger(row[slot], {
        action: ACTION,
        name: `layer ${layer}, slot ${slot}`,
        min: -1,
        max: INT32_MAX - 1,
      });
      flat[layer * slots + slot] = row[slot]!;
    }
  });
  return flat;
}

/** Counts the slots of each expert, [layers, experts], and refuses what is no placement. */
export function countReplicas(
  map: Int32Array,
  placement: Placement,
): Int32Array {
  const { layers, slots, experts } = placement;
  const counts = new Int32Array(layers * experts);
  for (let layer = 0; layer < layers; layer++) {
    for (let slot = 0; slot < slots; slot++) {
      const expert = map[layer * slots + slot]!;
      if (expert < -1 || expert >= experts) {
        throw new RangeError(
          `Cannot ${ACTION}: layer ${layer}, slot ${slot} holds ${expert}, not one of ${experts} experts or -1`,
        );
      }
      if (expert >= 0) counts[layer * experts + expert]!++;
    }
  }
  const lost = counts.indexOf(0);
  if (lost >= 0) {
    const [layer, expert] = [Math.floor(lost / experts), lost % experts];
    throw new RangeError(
      `Cannot ${ACTION}: expert ${expert} has no slot in layer ${layer}`,
    );
  }
  return counts;
}

/** Lists the slots of each expert, [layers, experts, maxReplicas], padded with -1. */
export function listReplicas(placement: Placement): Int32Array {
  const { layers, slots, experts, maxReplicas, physicalToLogical } = placement;
  const lists = new Int32Array(layers * experts * maxReplicas).fill(-1);
  const filled = new Int32Array(layers * experts);
  for (let cell = 0; cell < layers * slots; cell++) {
    const expert = physicalToLogical[cell]!;
    if (expert < 0) continue;
    const row = Math.floor(cell / slots) * experts + expert;
    lists[row * maxReplicas + filled[row]!++] = cell % slots;
  }
  return lists;
}
