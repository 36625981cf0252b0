// SPDX-License-Identifier: Apache-2.0

/**
 * Carrying a layer over from today's placement, with as few changes as the active ranks allow.
 *
 * @module
 */
import type { PolicyJob } from "./_job.ts";

/**
 * Fills a row with today's layer: slots of inactive ranks become empty, and an expert that was
 * on such ranks only gets a slot again. Without a placement of today, experts go to the active
 * slots in order.
 *
 * @param row The layer's slots, [slots], -1 everywhere.
 * @param job What is planned.
 * @param layer The layer.
 */
export function carryLayer(
  row: Int32Array,
  job: PolicyJob,
  layer: number,
): void {
  carryActive(row, job, layer);
  if (job.active.length < job.ranks) restoreLost(row, job);
}

/**
 * Fills the active slots of a row with today's layer, even if experts are lost thereby.
 *
 * @param row The layer's slots, [slots], -1 everywhere.
 * @param job What is planned.
 * @param layer The layer.
 */
export function carryActive(
  row: Int32Array,
  job: PolicyJob,
  layer: number,
): void {
  const { active, slotsPerRank, experts, current } = job;
  let next = 0;
  for (const rank of active) {
    const end = (rank + 1) * slotsPerRank;
    for (let slot = rank * slotsPerRank; slot < end; slot++) {
      row[slot] = current === undefined
        ? next++ % experts
        : current.physicalToLogical[layer * job.slots + slot]!;
    }
  }
}

/** Gives each expert without a slot the first empty one, else one of the most copied expert. */
function restoreLost(row: Int32Array, job: PolicyJob): void {
  const { active, slotsPerRank, experts } = job;
  const copies = new Int32Array(experts);
  for (const expert of row) if (expert >= 0) copies[expert]!++;
  for (let lost = 0; lost < experts; lost++) {
    if (copies[lost]! > 0) continue;
    let best = -1;
    let most = 0;
    for (const rank of active) {
      const end = (rank + 1) * slotsPerRank;
      for (let slot = rank * slotsPerRank; slot < end; slot++) {
        const expert = row[slot]!;
        const gain = expert < 0 ? Infinity : copies[expert]!;
        if (gain > most) {
          best = slot;
          most = gain;
        }
      }
    }
    // As active slots are not fewer than experts, one is empty or holds a second copy.
    if (row[best]! >= 0) copies[row[best]!]!--;
    row[best] = lost;
    copies[lost] = 1;
  }
}
