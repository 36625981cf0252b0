// SPDX-License-Identifier: Apache-2.0

/**
 * Which layers of a plan move together.
 *
 * @module
 */
import { MigrationCase, type MigrationPlan, movingLayers } from "./plan.ts";

/** 1 for each slot that needs no staging, [layers, slots]; undefined if all do. */
export type DirectSlots = Uint8Array | undefined;

/**
 * Counts the experts that each rank stages in each layer.
 *
 * These are the experts that enter the rank, and those that it copies inside itself, each once
 * however many slots get it.
 *
 * @param plan The plan.
 * @param direct Slots that are written without staging.
 * @returns The counts, [layers, ranks].
 */
export function stagedExperts(
  plan: MigrationPlan,
  direct?: DirectSlots,
): Int32Array {
  const { layers, ranks, slots, slotsPerRank, cases, source } = plan;
  const staged = new Int32Array(layers * ranks);
  // 1 + the index [layers, slots] of the last slot that each slot was copied to.
  const copied = new Int32Array(slots);
  for (let layer = 0; layer < layers; layer++) {
    const base = layer * slots;
    for (let slot = 0; slot < slots; slot++) {
      const kind = cases[base + slot]!;
      if (direct?.[base + slot]) continue;
      if (kind === MigrationCase.sameRank) {
        const from = source[base + slot]!;
        if (copied[from]! > base) continue;
        copied[from] = base + slot + 1;
      } else if (kind < MigrationCase.sameNode) continue;
      staged[layer * ranks + Math.floor(slot / slotsPerRank)]!++;
    }
  }
  return staged;
}

/** Bounds of a batch. */
export interface BatchLimits {
  /** Experts that a rank can stage at once. */
  readonly stagingCells: number;
  /** The most layers in which something moves. */
  readonly maxLayers: number;
  /** Slots that are written without staging. */
  readonly direct: DirectSlots;
}

/**
 * Packs contiguous layers into batches that fit into the staging cells of every rank.
 *
 * @param plan The plan.
 * @param limits What fits into a batch.
 * @returns First layer and one past the last layer of each batch, [batches, 2]. The batches cover
 * all layers without a gap; there are none if nothing moves.
 * @throws {RangeError} If one layer alone does not fit.
 */
export function packLayers(
  plan: MigrationPlan,
  limits: BatchLimits,
): Int32Array {
  const { layers, ranks } = plan;
  const { stagingCells, maxLayers, direct } = limits;
  const staged = stagedExperts(plan, direct);
  const moving = movingLayers(plan);
  if (!moving.includes(1)) return new Int32Array(0);
  const inBatch = new Int32Array(ranks);
  const starts = [0];
  let movingInBatch = 0;
  for (let layer = 0; layer < layers; layer++) {
    const ofLayer = staged.subarray(layer * ranks, (layer + 1) * ranks);
    const rank = ofLayer.findIndex((count) => count > stagingCells);
    if (rank >= 0) {
      throw new RangeError(
        `Cannot compile program: layer ${layer} needs ${
          ofLayer[rank]
        } staging cells on rank ${rank}, there are ${stagingCells}`,
      );
    }
    const full = movingInBatch + moving[layer]! > maxLayers ||
      ofLayer.some((count, rank) => inBatch[rank]! + count > stagingCells);
    if (full) {
      starts.push(layer);
      inBatch.fill(0);
      movingInBatch = 0;
    }
    ofLayer.forEach((count, rank) => inBatch[rank]! += count);
    movingInBatch += moving[layer]!;
  }
  return Int32Array.from(
    starts.flatMap((start, batch) => [start, starts[batch + 1] ?? layers]),
  );
}
