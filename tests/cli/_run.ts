// The command line, in this process or in one of its own, and what it says.

import { assertEquals } from "@std/assert";
import { main } from "../../lib/cli/main.ts";
import type { Terminal } from "../../lib/cli/terminal.ts";

/** What a command said, and how it ended. */
export interface Outcome {
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

/** Runs a command in this process; `progress` counts as stderr. */
export async function run(...args: string[]): Promise<Outcome> {
  let stdout = "";
  let stderr = "";
  const terminal: Terminal = {
    color: false,
    print: (text) => stdout += `${text}\n`,
    note: (text) => stderr += `${text}\n`,
    progress: (text) => stderr += `\r${text}`,
  };
  const code = await main(args, terminal);
  return { code, stdout, stderr };
}

/** The command that users run. */
const CLI = new URL("../../cli.ts", import.meta.url).href;

/** Runs a command as users do. */
export async function runProcess(
  args: readonly string[],
  env: Readonly<Record<string, string>> = {},
  cli = CLI,
): Promise<Outcome> {
  const { code, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
    args: ["run", "-A", cli, ...args],
    env,
  }).output();
  const text = new TextDecoder();
  return { code, stdout: text.decode(stdout), stderr: text.decode(stderr) };
}

/** The one JSON document on stdout; fails if there is anything else. */
// deno-lint-ignore no-explicit-any -- each command has a document of its own
export function documentOf({ stdout }: Outcome): any {
  const document = JSON.parse(stdout);
  assertEquals(typeof document, "object");
  return document;
}

/** The error of a command that was called with --json. */
export function errorOf(outcome: Outcome): { name: string; message: string } {
  const { error, ...rest } = documentOf(outcome);
  assertEquals(rest, {});
  return error;
}
