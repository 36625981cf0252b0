// SPDX-License-Identifier: Apache-2.0

/**
 * How every slot gets the expert that a new placement puts there.
 *
 * @module
 */
import { checkInteger, show } from "../_check.ts";
import { checkSameShape } from "../_physical_map.ts";
import type { Placement } from "../placement.ts";
import type { Topology } from "../topology.ts";
import { LayerDemands } from "./_demands.ts";
import { createSourceChooser, type SourceChoice } from "./sources.ts";

/**
 * What happens to a slot in a migration.
 *
 * @example Usage
 * ```ts
 * import { MigrationCase, Placement, planMigration, Topology } from "@eplb/eplb";
 * import { assertEquals } from "@std/assert";
 *
 * const { cases } = planMigration(
 *   Placement.from([[0, 1]], { ranks: 2 }),
 *   Placement.from([[0, 1]], { ranks: 2 }),
 *   { topology: Topology.uniform({ ranks: 2, nodes: 1 }) },
 * );
 *
 * assertEquals([...cases], [MigrationCase.unchanged, MigrationCase.unchanged]);
 * ```
 */
export const MigrationCase = {
  /** The slot is empty in the new placement; its bytes stay as they are. */
  empty: 0,
  /** The slot holds the expert already. */
  unchanged: 1,
  /** Another slot of the same rank holds the expert. */
  sameRank: 2,
  /** The expert comes into another slot of the same rank anyway. */
  duplicate: 3,
  /** The expert comes from another rank of the same node. */
  sameNode: 4,
  /** The expert comes from another node. */
  crossNode: 5,
} as const;

/** One of the values of {@linkcode MigrationCase}. */
export type MigrationCase = typeof MigrationCase[keyof typeof MigrationCase];

/** Options of {@linkcode planMigration}. */
export interface PlanMigrationOptions {
  /** Where the ranks are. */
  readonly topology: Topology;
  /**
   * How the ranks that send are chosen.
   *
   * @default {"balanced"}
   */
  readonly sources?: SourceChoice | undefined;
  /**
   * The ranks that may send to others.
   *
   * @default {all ranks}
   */
  readonly live?: readonly number[];
}

/** Number of slots, over all layers, by what happens to them; empty slots are in none. */
export interface MigrationCounts {
  /** Slots that hold their expert already. */
  readonly unchanged: number;
  /** Slots that get it from another slot of their rank. */
  readonly sameRank: number;
  /** Slots that share what comes into another slot of their rank. */
  readonly duplicate: number;
  /** Slots that get it from another rank of their node. */
  readonly sameNode: number;
  /** Slots that get it from another node. */
  readonly crossNode: number;
}

/** Where every slot gets its expert from. It is immutable: do not write into its arrays. */
export interface MigrationPlan {
  /** Where the ranks are. */
  readonly topology: Topology;
  /** How the ranks that send were chosen. */
  readonly sources: SourceChoice;
  /** Number of layers. */
  readonly layers: number;
  /** Number of ranks. */
  readonly ranks: number;
  /** Slots of each rank, per layer. */
  readonly slotsPerRank: number;
  /** Slots of all ranks, per layer. */
  readonly slots: number;
  /** What happens to each slot, [layers, slots]: values of {@linkcode MigrationCase}. */
  readonly cases: Uint8Array;
  /**
   * The slot that each slot gets its expert from, [layers, slots], numbered over all ranks.
   *
   * For a duplicate it is the slot of the same rank that receives the expert. It is -1 where
   * nothing moves.
   */
  readonly source: Int32Array;
  /** Number of slots by what happens to them. */
  readonly counts: MigrationCounts;
}

