// SPDX-License-Identifier: Apache-2.0

/**
 * Which logical expert lives in which slot.
 *
 * @module
 */
import { checkInteger, show } from "./_check.ts";
import {
  checkSameShape,
  checkShape,
  countReplicas,
  flatten,
  listReplicas,
  shapeOf,
} from "./_physical_map.ts";
import { SeededRandom } from "./random.ts";

/** Options of {@linkcode Placement.from}. */
export interface PlacementFromOptions {
  /** Number of ranks; divides the number of slots. */
  readonly ranks: number;
  /**
   * Number of layers; needed if the map is one flat array.
   *
   * @default {the number of rows}
   */
  readonly layers?: number;
  /**
   * Number of logical experts.
   *
   * @default {one more than the highest id in the map}
   */
  readonly experts?: number;
}

/** Options of {@linkcode Placement.fromJSON}. */
export interface PlacementFromJSONOptions {
  /** Number of ranks; divides the number of slots. */
  readonly ranks: number;
  /**
   * Number of logical experts.
   *
   * @default {one more than the highest id in the map}
   */
  readonly experts?: number;
}

/** Sizes of a placement that is made from nothing. */
export interface PlacementShape {
  /** Number of layers. */
  readonly layers: number;
  /** Number of ranks. */
  readonly ranks: number;
  /** Slots of each rank, per layer. */
  readonly slotsPerRank: number;
  /** Number of logical experts, at most `ranks * slotsPerRank`. */
  readonly experts: number;
}

/** Options of {@linkcode Placement.random}. */
export interface RandomPlacementOptions extends PlacementShape {
  /** An integer from 0 to 2³² − 1; the same seed gives the same placement. */
  readonly seed: number;
}

/** A placement as SGLang writes it. */
export interface PlacementJSON {
  /** Logical expert of each slot, [layers][slots]; -1 is an empty slot. */
  readonly physical_to_logical_map: number[][];
}

/**
 * The logical expert in each slot of each layer.
 *
 * Slots are numbered over all ranks: slot `s` is on rank `floor(s / slotsPerRank)`. A slot may be
 * empty, but each expert has at least one slot in each layer. A placement is immutable: do not
 * write into its arrays.
 *
 * @example Usage
 * ```ts
 * import { Placement } from "@eplb/eplb";
 * import { assertEquals } from "@std/assert";
 *
 * // One layer, two ranks of three slots, four experts, one empty slot.
 * const placement = Placement.from([[0, 1, 2, 3, 0, -1]], { ranks: 2 });
 *
 * assertEquals(placement.experts, 4);
 * assertEquals([...placement.logicalReplicaCount], [2, 1, 1, 1]);
 * assertEquals([...placement.logicalToPhysical], [0, 4, 1, -1, 2, -1, 3, -1]);
 * ```
 */
export class Placement {
  /** Number of layers. */
  readonly layers: number;
  /** Number of ranks. */
  readonly ranks: number;
  /** Slots of each rank, per layer. */
  readonly slotsPerRank: number;
  /** Slots of all ranks, per layer. */
  readonly slots: number;
  /** Number of logical experts. */
  readonly experts: number;
  /** Logical expert of each slot, [layers, slots]; -1 is an empty slot. */
  readonly physicalToLogical: Int32Array;
  /** Number of slots that hold each expert, [layers, experts]; at least 1. */
  readonly logicalReplicaCount: Int32Array;
  /** The most slots that hold one expert in one layer. */
  readonly maxReplicas: number;
  #logicalToPhysical: Int32Array | undefined;

  // Takes the map over, so callers hand in a copy.
  private constructor(
    map: Int32Array,
    shape: PlacementShape,
    replicaCount?: Int32Array,
  ) {
    this.layers = shape.layers;
    this.ranks = shape.ranks;
    this.slotsPerRank = shape.slotsPerRank;
    this.slots = shape.ranks * shape.slotsPerRank;
    this.experts = shape.experts;
    this.physicalToLogical = map;
    this.logicalReplicaCount = replicaCount ?? countReplicas(map, this);
    let most = 0;
    for (const count of this.logicalReplicaCount) {
      if (count > most) most = count;
    }
    this.maxReplicas = most;
    checkInteger(this.layers * this.experts * this.maxReplicas, {
      action: "create placement",
      name: "layers * experts * most replicas of one expert",
      min: 1,
    });
    Object.freeze(this);
  }

  /**
   * Slots that hold each expert, [layers, experts, maxReplicas], ascending and padded with -1.
   *
   * It is computed when first asked for.
   */
  get logicalToPhysical(): Int32Array {
    return this.#logicalToPhysical ??= listReplicas(this);
  }

