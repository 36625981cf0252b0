// The rules of a migration plan, written down naively: by definition, not for speed.
import type { Placement } from "../../lib/placement.ts";
import type { Topology } from "../../lib/topology.ts";

/** What a plan says about one slot, in words. */
export type CaseName =
  | "empty"
  | "unchanged"
  | "sameRank"
  | "duplicate"
  | "sameNode"
  | "crossNode";

/** One expert that a rank needs from another one. */
export interface Demand {
  readonly layer: number;
  readonly slot: number;
  readonly expert: number;
  readonly rank: number;
  /** Ranks that may send it by the rule of the same node first, ascending. */
  readonly eligible: readonly number[];
  readonly crossNode: boolean;
}

/** The content of a layer of a placement, by rank. */
export function rowsByRank(placement: Placement, layer: number): number[][] {
  const { ranks, slots, slotsPerRank, physicalToLogical } = placement;
  return Array.from({ length: ranks }, (_, rank) => {
    const first = layer * slots + rank * slotsPerRank;
    return [...physicalToLogical.subarray(first, first + slotsPerRank)];
  });
}

/** Ranks that hold an expert in a layer and may send, ascending. */
export function holdersOf(
  placement: Placement,
  options: { layer: number; expert: number; live: readonly number[] },
): number[] {
  return rowsByRank(placement, options.layer).flatMap((row, rank) =>
    row.includes(options.expert) && options.live.includes(rank) ? [rank] : []
  );
}

/** The case of each slot, [layers * slots]. */
export function expectedCases(
  from: Placement,
  to: Placement,
  options: { topology: Topology; live: readonly number[] },
): CaseName[] {
  const names: CaseName[] = [];
  for (let layer = 0; layer < from.layers; layer++) {
    const old = rowsByRank(from, layer);
    rowsByRank(to, layer).forEach((row, rank) =>
      row.forEach((expert, slot) => {
        const sendersHere = holdersOf(from, {
          layer,
          expert,
          live: options.live,
        })
          .some((holder) => options.topology.sameNode(holder, rank));
        if (expert < 0) names.push("empty");
        else if (old[rank]![slot] === expert) names.push("unchanged");
        else if (old[rank]!.includes(expert)) names.push("sameRank");
        else if (row.indexOf(expert) < slot) names.push("duplicate");
        else names.push(sendersHere ? "sameNode" : "crossNode");
      })
    );
  }
  return names;
}

/** What ranks need from others in a layer, in ascending order of the slot. */
export function demandsOf(
  from: Placement,
  to: Placement,
  options: { topology: Topology; live: readonly number[]; layer: number },
): Demand[] {
  const { topology, live, layer } = options;
  const old = rowsByRank(from, layer);
  return rowsByRank(to, layer).flatMap((row, rank) =>
    row.flatMap((expert, at): Demand[] => {
      if (
        expert < 0 || old[rank]!.includes(expert) || row.indexOf(expert) < at
      ) {
        return [];
      }
      const holders = holdersOf(from, { layer, expert, live });
      const near = holders.filter((holder) => topology.sameNode(holder, rank));
      return [{
        layer,
        slot: rank * from.slotsPerRank + at,
        expert,
        rank,
        eligible: near.length > 0 ? near : holders,
        crossNode: near.length === 0,
      }];
    })
  );
}

/** The fewest that the busiest rank, and given that the busiest node uplink, must send in a layer. */
export function leastBusiest(
  demands: readonly Demand[],
  topology: Topology,
): { rank: number; uplink: number } {
  let best = { rank: Infinity, uplink: Infinity };
  const load = new Int32Array(topology.ranks);
  const uplink = new Int32Array(topology.nodes);
  function assign(i: number): void {
    const demand = demands[i];
    if (demand === undefined) {
      const [rank, node] = [Math.max(0, ...load), Math.max(0, ...uplink)];
      if (rank < best.rank || (rank === best.rank && node < best.uplink)) {
        best = { rank, uplink: node };
      }
      return;
    }
    for (const sender of demand.eligible) {
      const leaves = demand.crossNode ? 1 : 0;
      load[sender]!++;
      uplink[topology.nodeOf[sender]!]! += leaves;
      // What is worse already cannot become better.
      if (load[sender]! <= best.rank) assign(i + 1);
      load[sender]!--;
      uplink[topology.nodeOf[sender]!]! -= leaves;
    }
  }
  assign(0);
  return best;
}

/** The sender of each demand when destinations are dealt out in contiguous chunks. */
export function chunkedSenders(demands: readonly Demand[]): number[] {
  const groups = Map.groupBy(
    demands,
    ({ expert, eligible, crossNode }) => `${expert} ${crossNode} ${eligible}`,
  );
  const senders = new Map<Demand, number>();
  for (const group of groups.values()) {
    const waiting = [...group].sort((a, b) => a.rank - b.rank);
    const { eligible } = group[0]!;
    eligible.forEach((sender, i) => {
      const share = Math.ceil(waiting.length / (eligible.length - i));
      for (const demand of waiting.splice(0, share)) {
        senders.set(demand, sender);
      }
    });
  }
  return demands.map((demand) => senders.get(demand)!);
}
