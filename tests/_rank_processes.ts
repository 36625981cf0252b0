// Processes of a job: one per rank, each told what to do by its first argument, and reporting in its
// last line. The store lives in this process.

import type { StoreServer } from "../lib/cluster/store_server.ts";

/** One rank's process. */
export interface RankProcess<Report> {
  readonly rank: number;
  readonly child: Deno.ChildProcess;
  /** Resolves when it has printed the line that was asked for, or has ended. */
  readonly heard: Promise<void>;
  /** The last line, if the process lived to print it. */
  readonly report: Promise<Report | undefined>;
}

/** Starts a script once for each rank of a store; `line` is what to listen for. */
export function startRankProcesses<Task, Report>(
  server: StoreServer,
  options: {
    readonly script: URL;
    readonly task: (rank: number) => Task;
    readonly line: string;
  },
): RankProcess<Report>[] {
  const { worldSize, host, port, token } = server;
  const { script, task, line } = options;
  return Array.from({ length: worldSize }, (_, rank) => {
    const child = new Deno.Command(Deno.execPath(), {
      args: ["run", "-A", script.href, JSON.stringify(task(rank))],
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
    const { promise: heard, resolve } = Promise.withResolvers<void>();
    const report = readReport<Report>(child, { line, onLine: resolve });
    return { rank, child, heard, report };
  });
}

async function readReport<Report>(
  child: Deno.ChildProcess,
  { line, onLine }: { readonly line: string; readonly onLine: () => void },
): Promise<Report | undefined> {
  let text = "";
  for await (const part of child.stdout.pipeThrough(new TextDecoderStream())) {
    text += part;
    if (text.includes(`${line}\n`)) onLine();
  }
  await child.status;
  onLine();
  const last = text.trim().split("\n").at(-1) ?? "";
  return last.startsWith("{") ? JSON.parse(last) : undefined;
}
