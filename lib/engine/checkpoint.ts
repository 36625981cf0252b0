// SPDX-License-Identifier: Apache-2.0

import type { ExpertWeights } from "../native/weights.ts";
import type { Placement } from "../placement.ts";
import type { ExpertCheckpoint } from "../weights/checkpoint.ts";
import {
  type SafetensorsSpec,
  writeSafetensors,
} from "../weights/safetensors.ts";

/** Bytes that one read from expert memory brings while saving. */
const CHUNK_BYTES = 8 * 2 ** 20;

/** Options of {@linkcode loadExperts}. */
export interface LoadExpertsOptions {
  /** Which expert each slot holds. */
  readonly placement: Placement;
  /** The rank whose slots are filled. */
  readonly rank: number;
  /** Called after each layer. */
  readonly onProgress?: (layer: number, layers: number) => void;
}

/**
 * Fills one rank's slots with the experts of a checkpoint.
 *
 * Empty slots stay as they are. Only the experts placed on this rank are read.
 *
 * @param checkpoint The checkpoint.
 * @param weights The rank's expert memory, with the checkpoint's layout.
 * @param options Placement and rank.
 * @throws {RangeError} If layers, experts or tensors differ between checkpoint, placement and weights.
 *
 * @example A checkpoint on one rank
 * ```ts ignore
 * import { ExpertWeights, loadExperts, NativeLibrary, openCheckpoint, Placement } from "@eplb/eplb";
 *
 * using checkpoint = await openCheckpoint("mixtral-8x7b");
 * const { layers, experts, layout } = checkpoint;
 * const placement = Placement.contiguous({ layers, ranks: 1, slotsPerRank: experts, experts });
 * using weights = await ExpertWeights.allocate(NativeLibrary.open(), { layout, layers, slots: experts });
 * await loadExperts(checkpoint, weights, { placement, rank: 0 });
 * ```
 */
export async function loadExperts(
  checkpoint: ExpertCheckpoint,
  weights: ExpertWeights,
  options: LoadExpertsOptions,
): Promise<void> {
  const { placement, rank, onProgress } = options;
  checkSizes(checkpoint, weights, placement);
  const { slots, slotsPerRank, physicalToLogical } = placement;
  const buffers = weights.tensorBytes.map((bytes) => new Uint8Array(bytes));
  for (let layer = 0; layer < weights.layers; layer++) {
    const row = layer * slots + rank * slotsPerRank;
    for (let slot = 0; slot < slotsPerRank; slot++) {
      const expert = physicalToLogical[row + slot]!;
      if (expert < 0) continue;
      for (const [tensor, target] of buffers.entries()) {
        await checkpoint.readExpert(layer, expert, { tensor, target });
        weights.write({ layer, slot, tensor }, target);
      }
    }
    onProgress?.(layer + 1, weights.layers);
  }
}

/**
 * Saves one rank's expert memory as a safetensors file.
 *
 * Tensors are named `layers.<layer>.slots.<slot>.<tensor>`; nothing larger than a
 * few megabytes is held in memory at a time.
 *
 * @param path The file; replaced once the new one is complete.
 * @param weights The rank's expert memory.
 * @param options `placement` and `rank`: empty slots are left out.
 *
 * @example One rank
 * ```ts
 * import { ExpertLayout, ExpertWeights, NativeLibrary, openSafetensors, Placement, saveExperts } from "@eplb/eplb";
 * import { assertEquals } from "@std/assert";
 *
 * const layout = new ExpertLayout([{ name: "w", dtype: "U8", shape: [4] }]);
 * using weights = await ExpertWeights.allocate(NativeLibrary.open(), { layout, layers: 1, slots: 1 });
 * const path = await Deno.makeTempFile({ suffix: ".safetensors" });
 * const placement = Placement.from([[0]], { ranks: 1 });
 * await saveExperts(path, weights, { placement, rank: 0 });
 *
 * using file = await openSafetensors(path);
 * assertEquals(file.names, ["layers.0.slots.0.w"]);
 * await Deno.remove(path);
 * ```
 */
export async function saveExperts(
  path: string,
  weights: ExpertWeights,
  options: { readonly placement: Placement; readonly rank: number },
): Promise<void> {
  const { placement, rank } = options;
  const positions = new Map<
    string,
    { layer: number; slot: number; tensor: number }
  >();
  const specs: SafetensorsSpec[] = [];
  for (let layer = 0; layer < weights.layers; layer++) {
    const row = layer * placement.slots + rank * placement.slotsPerRank;
    for (let slot = 0; slot < weights.slots; slot++) {
      if (placement.physicalToLogical[row + slot]! < 0) continue;
      for (
        const [tensor, { name, dtype, shape }] of weights.layout.moved.entries()
      ) {
        const full = `layers.${layer}.slots.${slot}.${name}`;
        positions.set(full, { layer, slot, tensor });
        specs.push({ name: full, dtype, shape });
      }
    }
  }
  const buffer = new Uint8Array(CHUNK_BYTES);
  await writeSafetensors(path, specs, {
    *data({ name }): Generator<Uint8Array> {
      const position = positions.get(name)!;
      const total = weights.tensorBytes[position.tensor]!;
      for (let offset = 0; offset < total; offset += CHUNK_BYTES) {
        const chunk = buffer.subarray(0, Math.min(CHUNK_BYTES, total - offset));
        yield weights.read({ ...position, offset }, chunk);
      }
    },
    metadata: { format: "pt" },
  });
}

function checkSizes(
  checkpoint: ExpertCheckpoint,
  weights: ExpertWeights,
  placement: Placement,
): void {
  const expected = checkpoint.layout.moved.map(({ bytes }) => bytes);
  const pairs = [
    ["layers", checkpoint.layers, weights.layers],
    ["layers", checkpoint.layers, placement.layers],
    ["experts", checkpoint.experts, placement.experts],
    ["slots", placement.slotsPerRank, weights.slots],
    ["bytes per tensor", String(expected), String(weights.tensorBytes)],
  ] as const;
  for (const [what, wanted, given] of pairs) {
    if (wanted !== given) {
      throw new RangeError(
        `Cannot load experts: ${what} do not agree: ${wanted} and ${given}`,
      );
    }
  }
}
