import { assertEquals, assertGreater, assertStringIncludes } from "@std/assert";
import meta from "../../deno.json" with { type: "json" };
import { commandHelp, programHelp } from "../../lib/cli/help.ts";
import { COMMANDS, main } from "../../lib/cli/main.ts";
import "../_native.ts";
import { errorOf, run, runProcess } from "./_run.ts";

Deno.test("main() without a command shows the help on stderr and fails as usage", async () => {
  assertEquals(await run(), {
    code: 2,
    stdout: "",
    stderr: `${programHelp(COMMANDS)}\n`,
  });
});

Deno.test("main() prints the help and the version on stdout", async () => {
  const help = { code: 0, stdout: `${programHelp(COMMANDS)}\n`, stderr: "" };
  assertEquals(await run("--help"), help);
  assertEquals(await run("-h"), help);
  const version = { code: 0, stdout: `${meta.version}\n`, stderr: "" };
  assertEquals(await run("--version"), version);
});

for (const command of COMMANDS) {
  Deno.test(`main() prints the help of ${command.name} and does nothing else`, async () => {
    const stdout = `${commandHelp(command)}\n`;
    for (const flag of ["--help", "-h"]) {
      const outcome = await run(command.name, flag);
      assertEquals(outcome, { code: 0, stdout, stderr: "" });
    }
  });

  Deno.test(`${command.name} refuses unknown options with exit code 2`, async () => {
    const { code, stdout, stderr } = await run(command.name, "--jso");
    assertEquals([code, stdout], [2, ""]);
    assertStringIncludes(
      stderr,
      'error: Unknown option "--jso", did you mean --json?\n',
    );
    assertStringIncludes(stderr, '"--help" tells what there is\n');
  });
}

Deno.test("main() names the command that was probably meant", async () => {
  const near = await run("rearange", "--ranks", "4");
  assertEquals([near.code, near.stdout], [2, ""]);
  assertStringIncludes(
    near.stderr,
    'Unknown command "rearange", did you mean "rearrange"?\n',
  );
  const far = await run("dance");
  assertEquals([far.code, far.stdout], [2, ""]);
  assertStringIncludes(far.stderr, 'Unknown command "dance"\n');
});

Deno.test("main() refuses options before the command", async () => {
  const { code, stderr } = await run("--ranks", "4", "rearrange");
  assertEquals(code, 2);
  assertStringIncludes(stderr, '"--ranks" must come after a command\n');
});

for (
  const { args, code, name, message } of [
    {
      args: ["--json"],
      code: 2,
      name: "UsageError",
      message: '"--json" must come after a command',
    },
    {
      args: ["dance", "--json"],
      code: 2,
      name: "UsageError",
      message: 'Unknown command "dance"',
    },
    {
      args: ["rearrange", "--json", "--ranks", "none"],
      code: 2,
      name: "UsageError",
      message: '--ranks must be a whole number from 1: it is "none"',
    },
    {
      args: ["rearrange", "--json", "--json"],
      code: 2,
      name: "UsageError",
      message: "--json is given more than once",
    },
    {
      args: ["rearrange", "--from", "/no/map.json", "--json"],
      code: 1,
      name: "Error",
      message: 'Cannot read "/no/map.json": no such file',
    },
  ]
) {
  Deno.test(`main() prints one document of the error of ${JSON.stringify(args)}`, async () => {
    const outcome = await run(...args);
    assertEquals(outcome.code, code);
    assertEquals(errorOf(outcome), { name, message });
    assertStringIncludes(outcome.stderr, `error: ${message}\n`);
  });
}

Deno.test("main() fails quietly when nobody reads its output anymore", async () => {
  const notes: string[] = [];
  const code = await main(["rearrange", "--help"], {
    color: false,
    print: () => {
      throw new Deno.errors.BrokenPipe("Broken pipe");
    },
    note: (text) => notes.push(text),
    progress: () => {},
  });
  assertEquals([code, notes], [1, ["error: Broken pipe"]]);
});

Deno.test("cli.ts passes arguments, streams and exit codes on", async () => {
  const [none, version, failed] = await Promise.all([
    runProcess([]),
    runProcess(["--version"]),
    runProcess(["rearrange", "--json", "--to", "/no/map.json"]),
  ]);
  assertEquals([none.code, none.stdout], [2, ""]);
  assertStringIncludes(none.stderr, "Usage: eplb <command> [options]");
  assertEquals(version, { code: 0, stdout: `${meta.version}\n`, stderr: "" });
  assertEquals(failed.code, 1);
  assertEquals(
    errorOf(failed).message,
    'Cannot read "/no/map.json": no such file',
  );
  assertEquals(
    failed.stderr,
    'error: Cannot read "/no/map.json": no such file\n',
  );
});

Deno.test("cli.ts writes a document to a pipe whole, whatever its size", async () => {
  // A thousand runs make a document that does not fit the buffer of a pipe.
  const { code, stdout } = await runProcess([
    ...["rearrange", "--json", "--device", "host", "--ranks", "2"],
    ...["--layers", "1", "--experts", "2", "--scale", "64"],
    ...["--repeat", "1000", "--no-verify"],
  ]);
  assertEquals(code, 0);
  assertGreater(stdout.length, 65_536);
  assertEquals(JSON.parse(stdout).runs.length, 1000);
});
