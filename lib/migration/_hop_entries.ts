// SPDX-License-Identifier: Apache-2.0

/**
 * On which rank an expert enters a node.
 *
 * @module
 */
import { Group, type HopLayer } from "./_hop_layer.ts";

/**
 * Lets an expert enter each node once, on one rank; the others wait for the next hop.
 *
 * A slot that waits for an expert which its node does not hold is ready on the *entry rank* only. This
 * loses no expert: with ample cells the first hop leads to the new placement, but for slots that are
 * not ready and keep what they held. Every expert has a slot in it, for it has one in the new
 * placement; and if that one is not ready, another one of the same node is, which gets the expert.
 */
export class EntryRanks {
  readonly #layer: HopLayer;
  // The rank on which an expert enters a node, [nodes, experts]; -1 if not yet chosen.
  readonly #entry: Int32Array;
  // Experts that enter their node on each rank, in all layers so far, [ranks].
  readonly #entered: Float64Array;

  constructor(layer: HopLayer) {
    this.#layer = layer;
    this.#entry = new Int32Array(layer.topology.nodes * layer.experts);
    this.#entered = new Float64Array(layer.ranks);
  }

  /** Turns to the next layer. */
  reset(): void {
    this.#entry.fill(-1);
  }

  /** Finds the slots whose expert may arrive in the hop that begins. */
  markReady(): void {
    const { slots, ready, target, topology } = this.#layer;
    // Those that can enter on one rank only come first, so that the choices can balance them.
    this.#choose({ forced: true });
    this.#choose({ forced: false });
    ready.fill(0);
    for (let slot = 0; slot < slots; slot++) {
      if (!this.#layer.isWaiting(slot)) continue;
      const rank = this.#layer.rankOf(slot);
      const node = topology.nodeOf[rank]!;
      const entry = this.#entry[node * this.#layer.experts + target[slot]!];
      if (entry === rank || !this.#isMissing(slot)) ready[slot] = 1;
    }
  }

  #choose({ forced }: { readonly forced: boolean }): void {
    const { slots, experts, target, topology } = this.#layer;
    for (let slot = 0; slot < slots; slot++) {
      if (!this.#layer.isWaiting(slot) || !this.#isMissing(slot)) continue;
      const node = topology.nodeOf[this.#layer.rankOf(slot)]!;
      const at = node * experts + target[slot]!;
      if (this.#entry[at]! >= 0) continue;
      const ranks = this.#ranksWaiting(slot);
      if (forced && ranks.some((rank) => rank !== ranks[0])) continue;
      const entry = ranks.reduce((best, rank) =>
        this.#entered[rank]! < this.#entered[best]! ? rank : best
      );
      this.#entry[at] = entry;
      this.#entered[entry]!++;
    }
  }

  #isMissing(slot: number): boolean {
    return this.#layer.holding(Group.node, slot, this.#layer.target[slot]!) ===
      0;
  }

  // The rank of each slot of a slot's node that waits for the same expert, ascending.
  #ranksWaiting(slot: number): number[] {
    const layer = this.#layer;
    return Array.from(layer.targetsOf(layer.target[slot]!))
      .filter((other) =>
        layer.together(Group.node, slot, other) && layer.isWaiting(other)
      )
      .map((other) => layer.rankOf(other));
  }
}
