// SPDX-License-Identifier: Apache-2.0

import { rankIdentity } from "../cluster/identity.ts";
import { type Command, EXIT } from "./command.ts";
import type { Flags } from "./flags.ts";
import { REARRANGE_FLAGS } from "./rearrange/flags.ts";
import { runJob } from "./rearrange/job.ts";
import { launchJob } from "./rearrange/processes.ts";
import { runAsRank } from "./rearrange/rank.ts";
import {
  makeReport,
  type RearrangeReport,
  reportText,
} from "./rearrange/report.ts";
import { setUp } from "./rearrange/setup.ts";
import type { Terminal } from "./terminal.ts";

/** `eplb rearrange`, the main job. */
export const rearrange: Command = {
  name: "rearrange",
  summary: "move expert weights between ranks until they are where a map says",
  description:
    "Loads or makes up the weights of an MoE model, spread over ranks as --from says,\n" +
    "moves them in place until they are where --to says, and verifies every byte.\n\n" +
    "Started by torchrun, srun or mpirun (or with EPLB_RANK, EPLB_WORLD_SIZE,\n" +
    "EPLB_LOCAL_RANK, EPLB_STORE and EPLB_TOKEN set), each process is one rank of the\n" +
    "job, and rank 0 prints the report.",
  groups: REARRANGE_FLAGS,
  examples: [
    "rearrange --shape tiny --ranks 8 --nodes 2",
    "rearrange --shape deepseek-r1 --layers 58 --slots 9 --experts 16 --to random:1",
    "rearrange --weights Mixtral-8x7B --from old.json --to new.json --save out",
    "rearrange --ranks 8 --processes --load zipf:1 --to deepseek --json",
  ],
  run: async (flags, terminal) => {
    const identity = rankIdentity((name) => Deno.env.get(name));
    const report = identity !== undefined
      ? await runAsRank(flags, { identity, terminal })
      : flags.has("processes")
      ? await launchJob(flags, terminal)
      : await runHere(flags, terminal);
    // One document for the whole job: rank 0's.
    if (identity === undefined || identity.rank === 0) {
      terminal.print(
        flags.has("json")
          ? JSON.stringify(report, null, 2)
          : reportText(report, terminal.color),
      );
    }
    return report.verified === false ? EXIT.failed : EXIT.done;
  },
};

async function runHere(
  flags: Flags,
  terminal: Terminal,
): Promise<RearrangeReport> {
  using job = await setUp(flags);
  return makeReport(job, await runJob(job, terminal));
}
