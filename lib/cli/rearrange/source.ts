// SPDX-License-Identifier: Apache-2.0
// Where the weights of a rearrangement come from: a checkpoint, or made up.

import type { ExpertWeights } from "../../native/weights.ts";
import type { Placement } from "../../placement.ts";
import { loadExperts } from "../../engine/checkpoint.ts";
import { openCheckpoint } from "../../weights/checkpoint.ts";
import type { ExpertLayout } from "../../weights/layout.ts";
import { type ModelName, modelShape } from "../../weights/shapes.ts";
import { fromOptions, UsageError } from "../command.ts";
import type { Flags } from "../flags.ts";
import type { MapFile } from "./maps.ts";

/** Seed of synthetic weights; any will do. */
const SEED = 1;

/** Weights for the ranks of a job. */
export interface WeightsSource extends Disposable {
  readonly name: string;
  readonly layers: number;
  readonly experts: number;
  readonly layout: ExpertLayout;
  /** Fills one rank's slots as the placement says. */
  fill(
    weights: ExpertWeights,
    options: { readonly placement: Placement; readonly rank: number },
  ): Promise<void>;
}

/** Opens what `--weights` or `--shape` name; a map file may give a shape its sizes. */
export async function openSource(
  flags: Flags,
  map: MapFile | undefined,
): Promise<WeightsSource> {
  const dir = flags.text("weights");
  if (dir === undefined) {
    return await fromOptions(() => synthetic(flags, map));
  }
  for (const name of ["shape", "layers", "experts", "scale"]) {
    if (flags.has(name)) {
      throw new UsageError(`--${name} cannot be combined with --weights`);
    }
  }
  const checkpoint = await openCheckpoint(dir);
  return {
    name: `${checkpoint.model} checkpoint ${dir}`,
    layers: checkpoint.layers,
    experts: checkpoint.experts,
    layout: checkpoint.layout,
    fill: (weights, options) => loadExperts(checkpoint, weights, options),
    [Symbol.dispose]: () => checkpoint.close(),
  };
}

function synthetic(flags: Flags, map: MapFile | undefined): WeightsSource {
  const layers = flags.number("layers") ?? map?.layers;
  const experts = flags.number("experts") ?? map?.experts;
  const scale = flags.number("scale");
  const name = (flags.text("shape") ?? "tiny") as ModelName;
  const shape = modelShape(name, {
    ...(layers === undefined ? {} : { layers }),
    ...(experts === undefined ? {} : { experts }),
    ...(scale === undefined ? {} : { scale }),
  });
  return {
    name: `synthetic ${name}${scale === undefined ? "" : ` / ${scale}`}`,
    layers: shape.layers,
    experts: shape.experts,
    layout: shape.layout,
    fill: (weights, { placement, rank }) =>
      weights.fill(rowsOf(placement, rank), { seed: SEED }),
    [Symbol.dispose]: () => {},
  };
}

/** One rank's columns of the map: [layers, slots per rank]. */
function rowsOf(placement: Placement, rank: number): Int32Array<ArrayBuffer> {
  const { layers, slots, slotsPerRank, physicalToLogical } = placement;
  const rows = new Int32Array(layers * slotsPerRank);
  for (let layer = 0; layer < layers; layer++) {
    const begin = layer * slots + rank * slotsPerRank;
    rows.set(
      physicalToLogical.subarray(begin, begin + slotsPerRank),
      layer * slotsPerRank,
    );
  }
  return rows;
}
