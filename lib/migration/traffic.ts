// SPDX-License-Identifier: Apache-2.0

/**
 * What a plan moves over which links, and how fast that can be at best.
 *
 * @module
 */
import { checkInteger } from "../_check.ts";
import type { Topology } from "../topology.ts";
import { MigrationCase, type MigrationPlan } from "./plan.ts";

/** Options of {@linkcode traffic}. */
export interface TrafficOptions {
  /** Bytes of one expert in one layer, all tensors together. */
  readonly expertBytes: number;
}

/** Bytes that a migration moves, over all layers. */
export interface Traffic {
  /** Sent by each rank, [ranks]. */
  readonly bytesSent: Float64Array;
  /** Received by each rank, [ranks]. */
  readonly bytesReceived: Float64Array;
  /** Of `bytesSent`, what goes to ranks of the same node, [ranks]. */
  readonly sameNodeBytesSent: Float64Array;
  /** Of `bytesReceived`, what comes from ranks of the same node, [ranks]. */
  readonly sameNodeBytesReceived: Float64Array;
  /** Of `bytesSent`, what goes to other nodes, [ranks]. */
  readonly crossNodeBytesSent: Float64Array;
  /** Of `bytesReceived`, what comes from other nodes, [ranks]. */
  readonly crossNodeBytesReceived: Float64Array;
  /** Sent by each node to others, [nodes]. */
  readonly nodeBytesOut: Float64Array;
  /** Received by each node from others, [nodes]. */
  readonly nodeBytesIn: Float64Array;
  /** Copied inside each rank, duplicates included, [ranks]. */
  readonly copied: Float64Array;
}

/**
 * Adds up what a plan moves.
 *
 * @param plan The plan.
 * @param options Bytes of one expert.
 * @returns The bytes of each rank and node.
 * @throws {RangeError} If `expertBytes` is not an integer from 1.
 *
 * @example Usage
 * ```ts
 * import { Placement, planMigration, Topology, traffic } from "@eplb/eplb";
 * import { assertEquals } from "@std/assert";
 *
 * const plan = planMigration(
 *   Placement.from([[0, 1, 2, 3]], { ranks: 2 }),
 *   Placement.from([[0, 2, 1, 3]], { ranks: 2 }),
 *   { topology: Topology.uniform({ ranks: 2, nodes: 2 }) },
 * );
 *
 * assertEquals([...traffic(plan, { expertBytes: 1000 }).crossNodeBytesSent], [1000, 1000]);
 * ```
 */
export function traffic(plan: MigrationPlan, options: TrafficOptions): Traffic {
  const { expertBytes } = options;
  const max = Number.MAX_SAFE_INTEGER;
  checkInteger(expertBytes, {
    action: "add up traffic",
    name: "expertBytes",
    min: 1,
    max,
  });
  const { ranks, slots, slotsPerRank, cases, source, topology: { nodes } } =
    plan;
  const sums = createTraffic(ranks, nodes);
  for (let cell = 0; cell < cases.length; cell++) {
    const kind = cases[cell]!;
    const to = Math.floor((cell % slots) / slotsPerRank);
    if (kind === MigrationCase.sameRank || kind === MigrationCase.duplicate) {
      sums.copied[to]! += expertBytes;
    } else if (kind >= MigrationCase.sameNode) {
      const from = Math.floor(source[cell]! / slotsPerRank);
      const same = kind === MigrationCase.sameNode;
      (same ? sums.sameNodeBytesSent : sums.crossNodeBytesSent)[from]! +=
        expertBytes;
      (same ? sums.sameNodeBytesReceived : sums.crossNodeBytesReceived)[to]! +=
        expertBytes;
    }
  }
  return Object.freeze(addTotals(sums, plan.topology));
}

/**
 * Adds up what several plans move that follow each other.
 *
 * @param plans The plans, of the same ranks.
 * @param options Bytes of one expert.
 * @returns The bytes of each rank and node.
 */
