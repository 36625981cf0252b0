// One process per rank, launched here: each runs this command again as one rank,
// and rank 0 prints the report for all.

import { launchRanks } from "../../cluster/launch.ts";
import { StoreServer } from "../../cluster/store_server.ts";
import type { Flags } from "../flags.ts";
import type { Terminal } from "../terminal.ts";
import type { RearrangeReport } from "./report.ts";
import { chooseWorld } from "./setup.ts";

const RANK_0 = "[rank 0] ";

/** Launches the ranks, waits for all of them, and reads rank 0's report. */
export async function launchJob(
  flags: Flags,
  terminal: Terminal,
): Promise<RearrangeReport> {
  const { ranks: worldSize, device } = chooseWorld(flags, undefined);
  const token = crypto.randomUUID();
  await using server = StoreServer.listen({ worldSize, token });
  const document: string[] = [];
  terminal.progress(`launching ${worldSize} processes`);
  const exits = await launchRanks({
    worldSize,
    server,
    command: Deno.execPath(),
    args: ["run", "-A", import.meta.resolve("../../../cli.ts"), "rearrange"]
      .concat(rankArguments(flags, device)),
    onLine: (line, stream) => {
      if (stream === "stderr") terminal.note(line);
      else if (line.startsWith(RANK_0)) {
        document.push(line.slice(RANK_0.length));
      }
    },
  });
  terminal.progress("");
  const report = parse(document);
  const failed = exits.filter(({ code }) => code !== 0);
  if (report !== undefined && (failed.length === 0 || !report.verified)) {
    return report;
  }
  const list = failed.map(({ rank, code, signal }) =>
    `rank ${rank} with ${signal ?? `exit code ${code}`}`
  );
  throw new Error(
    `Cannot complete the job: ${list.join(", ") || "no rank"} ended early`,
  );
}

/** The same options for every rank; what was chosen here is spelled out. */
function rankArguments(flags: Flags, device: "host" | "cuda"): string[] {
  const own = new Set(["--processes", "--json"]);
  const args = flags.raw.filter((arg) => !own.has(arg));
  return [
    ...args,
    "--json",
    ...(flags.has("device") ? [] : ["--device", device]),
  ];
}

function parse(lines: readonly string[]): RearrangeReport | undefined {
  try {
    const document = JSON.parse(lines.join("\n"));
    return "error" in document ? undefined : document;
  } catch {
    return undefined;
  }
}
