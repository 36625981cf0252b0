// SPDX-License-Identifier: Apache-2.0
// The maps of a rearrangement: where experts are, and where they should go.

import { Placement, type PlacementShape } from "../../placement.ts";
import { deepseekPolicy } from "../../policies/deepseek.ts";
import type { Topology } from "../../topology.ts";
import { UsageError } from "../command.ts";
import { readJSON } from "./files.ts";
import { seedOf } from "./seed.ts";

/** A map as the command line names it, not yet fitted to a job. */
export type MapChoice =
  | { readonly kind: "contiguous" }
  | { readonly kind: "random"; readonly seed: number }
  | { readonly kind: "deepseek" }
  | MapFile;

/** A file with a map, and the sizes that it implies. */
export interface MapFile {
  readonly kind: "file";
  readonly path: string;
  /** The parsed JSON. */
  readonly value: unknown;
  /** Number of rows. */
  readonly layers: number;
  /** Slots of all ranks, per layer. */
  readonly slots: number;
  /** One more than the highest id. */
  readonly experts: number;
}

/** Reads what `--from` or `--to` says; a file is opened. */
export async function readMap(text: string): Promise<MapChoice> {
  if (text === "contiguous" || text === "deepseek") return { kind: text };
  const seed = seedOf(text, "random");
  if (seed !== undefined) return { kind: "random", seed };
  return openMap(text, await readJSON(text));
}

/** Only a look at the sizes: whether the map is valid is for `Placement` to say. */
function openMap(path: string, value: unknown): MapFile {
  const rows = (value as { physical_to_logical_map?: unknown } | null)
    ?.physical_to_logical_map;
  const isMap = Array.isArray(rows) && rows.length > 0 &&
    rows.every(Array.isArray);
  if (!isMap) {
    throw new TypeError(
      `Cannot use map "${path}": "physical_to_logical_map" must be an array of layers`,
    );
  }
  const highest = rows.flat().reduce<number>(
    (most, id) => Number.isInteger(id) && id > most ? id : most,
    -1,
  );
  if (highest === -1) {
    throw new RangeError(`Cannot use map "${path}": it holds no expert`);
  }
  const [layers, slots, experts] = [rows.length, rows[0]!.length, highest + 1];
  return { kind: "file", path, value, layers, slots, experts };
}

/** Makes the placement that a choice stands for, in the sizes of a job. */
export function placementOf(
  choice: MapChoice,
  options: {
    readonly shape: PlacementShape;
    readonly topology: Topology;
    readonly load: Float64Array | undefined;
    /** Added to the seed, so that repeated rearrangements differ. */
    readonly repetition?: number;
  },
): Placement {
  const { shape, topology, load, repetition = 0 } = options;
  switch (choice.kind) {
    case "contiguous":
      return Placement.contiguous(shape);
    case "random":
      return Placement.random({ ...shape, seed: choice.seed + repetition });
    case "deepseek":
      if (load === undefined) {
        throw new UsageError("The map deepseek needs a load: give --load");
      }
      return deepseekPolicy({ ...shape, topology, load }).placement;
    case "file":
      return fitting(choice, shape);
  }
}

function fitting(file: MapFile, shape: PlacementShape): Placement {
  const { ranks, experts, layers, slotsPerRank } = shape;
  const refuse = (state: string, cause?: unknown): never => {
    throw new RangeError(`Cannot use map "${file.path}": ${state}`, { cause });
  };
  let placement: Placement;
  try {
    placement = Placement.fromJSON(file.value, { ranks, experts });
  } catch (cause) {
    const { message } = cause as Error;
    // "Cannot create placement: " would only say the same again.
    return refuse(message.slice(message.indexOf(": ") + 2), cause);
  }
  if (placement.layers !== layers) {
    refuse(`it has ${placement.layers} layers, the weights have ${layers}`);
  }
  if (placement.slotsPerRank !== slotsPerRank) {
    refuse(
      `it has ${placement.slotsPerRank} slots per rank, the job has ${slotsPerRank}`,
    );
  }
  return placement;
}
