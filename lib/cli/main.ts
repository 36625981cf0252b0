import meta from "../../deno.json" with { type: "json" };
import { build } from "./build.ts";
import { type Command, EXIT, UsageError } from "./command.ts";
import { doctor } from "./doctor.ts";
import { Flags } from "./flags.ts";
import { commandHelp, programHelp } from "./help.ts";
import { nearest } from "./nearest.ts";
import { rearrange } from "./rearrange.ts";
import type { Terminal } from "./terminal.ts";

/** All subcommands, in the order of the help. */
export const COMMANDS: readonly Command[] = [rearrange, doctor, build];

/**
 * Runs one command line.
 *
 * @param args The arguments, without the program's name.
 * @param terminal Where its output goes.
 * @returns The exit code: 0 done, 1 failed, 2 usage.
 */
export async function main(
  args: readonly string[],
  terminal: Terminal,
): Promise<number> {
  try {
    return await dispatch(args, terminal);
  } catch (error) {
    terminal.progress("");
    const message = error instanceof Error ? error.message : String(error);
    const usage = error instanceof UsageError;
    if (args.includes("--json") && !usage) {
      terminal.print(JSON.stringify({ error: describe(error) }, null, 2));
    }
    terminal.note(`error: ${message}`);
    if (usage) terminal.note('"--help" tells what there is');
    return usage ? EXIT.usage : EXIT.failed;
  }
}

async function dispatch(
  args: readonly string[],
  terminal: Terminal,
): Promise<number> {
  const [name, ...rest] = args;
  if (name === undefined || name === "--help" || name === "help") {
    terminal.print(programHelp(COMMANDS));
    return name === undefined ? EXIT.usage : EXIT.done;
  }
  if (name === "--version") {
    terminal.print(meta.version);
    return EXIT.done;
  }
  const command = COMMANDS.find((one) => one.name === name);
  if (command === undefined) {
    const guess = nearest(name, COMMANDS.map((one) => one.name));
    const hint = guess === undefined ? "" : `, did you mean "${guess}"?`;
    throw new UsageError(`Unknown command "${name}"${hint}`);
  }
  const flags = Flags.parse(rest, command);
  if (flags.has("help")) {
    terminal.print(commandHelp(command));
    return EXIT.done;
  }
  return await command.run(flags, terminal);
}

/** An error as JSON: its name, message, and what data it carries. */
function describe(error: unknown): Record<string, unknown> {
  if (!(error instanceof Error)) return { message: String(error) };
  const data: Record<string, unknown> = {};
  for (const key of ["code", "failedRank", "committedLayers", "ranks"]) {
    const value = (error as unknown as Record<string, unknown>)[key];
    if (value !== undefined) data[key] = value;
  }
  return { name: error.name, message: error.message, ...data };
}
