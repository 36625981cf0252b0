import { assert, assertEquals, assertLessOrEqual } from "@std/assert";
import fc from "fast-check";
import { type MigrationPlan, planMigration } from "../../lib/migration/plan.ts";
import type { SourceChoice } from "../../lib/migration/sources.ts";
import { Placement } from "../../lib/placement.ts";
import { Topology } from "../../lib/topology.ts";
import {
  chunkedSenders,
  type Demand,
  demandsOf,
  leastBusiest,
} from "./_model.ts";
import { type Scenario, scenarios } from "./_scenarios.ts";

// The demands of each layer, and the rank that the plan has send each.
function sendersOf(
  { from, to, topology }: Scenario,
  sources: SourceChoice,
): { plan: MigrationPlan; layers: { demands: Demand[]; senders: number[] }[] } {
  const plan = planMigration(from, to, { topology, sources });
  const live = [...Array(from.ranks).keys()];
  const layers = Array.from({ length: from.layers }, (_, layer) => {
    const demands = demandsOf(from, to, { topology, live, layer });
    const senders = demands.map(({ slot }) =>
      Math.floor(plan.source[layer * from.slots + slot]! / from.slotsPerRank)
    );
    return { demands, senders };
  });
  return { plan, layers };
}

// What the busiest rank and the busiest node uplink send.
function busiest(
  { demands, senders }: { demands: Demand[]; senders: number[] },
  topology: Topology,
): { rank: number; uplink: number } {
  const load = new Int32Array(topology.ranks);
  const uplink = new Int32Array(topology.nodes);
  demands.forEach(({ crossNode }, i) => {
    load[senders[i]!]!++;
    if (crossNode) uplink[topology.nodeOf[senders[i]!]!]!++;
  });
  return { rank: Math.max(...load), uplink: Math.max(...uplink) };
}

function scenario(
  from: number[][],
  to: number[][],
  nodeOf: number[],
): Scenario {
  const ranks = nodeOf.length;
  return {
    from: Placement.from(from, { ranks }),
    to: Placement.from(to, { ranks }),
    topology: Topology.fromNodes(nodeOf),
  };
}

Deno.test('"balanced" hands demands on along a path', () => {
  // Rank 3 needs experts 0, 1 and 2. Served greedily by ranks 0, 1 and 0, rank 0 would send two; rank
  // 1 can take over one of them only once expert 1 comes from rank 2.
  const old = [0, 2, -1, 0, 1, 2, 1, -1, -1];
  const { layers } = sendersOf(
    scenario([[...old, -1, -1, -1]], [[...old, 0, 1, 2]], [0, 0, 0, 0]),
    "balanced",
  );
  const { senders } = layers[0]!;
  assertEquals(senders[1], 2);
  assertEquals([...senders].sort(), [0, 1, 2]);
});

Deno.test('"balanced" spreads what leaves the nodes', () => {
  // Ranks 0 and 1 share a node and each could send one expert; rank 2 could send either.
  const old = [0, -1, 1, -1, 0, 1];
  const { layers } = sendersOf(
    scenario([[...old, -1, -1]], [[...old, 0, 1]], [0, 0, 1, 2]),
    "balanced",
  );
  assertEquals(layers[0]!.senders, [2, 1]);
});

Deno.test('"balanced" relieves a node through another one', () => {
  // Ranks 0 and 1, 2 and 3 share nodes. Rank 0 sends expert 0; expert 1 is on ranks 1 and 2, and
  // expert 2 on ranks 3 and 4. Once rank 2 sends expert 1, rank 3 need not send for its node.
  const [none, row] = [[-1, -1, -1], (expert: number) => [expert, -1, -1]];
  const old = [row(0), row(1), row(1), row(2), row(2)].flat();
  const { layers } = sendersOf(
    scenario([[...old, ...none]], [[...old, 0, 1, 2]], [0, 0, 1, 1, 2, 3]),
    "balanced",
  );
  assertEquals(layers[0]!.senders, [0, 2, 4]);
});

Deno.test('"balanced" prefers ranks that have sent less in the layers before', () => {
  const { layers } = sendersOf(
    scenario(
      [[0, 0, -1], [0, 0, -1], [0, 0, -1], [0, -1, 0]],
      [[0, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0]],
      [0, 0, 0],
    ),
    "balanced",
  );
  assertEquals(layers.map(({ senders }) => senders), [[0], [1], [0], [2]]);
});

Deno.test('"balanced" makes the busiest rank, then the busiest uplink, send least', () => {
  let layersChecked = 0;
  fc.assert(
    fc.property(
      scenarios({
        layers: [1, 3],
        ranks: [4, 8],
        slotsPerRank: [2, 5],
        percent: [10, 40],
      }),
      (scenario) => {
        for (const layer of sendersOf(scenario, "balanced").layers) {
          const ways = layer.demands.reduce((n, d) => n * d.eligible.length, 1);
          if (ways > 3000) continue;
          if (ways > 1) layersChecked++;
          assertEquals(
            busiest(layer, scenario.topology),
            leastBusiest(layer.demands, scenario.topology),
          );
        }
      },
    ),
    { numRuns: 1500 },
  );
  assert(layersChecked > 500, `only ${layersChecked} layers had a choice`);
});

Deno.test('"balanced" never lets the busiest rank send more than "chunked"', () => {
  fc.assert(
    fc.property(
      scenarios({ layers: [1, 2], ranks: [2, 16], slotsPerRank: [1, 8] }),
      (scenario) => {
        const [balanced, chunked] = (["balanced", "chunked"] as const).map(
          (sources) =>
            sendersOf(scenario, sources).layers.map((layer) =>
              busiest(layer, scenario.topology).rank
            ),
        );
        balanced!.forEach((most, layer) =>
          assertLessOrEqual(most, chunked![layer]!)
        );
      },
    ),
    { numRuns: 200 },
  );
});

Deno.test('"chunked" gives the first holders the longer chunks', () => {
  const { layers } = sendersOf(
    scenario(
      [[0, 0, -1, -1, -1, -1, -1]],
      [[0, 0, 0, 0, 0, 0, 0]],
      [0, 0, 0, 0, 0, 0, 0],
    ),
    "chunked",
  );
  assertEquals(layers[0]!.senders, [0, 0, 0, 1, 1]);
});

Deno.test('"chunked" spreads nodes without a holder over all holders', () => {
  // Expert 0 is on ranks 0 and 2; rank 1 is beside rank 0, rank 3 beside rank 2.
  const { layers } = sendersOf(
    scenario(
      [[0, -1, 0, -1, -1, -1]],
      [[0, 0, 0, 0, 0, 0]],
      [0, 0, 1, 1, 2, 2],
    ),
    "chunked",
  );
  assertEquals(layers[0]!.senders, [0, 2, 0, 2]);
});

Deno.test('"chunked" deals destinations out as its rule says', () => {
  fc.assert(
    fc.property(
      scenarios({ layers: [1, 2], ranks: [2, 12], slotsPerRank: [1, 4] }),
      (scenario) => {
        for (
          const { demands, senders } of sendersOf(scenario, "chunked").layers
        ) {
          assertEquals(senders, chunkedSenders(demands));
        }
      },
    ),
    { numRuns: 500 },
  );
});
