// Rank processes for tests, and what they leave behind.

import type { StoreServer } from "../../lib/cluster/store_server.ts";
import type { RankReport, RankTask } from "./_rank_process.ts";

/** One rank process. */
export interface RankProcess {
  readonly rank: number;
  readonly child: Deno.ChildProcess;
  /** Resolves when the engine is connected. */
  readonly ready: Promise<void>;
  /** The last line, if the process lived to print it. */
  readonly report: Promise<RankReport | undefined>;
}

/** Starts one process per rank; the store lives in this process. */
export function startRanks(
  server: StoreServer,
  task: RankTask | ((rank: number) => RankTask),
): RankProcess[] {
  const { worldSize, host, port, token } = server;
  const script = new URL("./_rank_process.ts", import.meta.url).href;
  return Array.from({ length: worldSize }, (_, rank) => {
    const one = typeof task === "function" ? task(rank) : task;
    const child = new Deno.Command(Deno.execPath(), {
      args: ["run", "-A", script, JSON.stringify(one)],
      env: {
        EPLB_RANK: String(rank),
        EPLB_WORLD_SIZE: String(worldSize),
        EPLB_LOCAL_RANK: String(rank),
        EPLB_STORE: `${host}:${port}`,
        EPLB_TOKEN: token,
      },
      stdout: "piped",
      stderr: "inherit",
    }).spawn();
    const { promise: ready, resolve } = Promise.withResolvers<void>();
    return { rank, child, ready, report: readReport(child, resolve) };
  });
}

async function readReport(
  child: Deno.ChildProcess,
  onReady: () => void,
): Promise<RankReport | undefined> {
  let text = "";
  for await (const part of child.stdout.pipeThrough(new TextDecoderStream())) {
    text += part;
    if (text.includes("ready\n")) onReady();
  }
  await child.status;
  onReady();
  const last = text.trim().split("\n").at(-1) ?? "";
  return last.startsWith("{") ? JSON.parse(last) : undefined;
}
