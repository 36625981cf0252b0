// SPDX-License-Identifier: Apache-2.0
// How a command's failure is told: a note for people, one document for programs.

import { rankIdentity } from "../cluster/identity.ts";
import { EXIT, UsageError } from "./command.ts";
import type { Terminal } from "./terminal.ts";

/** What an error may carry beside its message. */
const DATA = [
  "code",
  "failedRank",
  "committedLayers",
  "ranks",
  "tried",
] as const;

/**
 * Tells what went wrong.
 *
 * @param error What was thrown.
 * @param options Where to tell it, and whether stdout gets a document.
 * @returns The exit code.
 */
export function reportFailure(
  error: unknown,
  options: { readonly terminal: Terminal; readonly json: boolean },
): number {
  const { terminal, json } = options;
  terminal.progress("");
  // Nobody reads stdout anymore if that is what broke.
  const readable = !(error instanceof Deno.errors.BrokenPipe);
  if (json && readable && isFirstRank()) {
    terminal.print(JSON.stringify({ error: describe(error) }, null, 2));
  }
  terminal.note(`error: ${describe(error).message}`);
  if (!(error instanceof UsageError)) return EXIT.failed;
  terminal.note('"--help" tells what there is');
  return EXIT.usage;
}

/** An error as JSON: its name, message, and what data it carries. */
function describe(error: unknown): Readonly<Record<string, unknown>> {
  if (!(error instanceof Error)) return { message: String(error) };
  const { name, message } = error;
  const values = error as unknown as Readonly<Record<string, unknown>>;
  const data = DATA.filter((key) => values[key] !== undefined)
    .map((key) => [key, values[key]]);
  return { name, message, ...Object.fromEntries(data) };
}

/** Of the processes of one job, rank 0 is the one that prints. */
function isFirstRank(): boolean {
  try {
    return (rankIdentity((name) => Deno.env.get(name))?.rank ?? 0) === 0;
  } catch {
    return true;
  }
}
