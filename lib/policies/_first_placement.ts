// SPDX-License-Identifier: Apache-2.0

/**
 * Placing the experts of a layer where none are yet.
 *
 * @module
 */
import type { PolicyJob } from "./_job.ts";
import type { RankObjective } from "./_rank_cost.ts";
import { Tournament } from "./_tournament.ts";

/** Bits of the float32 above all finite ones. */
const INFINITY_BITS = 0x7f800000;

/** More than the places of any list; times the bits of a float32, still exact in a float64. */
const PLACES = 2 ** 21;

/** Active ranks of one node, and how many of the items that are packed onto nodes it takes. */
interface Node {
  readonly ranks: Int32Array;
  readonly items: number;
  readonly speed: number;
}

/**
 * Places layers anew, one after the other.
 *
 * Experts, or groups of them, are packed onto nodes; in each node, redundant slots go one by one
 * to the expert whose copies carry most; then primaries and, behind them on each rank, redundant
 * experts are packed onto ranks, heaviest first, each onto the lightest rank. Every rank of a node
 * gets as many primaries as the others, to one, and no expert twice.
 */
export class FirstPlacement {
  readonly #job: PolicyJob;
  readonly #objective: RankObjective;
  readonly #fills: boolean;
  readonly #nodes: readonly Node[];
  /** Experts that are packed onto nodes together. */
  readonly #itemSize: number;
  readonly #work: Float64Array;
  readonly #copies: Int32Array;
  /** Work of each copy, [experts]. */
  readonly #part: Float64Array;
  /** Cost of each rank so far, [ranks]. */
  readonly #load: Float64Array;
  /** Primaries and redundant experts on each rank, [ranks]. */
  readonly #primaries: Int32Array;
  readonly #redundant: Int32Array;

  /**
   * Prepares for a job.
   *
   * @param job What is planned.
   * @param objective What is balanced.
   * @param options Whether redundant slots are filled.
   */
  constructor(
    job: PolicyJob,
    objective: RankObjective,
    { fill }: { readonly fill: boolean },
  ) {
    this.#fills = fill;
    this.#job = job;
    this.#objective = objective;
    this.#itemSize = itemSize(job);
    this.#nodes = listNodes(job, objective, job.experts / this.#itemSize);
    this.#work = new Float64Array(job.experts);
    this.#part = new Float64Array(job.experts);
    this.#copies = new Int32Array(job.experts);
    this.#load = new Float64Array(job.ranks);
    this.#primaries = new Int32Array(job.ranks);
    this.#redundant = new Int32Array(job.ranks);
  }

  /**
   * Places a layer.
   *
   * @param row Expert of each slot, [slots], -1 everywhere.
   * @param layer The layer.
   */
  place(row: Int32Array, layer: number): void {
    const { load, experts } = this.#job;
    const { tokenCost, expertCost } = this.#objective;
    for (let expert = 0; expert < experts; expert++) {
      const tokens = load[layer * experts + expert]!;
      this.#work[expert] = tokens > 0 ? tokens * tokenCost + expertCost : 0;
    }
    this.#load.fill(0);
    this.#primaries.fill(0);
    this.#redundant.fill(0);
    const members = this.#packNodes();
    this.#nodes.forEach((node, i) => this.#placeNode(row, node, members[i]!));
  }

