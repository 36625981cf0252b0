// SPDX-License-Identifier: Apache-2.0

/**
 * One replica for each rank, as near as there is one.
 *
 * @module
 */
import type { LayerReplicas } from "./_layer_replicas.ts";
import type { Selection, Selector } from "./_selection.ts";
import { Distance, slotDistances, type Standpoint } from "./_standpoint.ts";

/**
 * Selects the rank's own replica of an expert, else one of its node, else any.
 *
 * Ranks that choose among the same replicas take turns in ascending order, so that each replica
 * serves as many of them as the others do, or one more. Where the turns begin depends on layer and
 * expert.
 */
export class StaticSelector implements Selector {
  readonly #replicas: LayerReplicas;
  readonly #standpoint: Standpoint;
  /** [slots] */
  readonly #distances: Uint8Array;
  /** Ranks of each node that are below this one, [nodes]. */
  readonly #lower: Int32Array;
  /** The last expert for which each node was seen, as a running number, [nodes]. */
  readonly #seen: Int32Array;
  #question = 0;

  constructor(replicas: LayerReplicas, standpoint: Standpoint) {
    const { rank, topology } = standpoint;
    this.#replicas = replicas;
    this.#standpoint = standpoint;
    this.#distances = slotDistances(standpoint);
    this.#seen = new Int32Array(topology.nodes);
    this.#lower = new Int32Array(topology.nodes);
    for (let other = 0; other < rank; other++) {
      this.#lower[topology.nodeOf[other]!]!++;
    }
  }

  select(selection: Selection, expert: number): void {
    const { slots, first, layer } = this.#replicas;
    const begin = first[expert]!;
    const own = this.#nth(expert, { distance: Distance.ON_RANK, index: 0 });
    if (own >= 0) return selection.add(own, 1);
    const start = layer + expert;
    const onNode = this.#countOnNode(expert);
    if (onNode > 0) {
      const index = (start + this.#turnOnNode(expert)) % onNode;
      const distance = Distance.ON_NODE;
      return selection.add(this.#nth(expert, { distance, index }), 1);
    }
    const turn = start + this.#turnAmongAll(expert);
    selection.add(slots[begin + turn % (first[expert + 1]! - begin)]!, 1);
  }

  /** The slot of the expert with `index` others before it at this distance, or -1. */
  #nth(
    expert: number,
    { distance, index }: { readonly distance: number; readonly index: number },
  ): number {
    const { slots, first } = this.#replicas;
    let left = index;
    for (let i = first[expert]!; i < first[expert + 1]!; i++) {
      if (this.#distances[slots[i]!] === distance && left-- === 0) {
        return slots[i]!;
      }
    }
    return -1;
  }

  #countOnNode(expert: number): number {
    const { slots, first } = this.#replicas;
    let count = 0;
    for (let i = first[expert]!; i < first[expert + 1]!; i++) {
      if (this.#distances[slots[i]!] === Distance.ON_NODE) count++;
    }
    return count;
  }

  /** Lower ranks of this node that have no replica of their own either. */
  #turnOnNode(expert: number): number {
    const { slots, first } = this.#replicas;
    const { rank, topology, slotsPerRank } = this.#standpoint;
    let turn = this.#lower[topology.nodeOf[rank]!]!;
    let last = -1; // owners come in ascending order
    for (let i = first[expert]!; i < first[expert + 1]!; i++) {
      const owner = Math.floor(slots[i]! / slotsPerRank);
      if (owner > rank) break;
      const isNew = owner !== last;
      last = owner;
      if (isNew && this.#distances[slots[i]!] === Distance.ON_NODE) turn--;
    }
    return turn;
  }

  /** Lower ranks whose nodes have no replica either. */
  #turnAmongAll(expert: number): number {
    const { slots, first } = this.#replicas;
    const { rank, topology, slotsPerRank } = this.#standpoint;
    this.#question++;
    let turn = rank;
    for (let i = first[expert]!; i < first[expert + 1]!; i++) {
      const node = topology.nodeOf[Math.floor(slots[i]! / slotsPerRank)]!;
      if (this.#seen[node] === this.#question) continue;
      this.#seen[node] = this.#question;
      turn -= this.#lower[node]!;
    }
    return turn;
  }
}
