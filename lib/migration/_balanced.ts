// SPDX-License-Identifier: Apache-2.0

/**
 * The source choice that spreads what is sent.
 *
 * @module
 */
import type { LayerDemands, SourceChooser } from "./_demands.ts";

/**
 * Makes the busiest rank send as little as possible in each layer, and given that, the busiest node
 * uplink.
 *
 * It starts with the holders that have sent least in all layers so far, lower ranks first, and then
 * follows paths on which each rank hands one demand on to the next, as
 * in optimal semi-matchings (Harvey, Ladner, Lovász and Tamir, 2003): the first rank of a path
 * sends one less, the last one more, those in between the same. When no path can relieve a busiest
 * rank (node), no assignment can.
 *
 * The uplink fits into the same search because the demands that a node serves itself stay in it: on
 * a path from node to node, only the first node's uplink gets one less and the last one's one more.
 */
export class BalancedSources implements SourceChooser {
  readonly #demands: LayerDemands;
  readonly #ranksOf: readonly (readonly number[])[];
  // Experts that each rank sends: in this layer, and in the layers before.
  readonly #load: Int32Array;
  readonly #total: Float64Array;
  // Experts that leave each node, in this layer.
  readonly #uplink: Int32Array;
  // The demands that have a choice, [openCount], and by the rank that serves them: the first of each
  // rank, and the one after each demand; -1 ends a list.
  readonly #open: Int32Array;
  #openCount = 0;
  readonly #first: Int32Array;
  readonly #next: Int32Array;
  // A search: the ranks reached, in this order, and how. A rank is reached because it can take over
  // the demand `via`, or because the rank `relay` of its node can send one more if it sends one
  // less; where a search starts, both are -1.
  readonly #queue: Int32Array;
  #queued = 0;
  readonly #reached: Uint8Array;
  readonly #via: Int32Array;
  readonly #relay: Int32Array;

