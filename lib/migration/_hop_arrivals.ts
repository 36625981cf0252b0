/**
 * Which slots get their expert in a hop.
 *
 * @module
 */
import { Group, type HopLayer } from "./_hop_layer.ts";

/**
 * Chooses slots of a layer that can get their final expert.
 *
 * The last copy of an expert can only be overwritten if the same hop brings it elsewhere. So a slot
 * takes others with it: the one in which the last copy lands, the one in which that slot's own last
 * copy lands, and so on, until a copy is not the last one or the circle closes.
 */
export class HopArrivals {
  readonly #layer: HopLayer;
  // The attempt in which each slot was found to be impossible, [slots].
  readonly #refused: Int32Array;
  #attempt = 0;

  constructor(layer: HopLayer) {
    this.#layer = layer;
    this.#refused = new Int32Array(layer.slots);
  }

  /**
   * Settles all slots that it can, those of the ranks with most left to do first.
   *
   * With {@linkcode Group.rank}, also the last copy on a rank stays while the rank still waits for
   * the expert in another slot, and the last one on a node while the node does: else the expert
   * would have to come back.
   *
   * @returns Whether any slot was settled.
   */
  settleAll(keep: Group): boolean {
    const order = this.#order();
    const before = this.#layer.changes;
    let changes: number;
    // A slot that gets its expert may make another slot's copy redundant.
    do {
      changes = this.#layer.changes;
      for (const slot of order) this.settle(slot, keep);
    } while (this.#layer.changes > changes);
    return changes > before;
  }

  /** Settles the first slot that it can, even if an expert has to come back. */
  settleAny(): boolean {
    return this.#order().some((slot) => this.settle(slot, Group.all));
  }

  /** Settles a slot, and those that must be settled with it, or changes nothing. */
  settle(slot: number, keep: Group): boolean {
    this.#attempt++;
    return this.#settle(slot, keep);
  }

  #settle(slot: number, keep: Group): boolean {
    const layer = this.#layer;
    const expert = layer.target[slot]!;
    if (
      layer.changed[slot] || !layer.ready[slot] || !layer.isWaiting(slot) ||
      this.#refused[slot] === this.#attempt || !layer.hasCell(slot, expert)
    ) return false;
    const lost = layer.content[slot]!;
    const changes = layer.changes;
    layer.put(slot, expert);
    if (lost < 0 || this.#rescue(lost, slot, keep)) return true;
    layer.undo(changes);
    this.#refused[slot] = this.#attempt;
    return false;
  }

  // Brings an expert that a slot held to another slot, if it has to be.
  #rescue(expert: number, slot: number, keep: Group): boolean {
    const layer = this.#layer;
    for (let group: number = keep; group <= Group.all; group++) {
      const within = group as Group;
      if (layer.holding(within, slot, expert) > 0) return true;
      if (layer.waitingFor(within, slot, expert) === 0) continue;
      return layer.targetsOf(expert).some((other) =>
        layer.together(within, slot, other) && this.#settle(other, keep)
      );
    }
    return true;
  }

  // The waiting slots, by how many slots of their rank wait, most first.
  #order(): number[] {
    const layer = this.#layer;
    const load = new Int32Array(layer.ranks);
    const order: number[] = [];
    for (let slot = 0; slot < layer.slots; slot++) {
      if (!layer.isWaiting(slot)) continue;
      load[layer.rankOf(slot)]!++;
      order.push(slot);
    }
    return order.sort((a, b) =>
      load[layer.rankOf(b)]! - load[layer.rankOf(a)]! || a - b
    );
  }
}
