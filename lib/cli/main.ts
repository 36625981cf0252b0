// SPDX-License-Identifier: Apache-2.0

import meta from "../../deno.json" with { type: "json" };
import { bench } from "./bench.ts";
import { build } from "./build.ts";
import { type Command, EXIT, UsageError } from "./command.ts";
import { doctor } from "./doctor.ts";
import { reportFailure } from "./failure.ts";
import { Flags } from "./flags.ts";
import { commandHelp, programHelp } from "./help.ts";
import { nearest } from "./nearest.ts";
import { plan } from "./plan.ts";
import { rearrange } from "./rearrange.ts";
import { simulate } from "./simulate.ts";
import type { Terminal } from "./terminal.ts";

/** All subcommands, in the order of the help. */
export const COMMANDS: readonly Command[] = [
  rearrange,
  plan,
  simulate,
  bench,
  doctor,
  build,
];

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
    return reportFailure(error, { terminal, json: args.includes("--json") });
  }
}

async function dispatch(
  args: readonly string[],
  terminal: Terminal,
): Promise<number> {
  const [name, ...rest] = args;
  switch (name) {
    case undefined:
      terminal.note(programHelp(COMMANDS));
      return EXIT.usage;
    case "--help":
    case "-h":
      terminal.print(programHelp(COMMANDS));
      return EXIT.done;
    case "--version":
      terminal.print(meta.version);
      return EXIT.done;
  }
  const command = commandNamed(name);
  const flags = Flags.parse(rest, command);
  if (flags.has("help")) {
    terminal.print(commandHelp(command));
    return EXIT.done;
  }
  return await command.run(flags, terminal);
}

function commandNamed(name: string): Command {
  const command = COMMANDS.find((one) => one.name === name);
  if (command !== undefined) return command;
  if (name.startsWith("-")) {
    throw new UsageError(`"${name}" must come after a command`);
  }
  const guess = nearest(name, COMMANDS.map((one) => one.name));
  const hint = guess === undefined ? "" : `, did you mean "${guess}"?`;
  throw new UsageError(`Unknown command "${name}"${hint}`);
}
