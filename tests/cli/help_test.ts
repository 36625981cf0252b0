import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { type Command, COMMON } from "../../lib/cli/command.ts";
import { commandHelp, programHelp } from "../../lib/cli/help.ts";
import { COMMANDS } from "../../lib/cli/main.ts";

const command: Command = {
  name: "move",
  summary: "carry things",
  description: "Carries things\nto where they belong.",
  groups: [{
    title: "What",
    note:
      "A PATH is a file or a folder, and it is read before anything moves at all.",
    flags: [
      { name: "from", value: "PATH", type: "text", help: "where it is" },
      {
        name: "all",
        type: "switch",
        help:
          "everything that can be carried, in the order in which it was found",
      },
    ],
  }],
  examples: ["move --from here"],
  run: () => Promise.resolve(0),
};

Deno.test("commandHelp() lays out description, options, notes and examples", () => {
  assertEquals(
    commandHelp(command),
    `Carries things
to where they belong.

Usage: eplb move [options]

What:
  --from PATH  where it is
  --all        everything that can be carried, in the order in which it was
               found
  A PATH is a file or a folder, and it is read before anything moves at all.

Output:
  --json       print exactly one JSON document on stdout, also on failure
  --help       print this help (also -h)

Examples:
  eplb move --from here`,
  );
});

Deno.test("programHelp() lists every command with its summary", () => {
  assertEquals(
    programHelp([command, { ...command, name: "go", summary: "leave" }]),
    `Balances the load of MoE experts by moving their weights between ranks.

Usage: eplb <command> [options]

Commands:
  move  carry things
  go    leave

"eplb <command> --help" tells more, "--version" the version.
Exit codes: 0 done, 1 failed, 2 usage.`,
  );
});

for (const one of COMMANDS) {
  Deno.test(`commandHelp() lists every option of ${one.name}, and fits a terminal`, () => {
    const help = commandHelp(one);
    const lines = help.split("\n");
    const flags = [...one.groups, COMMON].flatMap((group) => group.flags);
    assertEquals(
      lines.filter((line) => line.startsWith("  --"))
        .map((line) => line.trim().split(/ {2,}/)[0]),
      flags.map(({ name, value }) =>
        value === undefined ? `--${name}` : `--${name} ${value}`
      ),
    );
    const words = help.replace(/\s+/g, " ");
    for (const flag of flags) assertStringIncludes(words, flag.help);
    const [text] = help.split("\nExamples:\n");
    for (const line of text!.split("\n")) {
      assert(line.length <= 80, `too long: ${line}`);
    }
    for (const example of one.examples) {
      assertStringIncludes(help, `\n  eplb ${example}`);
    }
  });

  Deno.test(`the table of ${one.name} gives each option one name, and each but switches a value`, () => {
    const flags = [...one.groups, COMMON].flatMap((group) => group.flags);
    const names = flags.map(({ name }) => name);
    assertEquals(new Set(names).size, names.length);
    for (const { name, type, value } of flags) {
      assertEquals(value === undefined, type === "switch", name);
    }
  });
}
