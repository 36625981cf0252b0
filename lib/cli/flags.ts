// SPDX-License-Identifier: Apache-2.0
// Reading a command line by its table of flags.

import { INT32_MAX } from "../_check.ts";
import { type Command, COMMON, type Flag, UsageError } from "./command.ts";
import { nearest } from "./nearest.ts";

const UNITS: Readonly<Record<string, number>> = {
  "": 1,
  B: 1,
  KB: 1e3,
  MB: 1e6,
  GB: 1e9,
  KIB: 2 ** 10,
  MIB: 2 ** 20,
  GIB: 2 ** 30,
};

/** The flags of one call, checked against their table. */
export class Flags {
  /** Text of each option that is given; "" for a switch. */
  readonly #texts: ReadonlyMap<string, string>;
  readonly #table: ReadonlyMap<string, Flag>;
  /** The arguments as they were given. */
  readonly raw: readonly string[];

  private constructor(
    texts: ReadonlyMap<string, string>,
    table: ReadonlyMap<string, Flag>,
    raw: readonly string[],
  ) {
    this.#texts = texts;
    this.#table = table;
    this.raw = raw;
  }

  /** Reads the arguments of a command, and refuses what its table does not know. */
  static parse(args: readonly string[], command: Command): Flags {
    const flags = [...command.groups, COMMON].flatMap((group) => group.flags);
    const table = new Map(flags.map((flag) => [flag.name, flag]));
    return new Flags(readTexts(args, table), table, args);
  }

  /** Whether a switch or an option is given. */
  has(name: string): boolean {
    return this.#texts.has(name);
  }

  /** The text of an option; undefined if it is not given. */
  text(name: string): string | undefined {
    return this.#texts.get(name);
  }

  /** The number of an option; undefined if it is not given. */
  number(name: string): number | undefined {
    const text = this.text(name);
    return text === undefined
      ? undefined
      : readNumber(this.#table.get(name)!, text);
  }

  /** An option in GB/s as bytes per second; undefined if it is not given. */
  rate(name: string): number | undefined {
    const gigabytes = this.number(name);
    return gigabytes === undefined ? undefined : gigabytes * 1e9;
  }
}

/** Takes `--name`, `--name value` and `--name=value` apart. */
function readTexts(
  args: readonly string[],
  table: ReadonlyMap<string, Flag>,
): Map<string, string> {
  const texts = new Map<string, string>();
  for (let i = 0; i < args.length; i++) {
    const arg = args[i] === "-h" ? "--help" : args[i]!;
    const [, name = "", inline] = /^--([^=]+)(?:=(.*))?$/s.exec(arg) ?? [];
    const flag = table.get(name);
    if (flag === undefined) throw unknown(arg, table);
    if (texts.has(name)) {
      throw new UsageError(`--${name} is given more than once`);
    }
    if (flag.type === "switch") {
      if (inline !== undefined) {
        throw new UsageError(`--${name} takes no value: it is "${inline}"`);
      }
      texts.set(name, "");
    } else {
      // A value that begins with two dashes is given as --name=value.
      const next = args[i + 1]?.startsWith("--") ? undefined : args[i + 1];
      texts.set(name, checked(flag, inline ?? next));
      if (inline === undefined) i++;
    }
  }
  return texts;
}

function unknown(arg: string, table: ReadonlyMap<string, Flag>): UsageError {
  if (!arg.startsWith("-")) {
    return new UsageError(`Unexpected argument "${arg}"`);
  }
  const [option] = arg.split("=");
  const guess = nearest(option!.replace(/^-+/, ""), [...table.keys()]);
  const hint = guess === undefined ? "" : `, did you mean --${guess}?`;
  return new UsageError(`Unknown option "${option}"${hint}`);
}

function checked(flag: Flag, text: string | undefined): string {
  if (text === undefined || text === "") {
    throw new UsageError(`--${flag.name} needs a value: ${flag.value}`);
  }
  if (flag.type !== "text") readNumber(flag, text);
  if (flag.choices?.includes(text) === false) {
    throw new UsageError(
      `--${flag.name} must be one of ${
        flag.choices.join(", ")
      }: it is "${text}"`,
    );
  }
  return text;
}

/** What an option of a numeric type asks for. */
const KINDS: Readonly<Record<string, string>> = {
  bytes: "a size such as 512MiB",
  count: "a whole number from 1",
  number: "a number above 0",
};

function readNumber(flag: Flag, text: string): number {
  const { name, type } = flag;
  const [, digits, unit = ""] =
    /^(\d+(?:\.\d+)?)\s*([KMG]?i?B?)$/i.exec(text) ?? [];
  const scale = UNITS[unit.toUpperCase()] ?? NaN;
  const value = type === "bytes"
    ? Math.floor(Number(digits) * scale)
    : Number(unit === "" ? digits : NaN);
  const fits = type === "number" || Number.isInteger(value);
  const max = flag.max ??
    (type === "count" ? INT32_MAX : Number.MAX_SAFE_INTEGER);
  if (fits && value > 0 && value <= max) return value;
  const limit = value > max ? `, at most ${max}` : "";
  throw new UsageError(
    `--${name} must be ${KINDS[type]}${limit}: it is "${text}"`,
  );
}