  /** Packs items onto nodes, the heaviest first, each onto the lightest; lists their experts. */
  #packNodes(): number[][] {
    const size = this.#itemSize;
    if (this.#nodes.length === 1) return [[...this.#work.keys()]];
    const items = new Float64Array(this.#work.length / size);
    for (let expert = 0; expert < this.#work.length; expert++) {
      items[Math.floor(expert / size)]! += this.#work[expert]!;
    }
    const members: number[][] = this.#nodes.map(() => []);
    const lightest = new Tournament(this.#nodes.length);
    const room = Int32Array.from(this.#nodes, (node) => node.items);
    for (const item of heaviestFirst([...items.keys()], items)) {
      const node = lightest.first;
      for (let i = 0; i < size; i++) members[node]!.push(item * size + i);
      lightest.values[node]! += items[item]! / this.#nodes[node]!.speed;
      if (--room[node]! === 0) lightest.values[node] = Infinity;
      lightest.update(node);
    }
    return members;
  }

  #placeNode(row: Int32Array, node: Node, members: readonly number[]): void {
    if (members.length === 0) return;
    this.#replicate(node, members);
    const order = heaviestFirst(members, this.#part);
    const home = this.#packPrimaries(row, node, order);
    if (!this.#fills) return;
    this.#packRedundant(row, node, { order, home });
    this.#fill(row, node, order);
  }

  /** Decides how many copies each member has. */
  #replicate(node: Node, members: readonly number[]): void {
    const ranks = node.ranks.length;
    const hottest = new Tournament(members.length);
    members.forEach((expert, i) => {
      this.#copies[expert] = 1;
      hottest.values[i] = ranks === 1 ? Infinity : -this.#work[expert]!;
    });
    hottest.restart();
    let spare = this.#fills
      ? ranks * this.#job.slotsPerRank - members.length
      : 0;
    for (; spare > 0; spare--) {
      const i = hottest.first;
      if (hottest.values[i] === Infinity) break;
      const expert = members[i]!;
      const copies = ++this.#copies[expert]!;
      hottest.values[i] = copies === ranks
        ? Infinity
        : -this.#work[expert]! / copies;
      hottest.update(i);
    }
    for (const expert of members) {
      this.#part[expert] = this.#work[expert]! / this.#copies[expert]!;
    }
  }

  /** Packs one copy of each member; returns the rank of each, as an index into the node's. */
  #packPrimaries(
    row: Int32Array,
    node: Node,
    order: readonly number[],
  ): Int32Array {
    const { slotsPerRank } = this.#job;
    const lightest = new Tournament(node.ranks.length);
    const most = Math.ceil(order.length / node.ranks.length);
    const home = new Int32Array(order.length);
    order.forEach((expert, i) => {
      const at = lightest.first;
      const rank = node.ranks[at]!;
      row[rank * slotsPerRank + this.#primaries[rank]!++] = expert;
      home[i] = at;
      this.#load[rank]! += this.#part[expert]! * this.#objective.pace[rank]!;
      lightest.values[at] = this.#primaries[rank] === most
        ? Infinity
        : this.#load[rank]!;
      lightest.update(at);
    });
    return home;
  }

  /** Packs the other copies, no two on one rank, from the last slots down. */
  #packRedundant(
    row: Int32Array,
    node: Node,
    members: { readonly order: readonly number[]; readonly home: Int32Array },
  ): void {
    const { order, home } = members;
    const lightest = new Tournament(node.ranks.length);
    const offer = (at: number): void => {
      const rank = node.ranks[at]!;
      lightest.values[at] = this.#free(rank) > 0 ? this.#load[rank]! : Infinity;
      lightest.update(at);
    };
    node.ranks.forEach((_, at) => offer(at));
    const holders: number[] = [];
    order.forEach((expert, i) => {
      holders.length = 0;
      let next = home[i]!;
      for (let copy = 1; copy < this.#copies[expert]!; copy++) {
        holders.push(next);
        lightest.values[next] = Infinity;
        lightest.update(next);
        next = lightest.first;
        if (lightest.values[next] === Infinity) break;
        this.#putRedundant(row, node.ranks[next]!, expert);
      }
      holders.push(next);
      holders.forEach(offer);
    });
  }

  /** Fills what packing left free, with the hottest expert that the rank does not hold. */
  #fill(row: Int32Array, node: Node, order: readonly number[]): void {
    const { slotsPerRank } = this.#job;
    for (const rank of node.ranks) {
      const first = rank * slotsPerRank;
      const held = row.subarray(first, first + slotsPerRank);
      while (this.#free(rank) > 0) {
        const expert = order.find((expert) => !held.includes(expert));
        if (expert === undefined) break;
        this.#putRedundant(row, rank, expert);
      }
    }
  }

  #free(rank: number): number {
    return this.#job.slotsPerRank - this.#primaries[rank]! -
      this.#redundant[rank]!;
  }

  #putRedundant(row: Int32Array, rank: number, expert: number): void {
    const end = (rank + 1) * this.#job.slotsPerRank;
    row[end - ++this.#redundant[rank]!] = expert;
    this.#load[rank]! += this.#part[expert]! * this.#objective.pace[rank]!;
  }
}

/**
 * Items in descending order of their weight as a float32; ties stay in order.
 *
 * Weight and place become one number, because sorting without a comparator is many times faster.
 * The bits of non-negative float32 values are in the order of the values.
 */
function heaviestFirst(
  items: readonly number[],
  weight: Float64Array,
): number[] {
  const weights = new Float32Array(items.length);
  for (let i = 0; i < weights.length; i++) weights[i] = weight[items[i]!]!;
  const bits = new Uint32Array(weights.buffer);
  const keys = new Float64Array(items.length);
  for (let i = 0; i < keys.length; i++) {
    keys[i] = (INFINITY_BITS - bits[i]!) * PLACES + i;
  }
  keys.sort();
  const sorted: number[] = [];
  for (const key of keys) {
    sorted.push(items[key - Math.floor(key / PLACES) * PLACES]!);
  }
  return sorted;
}

/** Groups stay together if each node can take as many of them as its part of the ranks. */
function itemSize(job: PolicyJob): number {
  const { experts, groups, topology, active } = job;
  const ranksOn = new Int32Array(topology.nodes);
  for (const rank of active) ranksOn[topology.nodeOf[rank]!]!++;
  const even = ranksOn.every((ranks) => groups * ranks % active.length === 0);
  return even ? experts / groups : 1;
}

/** The nodes that have active ranks. */
function listNodes(
  job: PolicyJob,
  objective: RankObjective,
  items: number,
): Node[] {
  const { topology, active } = job;
  const nodes: Node[] = [];
  for (let node = 0; node < topology.nodes; node++) {
    const ranks = active.filter((rank) => topology.nodeOf[rank] === node);
    if (ranks.length === 0) continue;
    const speed = ranks.reduce((sum, r) => sum + 1 / objective.pace[r]!, 0);
    const share = Math.ceil(items * ranks.length / active.length);
    nodes.push({ ranks, items: share, speed });
  }
  return nodes;
}
