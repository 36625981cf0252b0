// What dispatch tables mean, written down again as plainly as can be: lists and fractions.

import fc from "fast-check";
import type {
  DispatchTables,
  DispatchTablesOptions,
} from "../../lib/dispatch/tables.ts";
import { Placement } from "../../lib/placement.ts";
import { SeededRandom } from "../../lib/random.ts";
import { Topology } from "../../lib/topology.ts";

/** A slot and the part of its expert's tokens that it gets. */
export interface Part {
  readonly slot: number;
  readonly part: number;
}

/** A placement on nodes of any size, shares of its slots, and one of its ranks. */
export interface Scene {
  readonly placement: Placement;
  readonly shares: Float64Array;
  readonly topology: Topology;
  readonly rank: number;
}

/** Small scenes of every kind: empty slots, drained replicas, experts with no share at all. */
export const scenes: fc.Arbitrary<Scene> = fc.record({
  layers: fc.integer({ min: 1, max: 3 }),
  ranks: fc.integer({ min: 1, max: 9 }),
  slotsPerRank: fc.integer({ min: 1, max: 5 }),
  spare: fc.double({ min: 0, max: 1, noNaN: true }),
  nodes: fc.array(fc.integer({ min: 0, max: 3 }), {
    minLength: 9,
    maxLength: 9,
  }),
  rank: fc.nat(),
  seed: fc.integer({ min: 0, max: 2 ** 32 - 1 }),
}).map(({ layers, ranks, slotsPerRank, spare, nodes, rank, seed }) => {
  const slots = ranks * slotsPerRank;
  const experts = Math.max(1, Math.floor(slots * (1 - spare)));
  const random = new SeededRandom(seed);
  const map = Placement.random({ layers, ranks, slotsPerRank, experts, seed })
    .physicalToLogical.slice();
  const shares = new Float64Array(layers * slots).map(() =>
    random.below(3) === 0 ? 0 : random.uint32() / 2 ** 32
  );
  const copies = (cell: number): number => {
    const row = cell - cell % slots;
    return map.subarray(row, row + slots).filter((e) => e === map[cell]).length;
  };
  for (let cell = 0; cell < map.length; cell++) {
    if (random.below(5) === 0 && copies(cell) > 1) map[cell] = -1;
  }
  return {
    placement: Placement.from(map, { layers, ranks, experts }),
    shares,
    topology: Topology.fromNodes(nodes.slice(0, ranks)),
    rank: rank % ranks,
  };
});

/** The slots of an expert, ascending. */
export function replicasOf(
  { slots, physicalToLogical }: Placement,
  { layer, expert }: { readonly layer: number; readonly expert: number },
): number[] {
  const row = physicalToLogical.slice(layer * slots, (layer + 1) * slots);
  return [...row.keys()].filter((slot) => row[slot] === expert);
}

/** Where the expert's tokens go, by the rules of "shares" and "uniform", nearest or not. */
export function naiveParts(
  { placement, topology }: Scene,
  options: DispatchTablesOptions & {
    readonly layer: number;
    readonly expert: number;
  },
): Part[] {
  const { layer, shares, replicas, nearest, rank = 0 } = options;
  const all = replicasOf(placement, options);
  const weightOf = (slot: number): number =>
    replicas === "uniform" || shares === undefined
      ? 1
      : shares[layer * placement.slots + slot]!;
  const sum = (slots: number[]): number =>
    slots.reduce((total, slot) => total + weightOf(slot), 0);
  const drained = sum(all) === 0;
  const live = drained ? all : all.filter((slot) => weightOf(slot) > 0);
  const owner = (slot: number): number =>
    Math.floor(slot / placement.slotsPerRank);
  const onRank = live.filter((slot) => owner(slot) === rank);
  const onNode = live.filter((slot) => topology.sameNode(owner(slot), rank));
  const chosen = !nearest
    ? live
    : onRank.length > 0
    ? onRank
    : onNode.length > 0
    ? onNode
    : live;
  return chosen.map((slot) => ({
    slot,
    part: drained ? 1 / chosen.length : weightOf(slot) / sum(chosen),
  }));
}

/** Where the tables send the expert's tokens. */
export function partsIn(
  tables: DispatchTables,
  { layer, expert }: { readonly layer: number; readonly expert: number },
): Part[] {
  const { experts, maxReplicas, logicalToPhysical, thresholds } = tables;
  const cell = (layer - tables.firstLayer) * experts + expert;
  return Array.from({ length: tables.replicaCount[cell]! }, (_, i) => {
    const at = cell * maxReplicas + i;
    const last = i === tables.replicaCount[cell]! - 1;
    const begin = i === 0 ? 0 : thresholds[at - 1]!;
    const end = last ? 2 ** 32 : thresholds[at]!;
    return { slot: logicalToPhysical[at]!, part: (end - begin) / 2 ** 32 };
  });
}

/** Every layer and expert of a placement. */
export function* cellsOf(
  { layers, experts }: { readonly layers: number; readonly experts: number },
): Generator<{ layer: number; expert: number }> {
  for (let layer = 0; layer < layers; layer++) {
    for (let expert = 0; expert < experts; expert++) yield { layer, expert };
  }
}

/** The documented hash of a token: MurmurHash3's finalizer over a sum of products. */
export function naiveHash(
  token: number,
  { expert, salt }: { readonly expert: number; readonly salt: number },
): number {
  const mask = 0xFFFFFFFFn;
  let h = (BigInt(token) * 0x9E3779B1n + BigInt(expert) * 0x85EBCA77n +
    BigInt(salt) * 0xC2B2AE3Dn) & mask;
  h = ((h ^ (h >> 16n)) * 0x85EBCA6Bn) & mask;
  h = ((h ^ (h >> 13n)) * 0xC2B2AE35n) & mask;
  return Number(h ^ (h >> 16n));
}
