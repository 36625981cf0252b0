// SPDX-License-Identifier: Apache-2.0
// The canary: digests of every expert's tensors, taken where the bytes are,
// before a rearrangement and after it.

import type { ExpertWeights } from "../native/weights.ts";
import type { Placement } from "../placement.ts";
import type { Deadline, World } from "./world.ts";

/** One tensor of one slot whose bytes are not those that its expert had before. */
export interface Mismatch {
  /** Layer. */
  readonly layer: number;
  /** Rank. */
  readonly rank: number;
  /** Slot of that rank. */
  readonly slot: number;
  /** Logical expert that should be there. */
  readonly expert: number;
  /** Name of the tensor. */
  readonly tensor: string;
}

/** Digests of all ranks' weights: [ranks][layers, slots, tensors] as (low, high) words. */
export type Digests = readonly Uint32Array[];

/** Takes the digests of the local ranks' weights and shares them with all. */
export async function takeDigests(
  name: string,
  weights: readonly ExpertWeights[],
  options: { readonly world: World; readonly deadline: Deadline },
): Promise<Digests> {
  const local: Uint8Array[] = [];
  // One after the other: a digest keeps all of a device's memory bandwidth busy.
  for (const one of weights) {
    local.push(new Uint8Array((await one.digest()).buffer));
  }
  const all = await options.world.gather(name, local, options.deadline);
  return all.map((bytes) => new Uint32Array(bytes.slice().buffer));
}

/**
 * Compares every slot's digests after a rearrangement with those that its expert had before it, in
 * any of its slots.
 */
export function compareDigests(
  before: Digests,
  after: Digests,
  options: {
    readonly from: Placement;
    readonly to: Placement;
    readonly tensors: readonly string[];
  },
): Mismatch[] {
  const { from, to, tensors } = options;
  const { layers, slots, slotsPerRank } = to;
  const mismatches: Mismatch[] = [];
  for (let layer = 0; layer < layers; layer++) {
    const row = layer * slots;
    const holders = holdersOf(from, layer);
    for (let slot = 0; slot < slots; slot++) {
      const expert = to.physicalToLogical[row + slot]!;
      if (expert < 0) continue;
      for (const [tensor, name] of tensors.entries()) {
        const digestOf = (digests: Digests, slot: number): string => {
          const rank = Math.floor(slot / slotsPerRank);
          const place = layer * slotsPerRank + slot % slotsPerRank;
          const at = 2 * (place * tensors.length + tensor);
          return `${digests[rank]![at]} ${digests[rank]![at + 1]}`;
        };
        const found = digestOf(after, slot);
        if (
          holders[expert]!.some((holder) => digestOf(before, holder) === found)
        ) continue;
        mismatches.push({
          layer,
          rank: Math.floor(slot / slotsPerRank),
          slot: slot % slotsPerRank,
          expert,
          tensor: name,
        });
      }
    }
  }
  return mismatches;
}

/** Slots that hold each expert in a layer. */
function holdersOf(placement: Placement, layer: number): number[][] {
  const { slots, experts, physicalToLogical } = placement;
  const holders: number[][] = Array.from({ length: experts }, () => []);
  for (let slot = 0; slot < slots; slot++) {
    const expert = physicalToLogical[layer * slots + slot]!;
    if (expert >= 0) holders[expert]!.push(slot);
  }
  return holders;
}
