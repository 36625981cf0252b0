// SPDX-License-Identifier: Apache-2.0

/**
 * Which slots get their expert in a hop.
 *
 * @module
 */
import { Group, type HopLayer } from "./_hop_layer.ts";

const GROUPS = [Group.rank, Group.node, Group.all] as const;

/** A slot that is settled together with the one before it. */
interface Link {
  readonly slot: number;
  /** The expert that it held, -1 if none. */
  readonly lost: number;
  /** Of the slots that shall hold that expert, how many were tried. */
  tried: number;
}

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
   */
  settleAll(keep: Group): void {
    const order = this.#order();
    let changes: number;
    // A slot that gets its expert may make another slot's copy redundant.
    do {
      changes = this.#layer.changes;
      for (const slot of order) this.settle(slot, keep);
    } while (this.#layer.changes > changes);
  }

  /** Settles a slot, and those that must be settled with it, or changes nothing. */
  settle(slot: number, keep: Group): boolean {
    this.#attempt++;
    const chain: Link[] = [];
    if (!this.#extend(chain, slot)) return false;
    for (let end = chain.at(-1); end !== undefined; end = chain.at(-1)) {
      const group = this.#groupThatMisses(end, keep);
      if (group === undefined) return true;
      const targets = this.#layer.targetsOf(end.lost);
      const extended = targets.subarray(end.tried).some((other) => {
        end.tried++;
        return this.#layer.together(group, end.slot, other) &&
          this.#extend(chain, other);
      });
      if (!extended) this.#shorten(chain);
    }
    return false;
  }

  // Settles one more slot, if that is possible.
  #extend(chain: Link[], slot: number): boolean {
    const layer = this.#layer;
    const possible = layer.isWaiting(slot) && layer.ready[slot] === 1 &&
      layer.changed[slot] === 0 && this.#refused[slot] !== this.#attempt &&
      layer.hasCell(slot, layer.target[slot]!);
    if (!possible) return false;
    chain.push({ slot, lost: layer.content[slot]!, tried: 0 });
    layer.put(slot, layer.target[slot]!);
    return true;
  }

  #shorten(chain: Link[]): void {
    this.#refused[chain.pop()!.slot] = this.#attempt;
    this.#layer.undo();
  }

  // The smallest group that would have to get back the expert that a slot has lost, if there is one.
  #groupThatMisses({ slot, lost }: Link, keep: Group): Group | undefined {
    return GROUPS.find((group) =>
      lost >= 0 && group >= keep &&
      this.#layer.holding(group, slot, lost) === 0 &&
      this.#layer.waitingFor(group, slot, lost) > 0
    );
  }

  // The waiting slots: those of the ranks with most of them first, and on a rank first those whose
  // expert leaves a redundant copy behind, which the next one can overwrite.
  #order(): number[] {
    const layer = this.#layer;
    const load = new Int32Array(layer.ranks);
    const leaves = new Uint8Array(layer.slots);
    const order: number[] = [];
    for (let slot = 0; slot < layer.slots; slot++) {
      if (!layer.isWaiting(slot)) continue;
      load[layer.rankOf(slot)]!++;
      order.push(slot);
      const expert = layer.content[slot]!;
      if (expert < 0 || layer.holding(Group.all, slot, expert) > 1) continue;
      for (const other of layer.targetsOf(expert)) leaves[other] = 1;
    }
    return order.sort((a, b) =>
      load[layer.rankOf(b)]! - load[layer.rankOf(a)]! ||
      leaves[b]! - leaves[a]! || a - b
    );
  }
}
