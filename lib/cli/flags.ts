// Reading a command line by its table of flags.

import { parseArgs } from "@std/cli/parse-args";
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
  readonly #values: ReadonlyMap<string, string | boolean>;
  readonly #flags: ReadonlyMap<string, Flag>;
  /** The arguments as they were given. */
  readonly raw: readonly string[];

  constructor(
    values: ReadonlyMap<string, string | boolean>,
    flags: ReadonlyMap<string, Flag>,
    raw: readonly string[],
  ) {
    this.#values = values;
    this.#flags = flags;
    this.raw = raw;
  }

  /** Reads the arguments of a command, and refuses what its table does not know. */
  static parse(args: readonly string[], command: Command): Flags {
    const flags = [...command.groups, COMMON].flatMap((group) => group.flags);
    const table = new Map(flags.map((flag) => [flag.name, flag]));
    const switches = flags.filter(({ type }) => type === "switch");
    const parsed = parseArgs([...args], {
      boolean: switches.map(({ name }) => name),
      string: flags.filter(({ type }) => type !== "switch")
        .map(({ name }) => name),
      unknown: (arg) => refuse(arg, table),
    });
    const values = new Map<string, string | boolean>();
    for (const flag of flags) {
      const value = parsed[flag.name];
      if (value === undefined || value === false) continue;
      if (Array.isArray(value)) {
        throw new UsageError(`--${flag.name} is given more than once`);
      }
      values.set(flag.name, checked(flag, value as string | boolean));
    }
    return new Flags(values, table, args);
  }

  /** Whether a switch or an option is given. */
  has(name: string): boolean {
    return this.#values.has(name);
  }

  /** The text of an option; undefined if it is not given. */
  text(name: string): string | undefined {
    const value = this.#values.get(name);
    return typeof value === "string" ? value : undefined;
  }

  /** The number of an option; undefined if it is not given. */
  number(name: string): number | undefined {
    const text = this.text(name);
    return text === undefined
      ? undefined
      : readNumber(this.#flags.get(name)!, text);
  }
}

function refuse(arg: string, table: ReadonlyMap<string, Flag>): never {
  if (!arg.startsWith("-")) {
    throw new UsageError(`Unexpected argument "${arg}"`);
  }
  const name = arg.replace(/^-+/, "").replace(/=.*/, "");
  const guess = nearest(name, [...table.keys()]);
  const hint = guess === undefined ? "" : `, did you mean --${guess}?`;
  throw new UsageError(`Unknown option "${arg}"${hint}`);
}

function checked(flag: Flag, value: string | boolean): string | boolean {
  if (typeof value === "boolean") return value;
  if (value === "") {
    throw new UsageError(`--${flag.name} needs a value: ${flag.value}`);
  }
  if (["count", "number", "bytes"].includes(flag.type)) readNumber(flag, value);
  const { choices } = flag;
  const allowed = choices === undefined ||
    choices.some((choice) =>
      choice === value || (choice.endsWith(":") && value.startsWith(choice))
    );
  if (!allowed) {
    throw new UsageError(
      `--${flag.name} must be one of ${choices.join(", ")}: it is "${value}"`,
    );
  }
  return value;
}

function readNumber(flag: Flag, text: string): number {
  const match = /^(\d+(?:\.\d+)?)\s*([KMG]?i?B?)$/i.exec(text);
  const unit = UNITS[(match?.[2] ?? "").toUpperCase()];
  const value = Number(match?.[1]) * (unit ?? NaN);
  const bare = (match?.[2] ?? "") === "";
  const fits = flag.type === "bytes"
    ? Number.isSafeInteger(value)
    : bare && (flag.type === "number" || Number.isSafeInteger(value));
  if (!fits) {
    const kind = {
      bytes: "a size such as 512MiB",
      count: "a whole number",
      number: "a number",
    }[flag.type as "bytes" | "count" | "number"];
    throw new UsageError(`--${flag.name} must be ${kind}: it is "${text}"`);
  }
  return value;
}
