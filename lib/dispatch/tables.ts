// SPDX-License-Identifier: Apache-2.0

/**
 * Tables by which a dispatcher chooses a replica for each token.
 *
 * @module
 */
import { checkInteger, show } from "../_check.ts";
import type { Placement } from "../placement.ts";
import type { Topology } from "../topology.ts";
import { LayerReplicas } from "./_layer_replicas.ts";
import { Selection, type Selector } from "./_selection.ts";
import { slotDistances, type Standpoint } from "./_standpoint.ts";
import { StaticSelector } from "./_static_selector.ts";
import { WeightedSelector } from "./_weighted_selector.ts";

/** Which of an expert's replicas get tokens, and how many. */
export type ReplicaChoice = "shares" | "uniform" | "static";

/** Options of {@linkcode buildDispatchTables}. */
export interface DispatchTablesOptions {
  /**
   * Share of its expert's tokens that each slot takes, [layers, slots], row major, of all layers of
   * the placement; only the proportions among an expert's slots count.
   *
   * @default {equal shares}
   */
  readonly shares?: Float64Array;
  /**
   * Which replicas get tokens:
   *
   * | choice | replicas of an expert |
   * |---|---|
   * | `"shares"` | each by its share; those of share 0 get none, unless all have 0: then all are alike |
   * | `"uniform"` | all alike (SGLang's dynamic dispatch) |
   * | `"static"` | one for each rank, on the rank itself or else on its node if there is one; ranks without take turns (SGLang's static dispatch); needs `rank` and `topology` |
   *
   * @default {"shares"}
   */
  readonly replicas?: ReplicaChoice;
  /**
   * Whether only the nearest replicas get tokens: those on this rank, else those on its node, else
   * all; needs `rank` and `topology`.
   *
   * @default {false}
   */
  readonly nearest?: boolean;
  /** The rank whose tokens are dispatched. */
  readonly rank?: number;
  /** The nodes of the placement's ranks. */
  readonly topology?: Topology;
  /**
   * Replicas that the tables have room for, per expert.
   *
   * @default {what any placement of as many slots and experts needs: slots - experts + 1}
   */
  readonly maxReplicas?: number;
  /**
   * The first layer in the tables.
   *
   * @default {0}
   */
  readonly firstLayer?: number;
  /**
   * Layers in the tables.
   *
   * @default {all from `firstLayer` on}
   */
  readonly layers?: number;
}

/**
 * Tables of one rank: where the tokens of each logical expert go.
 *
 * A token with hash `h`, an integer from 0 to 2³² − 1, goes to the first replica listed whose
 * threshold is above `h`, and to the last one listed if there is none.
 */
export interface DispatchTables {
  /** The first layer that the tables are for. */
  readonly firstLayer: number;
  /** Number of layers. */
  readonly layers: number;
  /** Number of logical experts. */
  readonly experts: number;
  /** Replicas that there is room for, per expert. */
  readonly maxReplicas: number;
  /** Slots that may get the expert's tokens, [layers, experts, maxReplicas], padded with -1. */
  readonly logicalToPhysical: Int32Array;
  /** Slots listed for each expert, [layers, experts]; at least 1. */
  readonly replicaCount: Int32Array;
  /**
   * Running sum of the shares × 2³², [layers, experts, maxReplicas], ascending; 2³² − 1 from the last
   * slot listed on.
   */
  readonly thresholds: Uint32Array;
}

/**
 * Builds the tables by which one rank dispatches its tokens to replicas.
 *
 * The same input gives the same tables on every machine.
 *
 * @param placement Where the experts are.
 * @param options Shares, how replicas are chosen, and for which layers.
 * @returns The tables, ready for `Dispatcher.update`.
 * @throws {TypeError} If `rank` or `topology` is missing where it is needed.
 * @throws {RangeError} If shares, layers, rank or topology do not fit the placement, or an expert
 * has more replicas to choose from than `maxReplicas`.
 *
 * @example A quarter of the tokens stays on the first replica
 * ```ts
 * import { buildDispatchTables, Placement } from "@eplb/eplb";
 * import { assertEquals } from "@std/assert";
 *
 * // Expert 0 is in slots 0 and 3.
 * const placement = Placement.from([[0, 1, 2, 0]], { ranks: 2 });
 * const shares = new Float64Array([0.25, 1, 1, 0.75]);
 * const tables = buildDispatchTables(placement, { shares });
 *
 * assertEquals([...tables.replicaCount], [2, 1, 1]);
 * assertEquals([...tables.logicalToPhysical], [0, 3, 1, -1, 2, -1]);
 * assertEquals(tables.thresholds[0], 2 ** 30);
 * ```
 */
export function buildDispatchTables(
  placement: Placement,
  options: DispatchTablesOptions = {},
): DispatchTables {
  const { firstLayer, layers } = layersOf(placement, options);
  const tables = emptyTables(placement, { ...options, firstLayer, layers });
  const { shares } = options;
  if (shares !== undefined) {
    checkShares(placement, { shares, firstLayer, layers });
  }
  const replicas = new LayerReplicas(placement);
  const selector = selectorOf(placement, { ...options, listed: replicas });
  const selection = new Selection(placement.slots);
  for (let cell = 0; cell < layers * placement.experts; cell++) {
    const expert = cell % placement.experts;
    if (expert === 0) replicas.list(firstLayer + cell / placement.experts);
    selection.count = 0;
    selector.select(selection, expert);
    writeRow(tables, cell, selection);
  }
  return tables;
}