export function totalTraffic(
  plans: readonly MigrationPlan[],
  options: TrafficOptions,
): Traffic {
  const [first, ...others] = plans.map((plan) => traffic(plan, options));
  for (const other of others) {
    for (const name of Object.keys(first!) as (keyof Traffic)[]) {
      other[name].forEach((bytes, i) => first![name][i]! += bytes);
    }
  }
  return first!;
}

/**
 * Computes the shortest time in which links of the given rates could carry the traffic.
 *
 * Links carry both directions at once, and those inside and between nodes at the same time. So it
 * is the longest time that one rank's bytes of one direction take on its link to its node or to
 * other nodes, or one node's bytes on its uplink.
 *
 * @param traffic The bytes.
 * @param topology The link rates, of the same ranks.
 * @returns Seconds; 0 if nothing crosses ranks, undefined if the rate of a link in use is unknown.
 * @throws {RangeError} If the topology has another number of ranks or nodes.
 *
 * @example Usage
 * ```ts
 * import { lowerBoundSeconds, Placement, planMigration, Topology, traffic } from "@eplb/eplb";
 * import { assertEquals } from "@std/assert";
 *
 * const topology = Topology.uniform({ ranks: 2, nodes: 1, rates: { intraNode: 400e9 } });
 * const plan = planMigration(
 *   Placement.from([[0, 1, 2, 3]], { ranks: 2 }),
 *   Placement.from([[2, 3, 0, 1]], { ranks: 2 }),
 *   { topology },
 * );
 *
 * // Two experts of 40 MB into each rank.
 * assertEquals(lowerBoundSeconds(traffic(plan, { expertBytes: 40e6 }), topology), 0.0002);
 * ```
 */
export function lowerBoundSeconds(
  traffic: Traffic,
  topology: Topology,
): number | undefined {
  const [ranks, nodes] = [
    traffic.bytesSent.length,
    traffic.nodeBytesOut.length,
  ];
  if (topology.ranks !== ranks || topology.nodes !== nodes) {
    throw new RangeError(
      `Cannot bound time: traffic of ${ranks} ranks on ${nodes} nodes, topology of ${topology.ranks} on ${topology.nodes}`,
    );
  }
  const links = [
    [traffic.sameNodeBytesSent, topology.intraNode],
    [traffic.sameNodeBytesReceived, topology.intraNode],
    [traffic.crossNodeBytesSent, topology.interNode],
    [traffic.crossNodeBytesReceived, topology.interNode],
    [traffic.nodeBytesOut, topology.uplink],
    [traffic.nodeBytesIn, topology.uplink],
  ] as const;
  const seconds = links.flatMap(([bytes, rates]) =>
    [...bytes].map((sum, i) => sum === 0 ? 0 : sum / (rates?.[i] ?? NaN))
  );
  const longest = Math.max(...seconds);
  return Number.isNaN(longest) ? undefined : longest;
}

function createTraffic(ranks: number, nodes: number): Traffic {
  return {
    bytesSent: new Float64Array(ranks),
    bytesReceived: new Float64Array(ranks),
    sameNodeBytesSent: new Float64Array(ranks),
    sameNodeBytesReceived: new Float64Array(ranks),
    crossNodeBytesSent: new Float64Array(ranks),
    crossNodeBytesReceived: new Float64Array(ranks),
    nodeBytesOut: new Float64Array(nodes),
    nodeBytesIn: new Float64Array(nodes),
    copied: new Float64Array(ranks),
  };
}

// Derives the totals of ranks and nodes from the parts.
function addTotals(sums: Traffic, topology: Topology): Traffic {
  for (let rank = 0; rank < topology.ranks; rank++) {
    const node = topology.nodeOf[rank]!;
    const [out, into] = [
      sums.crossNodeBytesSent[rank]!,
      sums.crossNodeBytesReceived[rank]!,
    ];
    sums.bytesSent[rank] = sums.sameNodeBytesSent[rank]! + out;
    sums.bytesReceived[rank] = sums.sameNodeBytesReceived[rank]! + into;
    sums.nodeBytesOut[node]! += out;
    sums.nodeBytesIn[node]! += into;
  }
  return sums;
}
