// deno-lint-ignore-file no-console -- this is a program
// SPDX-License-Identifier: Apache-2.0
// deno run -A examples/serve/main.ts [--help]

import {
  launchRanks,
  rankIdentity,
  StoreClient,
  StoreServer,
} from "@eplb/eplb";
import { wholeWorld } from "./exchange.ts";
import { type Arguments, HELP, readArguments } from "./options.ts";
import { formatReport, type ServeReport } from "./report.ts";
import { serve } from "./serve.ts";

/** Runs the program; returns its exit code. */
async function main(args: readonly string[]): Promise<number> {
  let wanted: Arguments;
  try {
    wanted = readArguments(args);
  } catch (error) {
    console.error(messageOf(error));
    return 2;
  }
  if (wanted.help) {
    console.log(HELP);
    return 0;
  }
  try {
    if (Deno.env.has("EPLB_RANK")) return await runRank(wanted);
    if (wanted.processes) return await launch(wanted, args);
    const report = await serve(wanted.serve, wholeWorld(wanted.serve.ranks));
    print(report, wanted);
    return 0;
  } catch (error) {
    console.error(messageOf(error));
    return 1;
  }
}

/** Starts this program once for each rank; rank 0 prints the report. */
async function launch(
  { serve: { ranks } }: Arguments,
  args: readonly string[],
): Promise<number> {
  await using server = StoreServer.listen({
    worldSize: ranks,
    token: crypto.randomUUID(),
  });
  const exits = await launchRanks({
    worldSize: ranks,
    server,
    command: Deno.execPath(),
    args: ["run", "-A", import.meta.filename!, ...args],
  });
  return exits.every(({ code }) => code === 0) ? 0 : 1;
}

/** Is one of the ranks that {@linkcode launch} has started. */
async function runRank(wanted: Arguments): Promise<number> {
  const identity = rankIdentity((name) => Deno.env.get(name))!;
  const { rank, worldSize: ranks, token } = identity;
  await using cluster = await StoreClient.connect({
    host: identity.storeHost,
    port: identity.storePort,
    token,
    rank,
  });
  try {
    const report = await serve(wanted.serve, {
      ranks,
      locals: [rank],
      cluster,
    });
    if (rank === 0) print(report, wanted);
    return 0;
  } catch (error) {
    // The others need not find out by waiting.
    await cluster.fail(messageOf(error));
    console.error(`rank ${rank}: ${messageOf(error)}`);
    return 1;
  }
}

function print(report: ServeReport, { json }: Arguments): void {
  const color = Deno.stdout.isTerminal() && !Deno.noColor;
  console.log(json ? JSON.stringify(report) : formatReport(report, { color }));
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

if (import.meta.main) Deno.exit(await main(Deno.args));