  /**
   * Creates a placement from a physical to logical map.
   *
   * @param map Logical expert of each slot, [layers, slots] flat or as rows; -1 is an empty slot.
   * The map is copied.
   * @param options Number of ranks, and what the map alone does not tell.
   * @returns The placement.
   * @throws {TypeError} If the map is neither an Int32Array nor an array of arrays.
   * @throws {RangeError} If the sizes do not fit together, an entry is not an expert id, or an
   * expert has no slot in a layer.
   *
   * @example Usage
   * ```ts
   * import { Placement } from "@eplb/eplb";
   * import { assertEquals } from "@std/assert";
   *
   * const placement = Placement.from(Int32Array.of(0, 1, 1, 0), { layers: 2, ranks: 1 });
   *
   * assertEquals(placement.slotsPerRank, 2);
   * ```
   */
  static from(
    map: Int32Array | readonly (readonly number[])[],
    options: PlacementFromOptions,
  ): Placement {
    const { ranks } = options;
    checkInteger(ranks, { action: "create placement", name: "ranks", min: 1 });
    const { flat, layers, slots } = flatten(map, options.layers);
    if (slots % ranks !== 0) {
      throw new RangeError(
        `Cannot create placement: ${slots} slots do not divide among ${ranks} ranks`,
      );
    }
    const experts = options.experts ??
      flat.reduce((a, b) => Math.max(a, b), -1) + 1;
    const shape = { layers, ranks, slotsPerRank: slots / ranks, experts };
    checkShape(shape);
    return new Placement(flat, shape);
  }

  /**
   * Creates the placement that engines start from.
   *
   * Slot `i` holds expert `i`, and redundant slot `i` holds expert `i % experts`.
   *
   * @param shape Sizes of the placement.
   * @returns The placement, the same in each layer.
   * @throws {RangeError} If a size is below 1, or there are fewer slots than experts.
   *
   * @example Usage
   * ```ts
   * import { Placement } from "@eplb/eplb";
   * import { assertEquals } from "@std/assert";
   *
   * const placement = Placement.contiguous({ layers: 1, ranks: 2, slotsPerRank: 3, experts: 4 });
   *
   * assertEquals([...placement.physicalToLogical], [0, 1, 2, 3, 0, 1]);
   * ```
   */
  static contiguous(shape: PlacementShape): Placement {
    checkShape(shape);
    const slots = shape.ranks * shape.slotsPerRank;
    const map = new Int32Array(shape.layers * slots);
    return new Placement(
      map.map((_, cell) => cell % slots % shape.experts),
      shape,
    );
  }

  /**
   * Creates a shuffled placement, for tests and benchmarks.
   *
   * In each layer every expert has a slot, and each further slot holds any expert.
   *
   * @param options Sizes of the placement, and the seed.
   * @returns The placement; the same for the same options.
   * @throws {RangeError} If a size is below 1, or there are fewer slots than experts.
   *
   * @example Usage
   * ```ts
   * import { Placement } from "@eplb/eplb";
   * import { assert } from "@std/assert";
   *
   * const shape = { layers: 2, ranks: 4, slotsPerRank: 3, experts: 8 };
   *
   * assert(Placement.random({ ...shape, seed: 1 }).equals(Placement.random({ ...shape, seed: 1 })));
   * assert(!Placement.random({ ...shape, seed: 1 }).equals(Placement.random({ ...shape, seed: 2 })));
   * ```
   */
  static random(options: RandomPlacementOptions): Placement {
    checkShape(options);
    const { layers, experts } = options;
    const slots = options.ranks * options.slotsPerRank;
    const random = new SeededRandom(options.seed);
    const map = new Int32Array(layers * slots);
    for (let layer = 0; layer < layers; layer++) {
      const row = map.subarray(layer * slots, (layer + 1) * slots);
      for (let slot = 0; slot < slots; slot++) {
        row[slot] = slot < experts ? slot : random.below(experts);
      }
      random.shuffle(row);
    }
    return new Placement(map, options);
  }

  /**
   * Reads a placement as SGLang writes it.
   *
   * @param value Parsed JSON, `{"physical_to_logical_map": [layers][slots]}`.
   * @param options Number of ranks, and of experts if the map does not tell.
   * @returns The placement.
   * @throws {TypeError} If there is no map in it.
   * @throws {RangeError} If the map is not valid, see {@linkcode Placement.from}.
   *
   * @example Usage
   * ```ts
   * import { Placement } from "@eplb/eplb";
   * import { assertEquals } from "@std/assert";
   *
   * const placement = Placement.fromJSON({ physical_to_logical_map: [[1, 0]] }, { ranks: 2 });
   *
   * assertEquals(placement.toJSON(), { physical_to_logical_map: [[1, 0]] });
   * ```
   */
  static fromJSON(
    value: unknown,
    options: PlacementFromJSONOptions,
  ): Placement {
    const map = typeof value === "object" && value !== null &&
        "physical_to_logical_map" in value
      ? value.physical_to_logical_map
      : undefined;
    if (!Array.isArray(map)) {
      throw new TypeError(
        `Cannot read placement: "physical_to_logical_map" must be an array of layers, got ${
          show(map)
        }`,
      );
    }
    return Placement.from(map, options);
  }