  constructor(demands: LayerDemands) {
    const { topology } = demands;
    this.#demands = demands;
    this.#ranksOf = Array.from(
      { length: topology.nodes },
      (_, node) => topology.ranksOf(node),
    );
    this.#load = new Int32Array(topology.ranks);
    this.#total = new Float64Array(topology.ranks);
    this.#uplink = new Int32Array(topology.nodes);
    this.#open = new Int32Array(demands.source.length);
    this.#first = new Int32Array(topology.ranks);
    this.#next = new Int32Array(demands.source.length);
    this.#queue = new Int32Array(topology.ranks);
    this.#reached = new Uint8Array(topology.ranks);
    this.#via = new Int32Array(topology.ranks);
    this.#relay = new Int32Array(topology.ranks);
  }

  choose(): void {
    this.#assignForced();
    this.#assignOpen();
    while (this.#relieveBusiestRank());
    if (this.#uplink.length > 1) {
      this.#measureUplinks();
      while (this.#relieveBusiestNode());
    }
    for (let rank = 0; rank < this.#load.length; rank++) {
      this.#total[rank]! += this.#load[rank]!;
    }
  }

  #assignForced(): void {
    const { count, expert, node, source, holders, holderCount, topology } =
      this.#demands;
    const { nodeOf, ranks } = topology;
    const load = this.#load.fill(0);
    let open = 0;
    for (let i = 0; i < count; i++) {
      const at = node[i]!;
      const row = expert[i]! * ranks;
      const end = row + holderCount[expert[i]!]!;
      let eligible = 0;
      let only = -1;
      for (let k = row; k < end; k++) {
        const holder = holders[k]!;
        if (at >= 0 && nodeOf[holder] !== at) continue;
        eligible++;
        only = holder;
      }
      if (eligible === 1) {
        source[i] = only;
        load[only]!++;
      } else this.#open[open++] = i;
    }
    this.#openCount = open;
  }

  // The start decides between what is equally good in the end, so it looks at all layers so far.
  #assignOpen(): void {
    const { expert, node, holders, holderCount, topology } = this.#demands;
    const { nodeOf, ranks } = topology;
    const [load, total, open] = [this.#load, this.#total, this.#open];
    this.#first.fill(-1);
    for (let o = 0; o < this.#openCount; o++) {
      const i = open[o]!;
      const at = node[i]!;
      const row = expert[i]! * ranks;
      const end = row + holderCount[expert[i]!]!;
      let best = -1;
      let least = 0;
      for (let k = row; k < end; k++) {
        const holder = holders[k]!;
        if (at >= 0 && nodeOf[holder] !== at) continue;
        const sent = total[holder]! + load[holder]!;
        if (best < 0 || sent < least) {
          best = holder;
          least = sent;
        }
      }
      this.#give(i, best);
      load[best]!++;
    }
  }

  #give(demand: number, rank: number): void {
    this.#demands.source[demand] = rank;
    this.#next[demand] = this.#first[rank]!;
    this.#first[rank] = demand;
  }

  #take(demand: number): void {
    const rank = this.#demands.source[demand]!;
    let before = -1;
    for (let i = this.#first[rank]!; i !== demand; i = this.#next[i]!) {
      before = i;
    }
    if (before < 0) this.#first[rank] = this.#next[demand]!;
    else this.#next[before] = this.#next[demand]!;
  }

  #measureUplinks(): void {
    const { count, node, source, topology } = this.#demands;
    this.#uplink.fill(0);
    for (let i = 0; i < count; i++) {
      if (node[i]! < 0) this.#uplink[topology.nodeOf[source[i]!]!]!++;
    }
  }

  #relieveBusiestRank(): boolean {
    const load = this.#load;
    const busiest = indexOfMax(load);
    this.#startSearch();
    this.#reach(busiest);
    for (let q = 0; q < this.#queued; q++) {
      const rank = this.#queue[q]!;
      if (load[rank]! < load[busiest]! - 1) {
        this.#follow(rank);
        return true;
      }
      this.#handOn(rank);
    }
    return false;
  }

  #relieveBusiestNode(): boolean {
    const [load, uplink] = [this.#load, this.#uplink];
    const { nodeOf } = this.#demands.topology;
    const most = load[indexOfMax(load)]!;
    const busiest = indexOfMax(uplink);
    this.#startSearch();
    for (const rank of this.#ranksOf[busiest]!) this.#reach(rank);
    for (let q = 0; q < this.#queued; q++) {
      const rank = this.#queue[q]!;
      const node = nodeOf[rank]!;
      if (load[rank]! < most) {
        if (uplink[node]! < uplink[busiest]! - 1) {
          uplink[busiest]!--;
          uplink[node]!++;
          this.#follow(rank);
          return true;
        }
        for (const other of this.#ranksOf[node]!) {
          this.#reach(other, { relay: rank });
        }
      }
      this.#handOn(rank);
    }
    return false;
  }

  #startSearch(): void {
    this.#queued = 0;
    this.#reached.fill(0);
  }

  #reach(rank: number, how: { via?: number; relay?: number } = {}): void {
    if (this.#reached[rank]) return;
    this.#reached[rank] = 1;
    this.#via[rank] = how.via ?? -1;
    this.#relay[rank] = how.relay ?? -1;
    this.#queue[this.#queued++] = rank;
  }

  // Reaches every rank that can take over a demand of this one.
  #handOn(rank: number): void {
    const { expert, node, holders, holderCount, topology } = this.#demands;
    const { nodeOf, ranks } = topology;
    for (let i = this.#first[rank]!; i >= 0; i = this.#next[i]!) {
      const row = expert[i]! * ranks;
      const end = row + holderCount[expert[i]!]!;
      for (let k = row; k < end; k++) {
        const holder = holders[k]!;
        if (node[i]! < 0 || nodeOf[holder] === node[i]) {
          this.#reach(holder, { via: i });
        }
      }
    }
  }

  // Moves one demand along the path that reached `rank`, from its start to its end.
  #follow(rank: number): void {
    const { source } = this.#demands;
    this.#load[rank]!++;
    for (;;) {
      const demand = this.#via[rank]!;
      if (demand >= 0) {
        const giver = source[demand]!;
        this.#take(demand);
        this.#give(demand, rank);
        rank = giver;
        continue;
      }
      this.#load[rank]!--;
      if (this.#relay[rank]! < 0) return;
      rank = this.#relay[rank]!;
      this.#load[rank]!++;
    }
  }
}

// The lowest index of the largest value.
function indexOfMax(values: Int32Array): number {
  let best = 0;
  for (let i = 1; i < values.length; i++) {
    if (values[i]! > values[best]!) best = i;
  }
  return best;
}
