// SPDX-License-Identifier: Apache-2.0

/**
 * Which rank is on which node, and how fast the links between them are.
 *
 * @module
 */
import { checkInteger, show } from "./_check.ts";

/**
 * Link rates in bytes per second and direction; what is left out is unknown.
 *
 * One number stands for every rank (or node), an array gives each its own.
 */
export interface LinkRates {
  /** From a rank to the others of its node, [ranks]. */
  readonly intraNode?: number | readonly number[];
  /** From a rank to other nodes, [ranks]. */
  readonly interNode?: number | readonly number[];
  /**
   * From a node to the others, [nodes] in the order of {@linkcode Topology.nodeIds}.
   *
   * @default {the sum of the `interNode` rates of the node's ranks}
   */
  readonly uplink?: number | readonly number[];
}

/** Options of {@linkcode Topology.uniform}. */
export interface UniformTopologyOptions {
  /** Number of ranks. */
  readonly ranks: number;
  /** Number of nodes; divides the number of ranks. */
  readonly nodes: number;
  /**
   * Link rates in bytes per second.
   *
   * @default {{}}
   */
  readonly rates?: LinkRates;
}

/**
 * The ranks of a job, the node of each, and the link rates where they are known.
 *
 * A topology is a table keyed by rank, so it stays true for nodes that are not equally populated.
 * It is immutable: do not write into its arrays.
 *
 * @example Usage
 * ```ts
 * import { Topology } from "@eplb/eplb";
 * import { assert, assertEquals } from "@std/assert";
 *
 * const topology = Topology.uniform({ ranks: 16, nodes: 2, rates: { intraNode: 450e9, interNode: 50e9 } });
 *
 * assert(topology.sameNode(0, 7));
 * assert(!topology.sameNode(7, 8));
 * assertEquals(topology.uplink?.[1], 8 * 50e9);
 * ```
 */
export class Topology {
  /** Number of ranks. */
  readonly ranks: number;
  /** Number of nodes. */
  readonly nodes: number;
  /** Node of each rank, [ranks], as an index from 0 to `nodes` − 1. */
  readonly nodeOf: Int32Array;
  /** Id of each node, [nodes], ascending, as given to {@linkcode Topology.fromNodes}. */
  readonly nodeIds: Int32Array;
  /** Bytes per second from each rank to the others of its node, [ranks]; undefined if unknown. */
  readonly intraNode: Float64Array | undefined;
  /** Bytes per second from each rank to other nodes, [ranks]; undefined if unknown. */
  readonly interNode: Float64Array | undefined;
  /** Bytes per second from each node to the others, [nodes]; undefined if unknown. */
  readonly uplink: Float64Array | undefined;

  private constructor(nodeOf: ArrayLike<number>, rates: LinkRates) {
    const ids = [...new Set(Array.from(nodeOf))].sort((a, b) => a - b);
    const indexOf = new Map(ids.map((id, index) => [id, index]));
    this.ranks = nodeOf.length;
    this.nodes = ids.length;
    this.nodeIds = Int32Array.from(ids);
    this.nodeOf = Int32Array.from(nodeOf, (id) => indexOf.get(id)!);
    this.intraNode = readRates(rates.intraNode, {
      name: "intraNode",
      count: this.ranks,
    });
    this.interNode = readRates(rates.interNode, {
      name: "interNode",
      count: this.ranks,
    });
    this.uplink =
      readRates(rates.uplink, { name: "uplink", count: this.nodes }) ??
        this.#sumOfInterNode();
    Object.freeze(this);
  }