const ACTION = "build dispatch tables";
const LAST_THRESHOLD = 2 ** 32 - 1;
const LARGEST_SHARE = 1 + 1e-9; // sums of shares may be rounded up

/** Which layers, within the placement's. */
function layersOf(
  placement: Placement,
  options: DispatchTablesOptions,
): { firstLayer: number; layers: number } {
  const { firstLayer = 0 } = options;
  checkInteger(firstLayer, {
    action: ACTION,
    name: "firstLayer",
    min: 0,
    max: placement.layers - 1,
  });
  const { layers = placement.layers - firstLayer } = options;
  checkInteger(layers, {
    action: ACTION,
    name: "layers",
    min: 1,
    max: placement.layers - firstLayer,
  });
  return { firstLayer, layers };
}

function emptyTables(
  { slots, experts }: Placement,
  options: {
    readonly firstLayer: number;
    readonly layers: number;
    readonly maxReplicas?: number;
  },
): DispatchTables {
  const { firstLayer, layers, maxReplicas = slots - experts + 1 } = options;
  checkInteger(maxReplicas, { action: ACTION, name: "maxReplicas", min: 1 });
  const places = layers * experts * maxReplicas;
  checkInteger(places, {
    action: ACTION,
    name: "layers * experts * maxReplicas",
    min: 1,
  });
  return {
    firstLayer,
    layers,
    experts,
    maxReplicas,
    logicalToPhysical: new Int32Array(places).fill(-1),
    replicaCount: new Int32Array(layers * experts),
    thresholds: new Uint32Array(places).fill(LAST_THRESHOLD),
  };
}

function checkShares(
  { layers: all, slots, physicalToLogical }: Placement,
  options: {
    readonly shares: Float64Array;
    readonly firstLayer: number;
    readonly layers: number;
  },
): void {
  const { shares, firstLayer, layers } = options;
  if (shares.length !== all * slots) {
    throw new RangeError(
      `Cannot ${ACTION}: ${shares.length} shares are given for ${all} layers of ${slots} slots`,
    );
  }
  const end = (firstLayer + layers) * slots;
  for (let cell = firstLayer * slots; cell < end; cell++) {
    const share = shares[cell]!;
    if (physicalToLogical[cell]! < 0) continue;
    if (share >= 0 && share <= LARGEST_SHARE) continue;
    throw new RangeError(
      `Cannot ${ACTION}: layer ${Math.floor(cell / slots)}, slot ${
        cell % slots
      } has share ${share}, not one from 0 to 1`,
    );
  }
}

function selectorOf(
  placement: Placement,
  options: DispatchTablesOptions & { readonly listed: LayerReplicas },
): Selector {
  const { replicas = "shares", nearest = false, listed } = options;
  if (replicas === "static") {
    return new StaticSelector(listed, standpointOf(placement, options));
  }
  if (replicas !== "shares" && replicas !== "uniform") {
    throw new TypeError(
      `Cannot ${ACTION}: "replicas" must be "shares", "uniform" or "static", got ${
        show(replicas)
      }`,
    );
  }
  return new WeightedSelector(listed, {
    shares: replicas === "shares" ? options.shares : undefined,
    distances: nearest
      ? slotDistances(standpointOf(placement, options))
      : undefined,
  });
}

function standpointOf(
  { ranks, slotsPerRank }: Placement,
  { rank, topology }: DispatchTablesOptions,
): Standpoint {
  if (rank === undefined || topology === undefined) {
    throw new TypeError(
      `Cannot ${ACTION}: "nearest" and "static" need a rank and a topology`,
    );
  }
  if (topology.ranks !== ranks) {
    throw new RangeError(
      `Cannot ${ACTION}: the topology has ${topology.ranks} ranks, the placement ${ranks}`,
    );
  }
  checkInteger(rank, { action: ACTION, name: "rank", min: 0, max: ranks - 1 });
  return { rank, topology, slotsPerRank };
}

/** Writes what was selected for one expert into its row of the tables. */
function writeRow(
  tables: DispatchTables,
  cell: number,
  selection: Selection,
): void {
  const { experts, maxReplicas } = tables;
  const { count, slots } = selection;
  if (count > maxReplicas) {
    const layer = tables.firstLayer + Math.floor(cell / experts);
    throw new RangeError(
      `Cannot ${ACTION}: layer ${layer}, expert ${
        cell % experts
      } has ${count} replicas to choose from, more than maxReplicas ${maxReplicas}`,
    );
  }
  const at = cell * maxReplicas;
  for (let i = 0; i < count; i++) tables.logicalToPhysical[at + i] = slots[i]!;
  tables.replicaCount[cell] = count;
  selection.writeThresholds(tables.thresholds, at);
}