/**
 * Plans how every slot gets the expert that the new placement puts there.
 *
 * An expert enters a rank at most once per layer, however many slots it gets there. It comes from
 * the rank itself if that holds it, else from a rank of the same node, else from another node. The
 * plan depends on the arguments alone, so all ranks find the same one.
 *
 * @param from The placement as it is.
 * @param to The placement as it is to be, of the same shape.
 * @param options The topology, and how to choose sources.
 * @returns The plan.
 * @throws {RangeError} If the shapes differ, an option is not valid, or an expert is needed that no
 * live rank holds.
 *
 * @example Usage
 * ```ts
 * import { MigrationCase, Placement, planMigration, Topology } from "@eplb/eplb";
 * import { assertEquals } from "@std/assert";
 *
 * const plan = planMigration(
 *   Placement.from([[0, 1, 2, 0]], { ranks: 2 }),
 *   Placement.from([[0, 2, 1, 2]], { ranks: 2 }),
 *   { topology: Topology.uniform({ ranks: 2, nodes: 1 }) },
 * );
 *
 * const { unchanged, sameNode, sameRank } = MigrationCase;
 * assertEquals([...plan.cases], [unchanged, sameNode, sameNode, sameRank]);
 * assertEquals([...plan.source], [-1, 2, 1, 2]);
 * ```
 */
export function planMigration(
  from: Placement,
  to: Placement,
  options: PlanMigrationOptions,
): MigrationPlan {
  const { topology, sources = "balanced" } = options;
  checkSameShape(from, to, "plan migration");
  if (topology.ranks !== from.ranks) {
    throw new RangeError(
      `Cannot plan migration: the topology has ${topology.ranks} ranks, the placements ${from.ranks}`,
    );
  }
  const planner = new LayerPlanner(from, to, {
    topology,
    live: liveFlags(options.live, topology),
  });
  const chooser = createSourceChooser(sources, planner.demands);
  for (let layer = 0; layer < from.layers; layer++) {
    planner.readHolders(layer);
    planner.classify(layer);
    chooser.choose();
    planner.assign(layer);
  }
  return Object.freeze({
    topology,
    sources,
    layers: from.layers,
    ranks: from.ranks,
    slotsPerRank: from.slotsPerRank,
    slots: from.slots,
    cases: planner.cases,
    source: planner.source,
    counts: countCases(planner.cases),
  });
}

// Finds the case of every slot, and what ranks need from each other, layer by layer.
//
// Two tables are never cleared between layers: they hold 1 + the index [layers, slots] of a slot, so
// that an entry tells whether it is of this layer.
class LayerPlanner {
  readonly cases: Uint8Array;
  readonly source: Int32Array;
  readonly demands: LayerDemands;
  readonly #from: Placement;
  readonly #to: Placement;
  readonly #live: Uint8Array;
  readonly #rankOf: Int32Array;
  // The lowest slot in which a rank holds an expert, [ranks, experts].
  readonly #resident: Int32Array;
  // The slot into which the expert came last, [experts].
  readonly #arrival: Int32Array;

