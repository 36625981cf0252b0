// Ways in several hops, by definition: what they cost, and what they must cost at least.
import { Placement } from "../../lib/placement.ts";
import type { Topology } from "../../lib/topology.ts";
import { rowsByRank } from "./_model.ts";
import type { Scenario } from "./_scenarios.ts";

/** What the ranks do in one hop, by definition. */
export interface HopCost {
  /** Experts that a rank stages in a layer, at most. */
  readonly cells: number;
  /** Experts staged, over all ranks and layers. */
  readonly staged: number;
  /** Of those, experts that their rank did not hold. */
  readonly entries: number;
  /** Of those, experts that no rank of the node held. */
  readonly crossings: number;
}

/** Adds up one hop. */
export function costOf(
  from: Placement,
  to: Placement,
  topology: Topology,
): HopCost {
  let [cells, staged, entries, crossings] = [0, 0, 0, 0];
  for (let layer = 0; layer < from.layers; layer++) {
    const old = rowsByRank(from, layer);
    rowsByRank(to, layer).forEach((row, rank) => {
      const arriving = new Set(
        row.filter((expert, slot) =>
          expert >= 0 && expert !== old[rank]![slot]
        ),
      );
      const entering = [...arriving].filter((expert) =>
        !old[rank]!.includes(expert)
      );
      cells = Math.max(cells, arriving.size);
      staged += arriving.size;
      entries += entering.length;
      crossings += entering.filter((expert) =>
        !old.some((others, other) =>
          topology.sameNode(other, rank) && others.includes(expert)
        )
      ).length;
    });
  }
  return { cells, staged, entries, crossings };
}

/** Adds up a way. */
export function costOfWay(
  from: Placement,
  hops: readonly Placement[],
  topology: Topology,
): HopCost {
  return hops.map((hop, i) => costOf(hops[i - 1] ?? from, hop, topology))
    .reduce((sum, hop) => ({
      cells: Math.max(sum.cells, hop.cells),
      staged: sum.staged + hop.staged,
      entries: sum.entries + hop.entries,
      crossings: sum.crossings + hop.crossings,
    }));
}

/** The fewest experts that must cross nodes: one for each node that needs one it does not hold. */
export function fewestCrossings({ from, to, topology }: Scenario): number {
  let sum = 0;
  for (let layer = 0; layer < from.layers; layer++) {
    const [old, now] = [rowsByRank(from, layer), rowsByRank(to, layer)];
    for (let node = 0; node < topology.nodes; node++) {
      const ranks = topology.ranksOf(node);
      const held = new Set(ranks.flatMap((rank) => old[rank]!));
      const needed = new Set(ranks.flatMap((rank) => now[rank]!));
      sum += [...needed].filter((e) => e >= 0 && !held.has(e)).length;
    }
  }
  return sum;
}

/** Slots that get another expert, over all layers. */
export function changes(from: Placement, to: Placement): number {
  return to.physicalToLogical.filter((expert, cell) =>
    expert >= 0 && expert !== from.physicalToLogical[cell]
  ).length;
}

/** Whether there is no way: one rank, one cell, and no slot to spare. */
export function isStuck({ from, to }: Scenario, stagingCells: number): boolean {
  return from.ranks === 1 && stagingCells === 1 &&
    from.slots === from.experts && !from.equals(to);
}

/** A layer of which all experts trade places in one circle. */
export function circle(
  order: readonly number[],
  ranks: number,
): { from: Placement; to: Placement } {
  const map = Array.from(order, (_, slot) => slot);
  order.forEach((slot, i) => map[slot] = order[(i + 1) % order.length]!);
  return {
    from: Placement.from([[...map.keys()]], { ranks }),
    to: Placement.from([map], { ranks }),
  };
}

/** What all slots of a layer hold. */
export function rowOf(placement: Placement, layer: number): Int32Array {
  const { slots, physicalToLogical } = placement;
  return physicalToLogical.subarray(layer * slots, (layer + 1) * slots);
}