  #sumOfInterNode(): Float64Array | undefined {
    if (this.interNode === undefined) return undefined;
    const sums = new Float64Array(this.nodes);
    this.interNode.forEach((rate, rank) => sums[this.nodeOf[rank]!]! += rate);
    return sums;
  }

  /**
   * Creates a topology of equally populated nodes, ranks in order.
   *
   * @param options Number of ranks and nodes, and link rates.
   * @returns The topology.
   * @throws {RangeError} If a number is below 1, the ranks do not divide among the nodes, or a rate
   * is not positive.
   *
   * @example Usage
   * ```ts
   * import { Topology } from "@eplb/eplb";
   * import { assertEquals } from "@std/assert";
   *
   * const topology = Topology.uniform({ ranks: 4, nodes: 2 });
   *
   * assertEquals([...topology.nodeOf], [0, 0, 1, 1]);
   * ```
   */
  static uniform(options: UniformTopologyOptions): Topology {
    const { ranks, nodes, rates = {} } = options;
    checkInteger(ranks, { action: "create topology", name: "ranks", min: 1 });
    checkInteger(nodes, { action: "create topology", name: "nodes", min: 1 });
    if (ranks % nodes !== 0) {
      throw new RangeError(
        `Cannot create topology: ${ranks} ranks do not divide among ${nodes} nodes`,
      );
    }
    const perNode = ranks / nodes;
    return new Topology(
      Int32Array.from(
        { length: ranks },
        (_, rank) => Math.floor(rank / perNode),
      ),
      rates,
    );
  }

  /**
   * Creates a topology from the node id of each rank.
   *
   * @param nodeOf Node id of each rank, [ranks]. Ids need not be contiguous, nor nodes alike.
   * @param rates Link rates in bytes per second.
   * @returns The topology.
   * @throws {RangeError} If there is no rank, an id is not an integer from 0, or a rate is not
   * positive.
   *
   * @example Usage
   * ```ts
   * import { Topology } from "@eplb/eplb";
   * import { assertEquals } from "@std/assert";
   *
   * const topology = Topology.fromNodes([7, 7, 3, 7]);
   *
   * assertEquals(topology.nodes, 2);
   * assertEquals([...topology.nodeIds], [3, 7]);
   * assertEquals([...topology.nodeOf], [1, 1, 0, 1]);
   * ```
   */
  static fromNodes(nodeOf: ArrayLike<number>, rates: LinkRates = {}): Topology {
    if (nodeOf.length === 0) {
      throw new RangeError("Cannot create topology: there are no ranks");
    }
    for (let rank = 0; rank < nodeOf.length; rank++) {
      const name = `the node of rank ${rank}`;
      checkInteger(nodeOf[rank], { action: "create topology", name, min: 0 });
    }
    return new Topology(nodeOf, rates);
  }

  /**
   * Tells whether two ranks are on the same node.
   *
   * @param a A rank.
   * @param b Another rank, or the same.
   * @returns True if they share a node.
   * @throws {RangeError} If there is no such rank.
   *
   * @example Usage
   * ```ts
   * import { Topology } from "@eplb/eplb";
   * import { assert } from "@std/assert";
   *
   * assert(Topology.fromNodes([0, 1, 0]).sameNode(0, 2));
   * ```
   */
  sameNode(a: number, b: number): boolean {
    for (const rank of [a, b]) {
      const max = this.ranks - 1;
      checkInteger(rank, {
        action: "compare nodes",
        name: "a rank",
        min: 0,
        max,
      });
    }
    return this.nodeOf[a] === this.nodeOf[b];
  }

  /**
   * Lists the ranks of a node.
   *
   * @param node Index of the node, from 0 to `nodes` − 1.
   * @returns Its ranks, ascending.
   * @throws {RangeError} If there is no such node.
   *
   * @example Usage
   * ```ts
   * import { Topology } from "@eplb/eplb";
   * import { assertEquals } from "@std/assert";
   *
   * assertEquals(Topology.fromNodes([0, 1, 0]).ranksOf(0), [0, 2]);
   * ```
   */
  ranksOf(node: number): number[] {
    const max = this.nodes - 1;
    checkInteger(node, { action: "list ranks", name: "the node", min: 0, max });
    const ranks: number[] = [];
    this.nodeOf.forEach((at, rank) => at === node && ranks.push(rank));
    return ranks;
  }
}

// One number for all, or one for each; undefined stays unknown.
function readRates(
  rates: number | readonly number[] | undefined,
  options: { readonly name: string; readonly count: number },
): Float64Array | undefined {
  if (rates === undefined) return undefined;
  const { name, count } = options;
  const values = typeof rates === "number"
    ? new Float64Array(count).fill(rates)
    : Float64Array.from(rates);
  if (values.length !== count) {
    throw new RangeError(
      `Cannot create topology: ${name} has ${values.length} rates instead of ${count}`,
    );
  }
  values.forEach((rate, index) => {
    if (!(rate > 0 && rate < Infinity)) {
      throw new RangeError(
        `Cannot create topology: ${name} rate ${index} must be positive and finite, got ${
          show(rate)
        }`,
      );
    }
  });
  return values;
}
