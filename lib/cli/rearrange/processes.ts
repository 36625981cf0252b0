// SPDX-License-Identifier: Apache-2.0
// One process per rank, launched here: each runs this command again as one rank,
// and rank 0 prints the report for all.

import { launchRanks } from "../../cluster/launch.ts";
import { StoreServer } from "../../cluster/store_server.ts";
import { UsageError } from "../command.ts";
import type { Flags } from "../flags.ts";
import type { Terminal } from "../terminal.ts";
import type { RearrangeReport } from "./report.ts";
import { setUp } from "./setup.ts";

const RANK_0 = "[rank 0] ";

/** What rank 0 prints. */
type RankDocument =
  | RearrangeReport
  | { readonly error: { readonly name?: string; readonly message: string } };

/** Launches the ranks, waits for all of them, and reads rank 0's report. */
export async function launchJob(
  flags: Flags,
  terminal: Terminal,
): Promise<RearrangeReport> {
  // What no rank could do is refused once, here, and not by each of them.
  using job = await setUp(flags);
  const worldSize = job.topology.ranks;
  const token = crypto.randomUUID();
  await using server = StoreServer.listen({
    worldSize,
    token,
    joinTimeout: job.timeout,
  });
  const lines: string[] = [];
  terminal.progress(`launching ${worldSize} processes`);
  const exits = await launchRanks({
    worldSize,
    server,
    command: Deno.execPath(),
    args: [
      ...["run", "-A", import.meta.resolve("../../../cli.ts"), "rearrange"],
      ...rankArguments(flags, job.devices[0] === "host" ? "host" : "cuda"),
    ],
    onLine: (line, stream) => {
      if (stream === "stderr") terminal.note(line);
      else if (line.startsWith(RANK_0)) lines.push(line.slice(RANK_0.length));
    },
  });
  terminal.progress("");
  const document = parse(lines);
  if (document !== undefined && "error" in document) throw errorOf(document);
  const failed = exits.filter(({ code }) => code !== 0);
  // Ranks that find wrong bytes fail as well, and the report says which.
  if (document && (failed.length === 0 || document.verified === false)) {
    return document;
  }
  const list = failed.map(({ rank, code, signal }) =>
    `rank ${rank} with ${signal ?? `exit code ${code}`}`
  );
  throw new Error(
    list.length > 0
      ? `Cannot complete the job: ${list.join(", ")} ended early`
      : "Cannot complete the job: rank 0 has printed no report",
  );
}

/** The same options for every rank; what was chosen here is spelled out. */
function rankArguments(flags: Flags, device: "host" | "cuda"): string[] {
  const own = new Set(["--processes", "--json"]);
  const chosen = flags.has("device") ? [] : ["--device", device];
  return [...flags.raw.filter((arg) => !own.has(arg)), "--json", ...chosen];
}

function parse(lines: readonly string[]): RankDocument | undefined {
  try {
    return JSON.parse(lines.join("\n"));
  } catch {
    return undefined;
  }
}

/** Rank 0's error as if it had been thrown here. */
function errorOf({ error }: Extract<RankDocument, { error: unknown }>): Error {
  const { message, ...data } = error;
  return data.name === "UsageError"
    ? new UsageError(message)
    : Object.assign(new Error(message), data);
}
