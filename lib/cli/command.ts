// SPDX-License-Identifier: Apache-2.0
// What a subcommand is: a row of the table that help, parsing and dispatch read.

import type { Flags } from "./flags.ts";
import type { Terminal } from "./terminal.ts";

/** One option of a command. */
export interface Flag {
  /** Name without the dashes, kebab-case. */
  readonly name: string;
  /** What follows the name, such as "N" or "DIR"; a switch has none. */
  readonly value?: string;
  /** How the value is read; every number must be above 0. */
  readonly type: "switch" | "text" | "count" | "number" | "bytes";
  /** The values allowed. */
  readonly choices?: readonly string[];
  /** The largest number allowed; that of an int32 for counts. */
  readonly max?: number;
  /** What it does, and its default. */
  readonly help: string;
}

/** A group of options under one heading of the help. */
export interface FlagGroup {
  /** Heading, such as "Weights". */
  readonly title: string;
  /** What holds for several of its options. */
  readonly note?: string;
  /** Its options. */
  readonly flags: readonly Flag[];
}

/** A subcommand. */
export interface Command {
  /** What it is called by. */
  readonly name: string;
  /** One line for the list of commands. */
  readonly summary: string;
  /** A paragraph for the command's own help. */
  readonly description: string;
  /** Its options, beside those of {@linkcode COMMON}. */
  readonly groups: readonly FlagGroup[];
  /** Example calls, without the program's name. */
  readonly examples: readonly string[];
  /** Does the work; returns the exit code. */
  readonly run: (flags: Flags, terminal: Terminal) => Promise<number>;
}

/** A mistake in the command line: exit code 2, and a pointer to the help. */
export class UsageError extends Error {
  constructor(message: string) {
    super(message);
    this.name = "UsageError";
  }
}

/** Waits for what only options can make fail with a RangeError: a usage mistake. */
export async function fromOptions<T>(make: () => T | Promise<T>): Promise<T> {
  try {
    return await make();
  } catch (error) {
    if (error instanceof RangeError) throw new UsageError(error.message);
    throw error;
  }
}

/** Exit codes. */
export const EXIT = { done: 0, failed: 1, usage: 2 } as const;

/** Options every command has. */
export const COMMON: FlagGroup = {
  title: "Output",
  flags: [
    {
      name: "json",
      type: "switch",
      help: "print exactly one JSON document on stdout, also on failure",
    },
    { name: "help", type: "switch", help: "print this help (also -h)" },
  ],
};
