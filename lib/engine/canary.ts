// The canary: digests of every expert's tensors, taken where the bytes are,
// before a rearrangement at the sources and after it at the destinations.

import { MigrationCase, type MigrationPlan } from "../migration/plan.ts";
import type { ExpertWeights } from "../native/weights.ts";
import type { Placement } from "../placement.ts";
import type { Deadline, World } from "./world.ts";

/** One tensor of one slot whose bytes are not those of its source. */
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

/** Compares every slot's digests after a rearrangement with its source's before. */
export function compareDigests(
  before: Digests,
  after: Digests,
  options: {
    readonly plan: MigrationPlan;
    readonly to: Placement;
    readonly tensors: readonly string[];
  },
): Mismatch[] {
  const { plan, to, tensors } = options;
  const { layers, slots, slotsPerRank } = to;
  const count = tensors.length;
  const mismatches: Mismatch[] = [];
  const differs = (
    layer: number,
    tensor: number,
    [target, source]: readonly [number, number],
  ): boolean => {
    const a = after[Math.floor(target / slotsPerRank)]!;
    const b = before[Math.floor(source / slotsPerRank)]!;
    const row = layer * slotsPerRank;
    const i = 2 * ((row + target % slotsPerRank) * count + tensor);
    const j = 2 * ((row + source % slotsPerRank) * count + tensor);
    return a[i] !== b[j] || a[i + 1] !== b[j + 1];
  };
  for (let layer = 0; layer < layers; layer++) {
    for (let slot = 0; slot < slots; slot++) {
      const source = originOf(plan, layer * slots + slot);
      if (source === undefined) continue;
      for (let tensor = 0; tensor < count; tensor++) {
        if (!differs(layer, tensor, [slot, source])) continue;
        mismatches.push({
          layer,
          rank: Math.floor(slot / slotsPerRank),
          slot: slot % slotsPerRank,
          expert: to.physicalToLogical[layer * slots + slot]!,
          tensor: tensors[tensor]!,
        });
      }
    }
  }
  return mismatches;
}

/** The slot whose old bytes a slot must hold now; undefined for an empty slot. */
function originOf(plan: MigrationPlan, entry: number): number | undefined {
  const layerStart = entry - entry % plan.slots;
  switch (plan.cases[entry]) {
    case MigrationCase.empty:
      return undefined;
    case MigrationCase.unchanged:
      return entry - layerStart;
    case MigrationCase.duplicate:
      return plan.source[layerStart + plan.source[entry]!]!;
    default:
      return plan.source[entry]!;
  }
}
