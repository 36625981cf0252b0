// Changes of workload as they were recorded. Loads are read from a data folder, if there is one.
import { assert } from "@std/assert";
import { imbalance } from "../../lib/metrics.ts";
import type { Placement } from "../../lib/placement.ts";
import { quotaPolicy } from "../../lib/policies/quota.ts";
import { Topology } from "../../lib/topology.ts";
import { dataFile } from "../_data.ts";
import { movedSlots } from "./_contract.ts";

const PHASES = [
  "prefill_in1024",
  "prefill_in4096",
  "decode_in2000out100",
  "decode_in1000out1000",
].map((name) => dataFile(`traces/${name}.json`));

/** Layers with tokens. */
const LAYERS = 58;

/** Sizes, and the mean imbalance and moved slots of a layer that no phase may exceed. */
const TARGETS = [
  { ranks: 8, nodes: 1, redundant: 16, imbalance: 1.005, moved: 1.5 },
  { ranks: 32, nodes: 1, redundant: 64, imbalance: 1.005, moved: 3 },
  { ranks: 32, nodes: 4, redundant: 64, imbalance: 1.01, moved: 4 },
  { ranks: 32, nodes: 1, redundant: 32, imbalance: 1.01, moved: 12 },
  { ranks: 32, nodes: 4, redundant: 32, imbalance: 1.01, moved: 13 },
];

for (const target of TARGETS) {
  const { ranks, nodes, redundant } = target;
  Deno.test({
    name:
      `quotaPolicy() follows phases on ${ranks} ranks, ${nodes} nodes, ${redundant} redundant slots`,
    ignore: PHASES.includes(undefined),
    fn: async () => {
      const job = {
        experts: 256,
        topology: Topology.uniform({ ranks, nodes }),
        slotsPerRank: (256 + redundant) / ranks,
      };
      let current: Placement | undefined;
      for (const url of PHASES) {
        const trace = JSON.parse(await Deno.readTextFile(url!));
        const load = new Float64Array(trace.logical_count.flat());
        const plan = quotaPolicy({ ...job, load, ...(current && { current }) });
        const { shares, placement } = plan;
        const { mean } = imbalance(load, placement, { shares });
        assert(mean <= target.imbalance, `imbalance ${mean}`);
        if (current !== undefined) {
          const moved = movedSlots(current, placement) / LAYERS;
          assert(moved <= target.moved, `${moved} slots moved`);
        }
        current = placement;
      }
    },
  });
}
