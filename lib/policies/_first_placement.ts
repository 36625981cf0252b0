/**
 * Placing the experts of a layer where none are yet.
 *
 * @module
 */
import type { PolicyJob } from "./_job.ts";
import type { RankObjective } from "./_rank_cost.ts";
import { Tournament } from "./_tournament.ts";

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
  readonly #nodes: readonly Node[];
  /** Experts that are packed onto nodes together. */
  readonly #itemSize: number;
  readonly #work: Float64Array;
  readonly #copies: Int32Array;
  /** Work of each copy, [experts]. */
  readonly #part: Float64Array;
  /** Experts and redundant experts on each rank, [ranks]. */
  readonly #primaries: Int32Array;
  readonly #redundant: Int32Array;

  /**
   * Prepares for a job.
   *
   * @param job What is planned.
   * @param objective What is balanced.
   */
  constructor(job: PolicyJob, objective: RankObjective) {
    this.#job = job;
    this.#objective = objective;
    this.#itemSize = itemSize(job);
    this.#nodes = listNodes(job, objective, job.experts / this.#itemSize);
    this.#work = new Float64Array(job.experts);
    this.#part = new Float64Array(job.experts);
    this.#copies = new Int32Array(job.experts);
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
    this.#primaries.fill(0);
    this.#redundant.fill(0);
    const members = this.#packNodes();
    this.#nodes.forEach((node, i) => this.#placeNode(row, node, members[i]!));
  }

  /** Packs items onto nodes, the heaviest first, each onto the lightest; lists their experts. */
  #packNodes(): number[][] {
    const size = this.#itemSize;
    const items = new Float64Array(this.#work.length / size);
    for (let expert = 0; expert < this.#work.length; expert++) {
      items[Math.floor(expert / size)]! += this.#work[expert]!;
    }
    const members: number[][] = this.#nodes.map(() => []);
    const lightest = new Tournament(this.#nodes.length);
    const room = Int32Array.from(this.#nodes, (node) => node.items);
    for (const item of heaviestFirst(items.keys(), items)) {
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
    const order = heaviestFirst(members.values(), this.#part);
    const lightest = new Tournament(node.ranks.length);
    const most = Math.ceil(members.length / node.ranks.length);
    for (const expert of order) {
      const i = lightest.first;
      this.#put(row, expert, node.ranks[i]!, true);
      this.#weigh(lightest, i, node, expert, most);
    }
    this.#packRedundant(row, node, order, lightest);
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
    let spare = ranks * this.#job.slotsPerRank - members.length;
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
}
