// Rank processes that rearrange, for tests.

import type { StoreServer } from "../../lib/cluster/store_server.ts";
import { type RankProcess, startRankProcesses } from "../_rank_processes.ts";
import type { RankReport, RankTask } from "./_rank_process.ts";

/** Starts one process per rank; each is heard when its engine is connected. */
export function startRanks(
  server: StoreServer,
  task: RankTask | ((rank: number) => RankTask),
): RankProcess<RankReport>[] {
  return startRankProcesses(server, {
    script: new URL("./_rank_process.ts", import.meta.url),
    task: typeof task === "function" ? task : () => task,
    line: "ready",
  });
}
