/**
 * Which layers of a plan move together.
 *
 * @module
 */
import { MigrationCase, type MigrationPlan } from "./plan.ts";

/**
 * Counts the experts that each rank stages in each layer.
 *
 * These are the experts that enter the rank, and those that it copies inside itself, each once
 * however many slots get it.
 *
 * @param plan The plan.
 * @returns The counts, [layers, ranks].
 */
export function stagedExperts(plan: MigrationPlan): Int32Array {
  const { layers, ranks, slots, slotsPerRank, cases, source } = plan;
  const staged = new Int32Array(layers * ranks);
  // 1 + the index [layers, slots] of the last slot that each slot was copied to.
  const copied = new Int32Array(slots);
  for (let layer = 0; layer < layers; layer++) {
    const base = layer * slots;
    for (let slot = 0; slot < slots; slot++) {
      const kind = cases[base + slot]!;
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

/**
 * Packs contiguous layers into batches that fit into the staging cells of every rank.
 *
 * @param plan The plan.
 * @param stagingCells Experts that a rank can stage at once.
 * @returns First layer and one past the last layer of each batch, [batches, 2]. The batches cover
 * all layers without a gap; there are none if nothing moves.
 * @throws {RangeError} If one layer alone does not fit.
 */
export function packLayers(
  plan: MigrationPlan,
  stagingCells: number,
): Int32Array {
  const { layers, ranks } = plan;
  const staged = stagedExperts(plan);
  if (staged.every((count) => count === 0)) return new Int32Array(0);
  const inBatch = new Int32Array(ranks);
  const starts = [0];
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
    const full = ofLayer.some((count, rank) =>
      inBatch[rank]! + count > stagingCells
    );
    if (full) {
      starts.push(layer);
      inBatch.set(ofLayer);
    } else ofLayer.forEach((count, rank) => inBatch[rank]! += count);
  }
  return Int32Array.from(
    starts.flatMap((start, batch) => [start, starts[batch + 1] ?? layers]),
  );
}