  /**
   * Joins two placements by layer, as they stand when a migration ends early.
   *
   * @param from The placement before the migration.
   * @param to The placement after it, of the same shape.
   * @param committedLayers Number of layers, from the first, that are as in `to`.
   * @returns The layers below `committedLayers` of `to`, and the rest of `from`.
   * @throws {RangeError} If the shapes differ, or there are not that many layers.
   *
   * @example Usage
   * ```ts
   * import { Placement } from "@eplb/eplb";
   * import { assertEquals } from "@std/assert";
   *
   * const from = Placement.from([[0, 1], [0, 1]], { ranks: 2 });
   * const to = Placement.from([[1, 0], [1, 0]], { ranks: 2 });
   *
   * assertEquals([...Placement.mix(from, to, 1).physicalToLogical], [1, 0, 0, 1]);
   * ```
   */
  static mix(
    from: Placement,
    to: Placement,
    committedLayers: number,
  ): Placement {
    checkSameShape(from, to, "mix placements");
    checkInteger(committedLayers, {
      action: "mix placements",
      name: "committed layers",
      min: 0,
      max: from.layers,
    });
    const map = from.physicalToLogical.slice();
    map.set(to.physicalToLogical.subarray(0, committedLayers * to.slots));
    const counts = from.logicalReplicaCount.slice();
    counts.set(
      to.logicalReplicaCount.subarray(0, committedLayers * to.experts),
    );
    return new Placement(map, from, counts);
  }

  /**
   * Writes the placement as SGLang reads it; `JSON.stringify` calls it.
   *
   * @returns `{"physical_to_logical_map": [layers][slots]}`.
   *
   * @example Usage
   * ```ts
   * import { Placement } from "@eplb/eplb";
   * import { assertEquals } from "@std/assert";
   *
   * const placement = Placement.from([[0, -1]], { ranks: 1 });
   *
   * assertEquals(JSON.stringify(placement), '{"physical_to_logical_map":[[0,-1]]}');
   * ```
   */
  toJSON(): PlacementJSON {
    const { slots, physicalToLogical } = this;
    const rows = Array.from(
      { length: this.layers },
      (
        _,
        layer,
      ) => [...physicalToLogical.subarray(layer * slots, (layer + 1) * slots)],
    );
    return { physical_to_logical_map: rows };
  }

  /**
   * Counts the layers, from the first, that are as in another placement.
   *
   * @param other The other placement, of the same shape.
   * @returns Number of layers up to the first one that differs.
   * @throws {RangeError} If the shapes differ.
   *
   * @example Usage
   * ```ts
   * import { Placement } from "@eplb/eplb";
   * import { assertEquals } from "@std/assert";
   *
   * const one = Placement.from([[0, 1], [0, 1]], { ranks: 2 });
   * const other = Placement.from([[0, 1], [1, 0]], { ranks: 2 });
   *
   * assertEquals(one.layersInCommon(other), 1);
   * ```
   */
  layersInCommon(other: Placement): number {
    checkSameShape(this, other, "compare placements");
    const { physicalToLogical } = other;
    const cell = this.physicalToLogical.findIndex((expert, cell) =>
      expert !== physicalToLogical[cell]
    );
    return cell < 0 ? this.layers : Math.floor(cell / this.slots);
  }

  /**
   * Tells whether another placement has the same sizes and the same map.
   *
   * @param other The other placement.
   * @returns True if they are alike.
   *
   * @example Usage
   * ```ts
   * import { Placement } from "@eplb/eplb";
   * import { assert } from "@std/assert";
   *
   * const placement = Placement.from([[0, 1]], { ranks: 1 });
   *
   * assert(placement.equals(Placement.from([[0, 1]], { ranks: 1 })));
   * assert(!placement.equals(Placement.from([[0, 1]], { ranks: 2 })));
   * ```
   */
  equals(other: Placement): boolean {
    return shapeOf(this) === shapeOf(other) &&
      this.physicalToLogical.every((expert, cell) =>
        expert === other.physicalToLogical[cell]
      );
  }
}
