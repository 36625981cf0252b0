// Help texts, made from the tables of commands and flags.

import { type Command, COMMON, type Flag } from "./command.ts";

const PROGRAM = "eplb";

/** Help of the whole program. */
export function programHelp(commands: readonly Command[]): string {
  const width = Math.max(...commands.map(({ name }) => name.length));
  const rows = commands.map(({ name, summary }) =>
    `  ${name.padEnd(width)}  ${summary}`
  );
  return [
    "Balances the load of MoE experts by moving their weights between ranks.",
    "",
    `Usage: ${PROGRAM} <command> [options]`,
    "",
    "Commands:",
    ...rows,
    "",
    `"${PROGRAM} <command> --help" tells more. Exit codes: 0 done, 1 failed, 2 usage.`,
  ].join("\n");
}

/** Help of one command. */
export function commandHelp(command: Command): string {
  const groups = [...command.groups, COMMON];
  const width = Math.max(
    ...groups.flatMap(({ flags }) => flags.map((flag) => left(flag).length)),
  );
  return [
    command.description,
    "",
    `Usage: ${PROGRAM} ${command.name} [options]`,
    ...groups.flatMap(({ title, flags }) => [
      "",
      `${title}:`,
      ...flags.map((flag) => `  ${left(flag).padEnd(width)}  ${flag.help}`),
    ]),
    ...(command.examples.length === 0 ? [] : ["", "Examples:"]),
    ...command.examples.map((example) => `  ${PROGRAM} ${example}`),
  ].join("\n");
}

function left(flag: Flag): string {
  return `--${flag.name}${flag.value === undefined ? "" : ` ${flag.value}`}`;
}
