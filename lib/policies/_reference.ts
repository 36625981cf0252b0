// SPDX-License-Identifier: Apache-2.0

/**
 * The placement algorithm of deepseek-ai/EPLB, layer by layer.
 *
 * @module
 */
import { carryLayer } from "./_carry.ts";
import { isDense, type PolicyJob } from "./_job.ts";
import { Packer } from "./_pack.ts";
import { Replicator } from "./_replicate.ts";

/**
 * Plans every layer with tokens anew, and carries the others over.
 *
 * @param job What is planned.
 * @returns Expert of each slot, [layers, slots]; -1 is an empty slot.
 */
export function planAnew(job: PolicyJob): Int32Array {
  const { layers, slots } = job;
  const planner = new ReferencePlanner(job);
  const map = new Int32Array(layers * slots).fill(-1);
  for (let layer = 0; layer < layers; layer++) {
    const row = map.subarray(layer * slots, (layer + 1) * slots);
    if (isDense(job, layer)) carryLayer(row, job, layer);
    else planner.plan(row, layer);
  }
  return map;
}

/** Plans layers one after the other; memory is used again for each. */
class ReferencePlanner {
  readonly #job: PolicyJob;
  readonly #nodes: number;
  readonly #groups: number;
  /** Slots in the order that the algorithm knows them in, [active slots]. */
  readonly #slotOf: Int32Array;
  readonly #load: Float32Array;
  readonly #groupLoad: Float32Array;
  readonly #groupPacker: Packer;
  /** Experts in the order of their nodes, [experts]. */
  readonly #order: Int32Array;
  readonly #memberLoad: Float32Array;
  readonly #replicator: Replicator;
  readonly #slotPacker: Packer;

  /**
   * Prepares a planner.
   *
   * @param job What is planned.
   */
  constructor(job: PolicyJob) {
    const { experts, slotsPerRank, active } = job;
    this.#job = job;
    const nodes = hierarchicalNodes(job);
    this.#nodes = nodes === 0 ? 1 : nodes;
    this.#groups = nodes === 0 ? 1 : job.groups;
    this.#slotOf = slotOrder(job, nodes > 1);
    this.#load = new Float32Array(experts);
    this.#groupLoad = new Float32Array(this.#groups);
    this.#groupPacker = new Packer(this.#groups, this.#nodes);
    this.#order = new Int32Array(experts);
    this.#memberLoad = new Float32Array(experts / this.#nodes);
    const slotsPerNode = active.length * slotsPerRank / this.#nodes;
    this.#replicator = new Replicator(this.#memberLoad.length, slotsPerNode);
    this.#slotPacker = new Packer(slotsPerNode, active.length / this.#nodes);
  }

  /**
   * Places the experts of one layer anew.
   *
   * @param row The layer's slots, [slots]; those of active ranks are filled.
   * @param layer The layer.
   */
  plan(row: Int32Array, layer: number): void {
    const { experts, load } = this.#job;
    for (let i = 0; i < experts; i++) {
      this.#load[i] = load[layer * experts + i]! + 0; // -0 becomes 0
    }
    this.#groupByNode();
    const members = this.#memberLoad.length;
    const { expert, load: copyLoad } = this.#replicator;
    for (let node = 0; node < this.#nodes; node++) {
      const first = node * members;
      for (let i = 0; i < members; i++) {
        this.#memberLoad[i] = this.#load[this.#order[first + i]!]!;
      }
      this.#replicator.replicate(this.#memberLoad);
      const places = this.#slotPacker.pack(copyLoad);
      for (let i = 0; i < places.length; i++) {
        const slot = this.#slotOf[node * places.length + places[i]!]!;
        row[slot] = this.#order[first + expert[i]!]!;
      }
    }
  }

  /** Packs groups onto nodes, and lists the experts in the order of their nodes. */
  #groupByNode(): void {
    const groupSize = this.#order.length / this.#groups;
    for (let group = 0; group < this.#groups; group++) {
      let sum = 0;
      const first = group * groupSize;
      for (let i = 0; i < groupSize; i++) sum += this.#load[first + i]!;
      this.#groupLoad[group] = sum;
    }
    const places = this.#groupPacker.pack(this.#groupLoad);
    for (let group = 0; group < this.#groups; group++) {
      const place = places[group]! * groupSize;
      for (let i = 0; i < groupSize; i++) {
        this.#order[place + i] = group * groupSize + i;
      }
    }
  }
}

/** Nodes to plan for one by one, or 0 if all ranks are planned for at once. */
function hierarchicalNodes({ topology, active, groups }: PolicyJob): number {
  const ranksOn = new Int32Array(topology.nodes);
  for (const rank of active) ranksOn[topology.nodeOf[rank]!]!++;
  const populated = ranksOn.filter((ranks) => ranks > 0);
  const equal = populated.every((ranks) => ranks === populated[0]);
  return equal && groups % populated.length === 0 ? populated.length : 0;
}

/** Slots of the active ranks, in the order of ranks or of nodes and ranks. */
function slotOrder(job: PolicyJob, byNode: boolean): Int32Array {
  const { active, topology: { nodeOf }, slotsPerRank } = job;
  // A stable sort, so the ranks of a node stay in order.
  const order = byNode
    ? active.slice().sort((a, b) => nodeOf[a]! - nodeOf[b]!)
    : active;
  return new Int32Array(order.length * slotsPerRank).map((_, i) =>
    order[Math.floor(i / slotsPerRank)]! * slotsPerRank + i % slotsPerRank
  );
}
