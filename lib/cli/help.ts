// SPDX-License-Identifier: Apache-2.0
// Help texts, made from the tables of commands and flags.

import { type Command, COMMON, type Flag, type FlagGroup } from "./command.ts";

const PROGRAM = "eplb";
/** Columns of a terminal that nobody has made wider. */
const WIDTH = 80;

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
    `"${PROGRAM} <command> --help" tells more, "--version" the version.`,
    "Exit codes: 0 done, 1 failed, 2 usage.",
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
    ...groups.flatMap((group) => groupHelp(group, width)),
    "",
    "Examples:",
    ...command.examples.map((example) => `  ${PROGRAM} ${example}`),
  ].join("\n");
}

function groupHelp({ title, note, flags }: FlagGroup, width: number): string[] {
  const indent = " ".repeat(width + 4);
  return [
    "",
    `${title}:`,
    ...flags.flatMap((flag) => {
      const [first, ...more] = wrap(flag.help, WIDTH - indent.length);
      return [
        `  ${left(flag).padEnd(width)}  ${first}`,
        ...more.map((line) => indent + line),
      ];
    }),
    ...(note === undefined ? [] : wrap(note, WIDTH - 2)).map((line) =>
      `  ${line}`
    ),
  ];
}

function left(flag: Flag): string {
  return `--${flag.name}${flag.value === undefined ? "" : ` ${flag.value}`}`;
}

/** Breaks a text between words into lines of at most so many characters. */
function wrap(text: string, width: number): string[] {
  const lines: string[] = [];
  for (const word of text.split(" ")) {
    const last = lines.at(-1);
    if (last === undefined || last.length + 1 + word.length > width) {
      lines.push(word);
    } else {
      lines[lines.length - 1] = `${last} ${word}`;
    }
  }
  return lines;
}