  constructor(
    from: Placement,
    to: Placement,
    options: { readonly topology: Topology; readonly live: Uint8Array },
  ) {
    const { layers, ranks, slots, slotsPerRank, experts } = from;
    this.#from = from;
    this.#to = to;
    this.#live = options.live;
    this.cases = new Uint8Array(layers * slots);
    this.source = new Int32Array(layers * slots).fill(-1);
    this.demands = new LayerDemands(options.topology, { experts, slots });
    this.#rankOf = Int32Array.from(
      { length: slots },
      (_, slot) => Math.floor(slot / slotsPerRank),
    );
    this.#resident = new Int32Array(ranks * experts);
    this.#arrival = new Int32Array(experts);
  }

  readHolders(layer: number): void {
    const { physicalToLogical, ranks, slots, experts } = this.#from;
    const { holders, holderCount } = this.demands;
    const [resident, rankOf, live] = [this.#resident, this.#rankOf, this.#live];
    const base = layer * slots;
    holderCount.fill(0);
    for (let slot = 0; slot < slots; slot++) {
      const expert = physicalToLogical[base + slot]!;
      if (expert < 0) continue;
      const rank = rankOf[slot]!;
      const entry = rank * experts + expert;
      if (resident[entry]! > base) continue;
      resident[entry] = base + slot + 1;
      if (live[rank]) holders[expert * ranks + holderCount[expert]!++] = rank;
    }
  }

  classify(layer: number): void {
    const { ranks, slots, slotsPerRank, experts } = this.#from;
    const [old, now] = [
      this.#from.physicalToLogical,
      this.#to.physicalToLogical,
    ];
    const [resident, arrival, cases, source] = [
      this.#resident,
      this.#arrival,
      this.cases,
      this.source,
    ];
    const base = layer * slots;
    this.demands.count = 0;
    for (let rank = 0; rank < ranks; rank++) {
      const first = base + rank * slotsPerRank;
      for (let cell = first; cell < first + slotsPerRank; cell++) {
        const expert = now[cell]!;
        if (expert < 0) continue;
        if (old[cell] === expert) {
          cases[cell] = MigrationCase.unchanged;
        } else if (resident[rank * experts + expert]! > base) {
          cases[cell] = MigrationCase.sameRank;
          source[cell] = resident[rank * experts + expert]! - 1 - base;
        } else if (arrival[expert]! > first) {
          cases[cell] = MigrationCase.duplicate;
          source[cell] = arrival[expert]! - 1 - base;
        } else {
          arrival[expert] = cell + 1;
          this.#demand(cell - base, { layer, rank, expert });
        }
      }
    }
  }

  #demand(
    slot: number,
    need: { layer: number; rank: number; expert: number },
  ): void {
    const { demands } = this;
    const { nodeOf, ranks } = demands.topology;
    const node = nodeOf[need.rank]!;
    const row = need.expert * ranks;
    const end = row + demands.holderCount[need.expert]!;
    if (row === end) {
      throw new RangeError(
        `Cannot plan migration: no live rank holds expert ${need.expert} of layer ${need.layer}, which rank ${need.rank} needs`,
      );
    }
    let k = row;
    while (k < end && nodeOf[demands.holders[k]!] !== node) k++;
    const i = demands.count++;
    demands.expert[i] = need.expert;
    demands.node[i] = k < end ? node : -1;
    demands.slot[i] = slot;
  }

  assign(layer: number): void {
    const { count, expert, node, slot, source } = this.demands;
    const { slots, experts } = this.#from;
    const base = layer * slots;
    for (let i = 0; i < count; i++) {
      const cell = base + slot[i]!;
      this.cases[cell] = node[i]! < 0
        ? MigrationCase.crossNode
        : MigrationCase.sameNode;
      this.source[cell] = this.#resident[source[i]! * experts + expert[i]!]! -
        1 - base;
    }
  }
}

// 1 for each rank that may send, [ranks].
function liveFlags(
  live: readonly number[] | undefined,
  topology: Topology,
): Uint8Array {
  const flags = new Uint8Array(topology.ranks).fill(live === undefined ? 1 : 0);
  if (live !== undefined && !Array.isArray(live)) {
    throw new TypeError(
      `Cannot plan migration: live must be an array of ranks, got ${
        show(live)
      }`,
    );
  }
  for (const rank of live ?? []) {
    const max = topology.ranks - 1;
    checkInteger(rank, {
      action: "plan migration",
      name: "a live rank",
      min: 0,
      max,
    });
    flags[rank] = 1;
  }
  return flags;
}

/** Counts slots by what happens to them. */
export function countCases(cases: Uint8Array): MigrationCounts {
  const counts = new Int32Array(6);
  for (let cell = 0; cell < cases.length; cell++) counts[cases[cell]!]!++;
  return Object.freeze({
    unchanged: counts[MigrationCase.unchanged]!,
    sameRank: counts[MigrationCase.sameRank]!,
    duplicate: counts[MigrationCase.duplicate]!,
    sameNode: counts[MigrationCase.sameNode]!,
    crossNode: counts[MigrationCase.crossNode]!,
  });
}

/** 1 for each layer in which something moves, [layers]. */
export function movingLayers(
  { layers, slots, cases }: MigrationPlan,
): Uint8Array {
  const moving = new Uint8Array(layers);
  for (let layer = 0; layer < layers; layer++) {
    const row = cases.subarray(layer * slots, (layer + 1) * slots);
    if (row.some((kind) => kind >= MigrationCase.sameRank)) moving[layer] = 1;
  }
  return moving;
}
