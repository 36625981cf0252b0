import {
  assert,
  assertEquals,
  assertFalse,
  assertStrictEquals,
  assertThrows,
} from "@std/assert";
import { type Command, UsageError } from "../../lib/cli/command.ts";
import { Flags } from "../../lib/cli/flags.ts";
import { nearest } from "../../lib/cli/nearest.ts";

const command: Command = {
  name: "move",
  summary: "",
  description: "",
  groups: [{
    title: "What",
    flags: [
      { name: "ranks", value: "N", type: "count", max: 64, help: "" },
      { name: "seconds", value: "S", type: "number", max: 1000, help: "" },
      { name: "staging", value: "BYTES", type: "bytes", help: "" },
      { name: "to", value: "FILE", type: "text", help: "" },
      {
        name: "color",
        value: "red|blue",
        type: "text",
        choices: ["red", "blue"],
        help: "",
      },
      {
        name: "sets",
        value: "1|2",
        type: "count",
        choices: ["1", "2"],
        help: "",
      },
    ],
  }, {
    title: "How",
    flags: [
      { name: "verify", type: "switch", help: "" },
      { name: "no-verify", type: "switch", help: "" },
    ],
  }],
  examples: [],
  run: () => Promise.resolve(0),
};

function parse(...args: string[]): Flags {
  return Flags.parse(args, command);
}

Deno.test("Flags.parse() reads options with a space or an equals sign", () => {
  const flags = parse("--ranks", "8", "--to=new.json", "--seconds=0.25");
  assertEquals(flags.number("ranks"), 8);
  assertEquals(flags.text("ranks"), "8");
  assertEquals(flags.text("to"), "new.json");
  assertEquals(flags.number("seconds"), 0.25);
});

Deno.test("Flags.parse() leaves what is not given undefined", () => {
  const flags = parse();
  assertStrictEquals(flags.number("ranks"), undefined);
  assertStrictEquals(flags.text("to"), undefined);
  assertFalse(flags.has("verify"));
  assertFalse(flags.has("json"));
});

Deno.test("Flags.parse() knows every command's --json and --help, and -h", () => {
  assert(parse("--json").has("json"));
  assert(parse("--help").has("help"));
  assert(parse("-h").has("help"));
});

Deno.test("Flags.parse() keeps --no-verify apart from --verify", () => {
  const flags = parse("--no-verify");
  assert(flags.has("no-verify"));
  assertFalse(flags.has("verify"));
});

Deno.test("Flags.parse() takes whatever follows an option as its value, but no other option", () => {
  assertEquals(parse("--to", "-").text("to"), "-");
  assertEquals(parse("--to", "verify").text("to"), "verify");
  assertEquals(parse("--to=a=b").text("to"), "a=b");
  assertEquals(parse("--to=--odd").text("to"), "--odd");
  assertThrows(
    () => parse("--to", "--verify"),
    UsageError,
    "--to needs a value: FILE",
  );
});

Deno.test("Flags.raw is the arguments as they were given", () => {
  const args = ["--ranks", "8", "--verify"];
  assertEquals(parse(...args).raw, args);
});

for (
  const { args, message } of [
    {
      args: ["--rank", "4"],
      message: 'Unknown option "--rank", did you mean --ranks?',
    },
    {
      args: ["--rnaks=4"],
      message: 'Unknown option "--rnaks", did you mean --ranks?',
    },
    {
      args: ["-ranks", "4"],
      message: 'Unknown option "-ranks", did you mean --ranks?',
    },
    {
      args: ["--noverify"],
      message: 'Unknown option "--noverify", did you mean --no-verify?',
    },
    {
      args: ["--jsno"],
      message: 'Unknown option "--jsno", did you mean --json?',
    },
    { args: ["--zebra"], message: 'Unknown option "--zebra"' },
    { args: ["-x"], message: 'Unknown option "-x"' },
    { args: ["--"], message: 'Unknown option "--"' },
    { args: ["new.json"], message: 'Unexpected argument "new.json"' },
    { args: ["--verify", "yes"], message: 'Unexpected argument "yes"' },
    { args: ["--ranks"], message: "--ranks needs a value: N" },
    { args: ["--ranks="], message: "--ranks needs a value: N" },
    { args: ["--ranks", ""], message: "--ranks needs a value: N" },
    { args: ["--ranks", "--verify"], message: "--ranks needs a value: N" },
    {
      args: ["--verify=true"],
      message: '--verify takes no value: it is "true"',
    },
    {
      args: ["--no-verify=false"],
      message: '--no-verify takes no value: it is "false"',
    },
    { args: ["--json="], message: '--json takes no value: it is ""' },
    {
      args: ["--verify", "--verify"],
      message: "--verify is given more than once",
    },
    {
      args: ["--ranks", "2", "--ranks=2"],
      message: "--ranks is given more than once",
    },
    {
      args: ["--color", "green"],
      message: '--color must be one of red, blue: it is "green"',
    },
    { args: ["--sets", "3"], message: '--sets must be one of 1, 2: it is "3"' },
  ]
) {
  Deno.test(`Flags.parse() refuses ${JSON.stringify(args)}`, () => {
    const error = assertThrows(() => parse(...args), UsageError);
    assertEquals(error.message, message);
  });
}

for (
  const text of ["0", "-3", "2.5", "1e3", "0x10", "8MiB", "eight", " 8 ", "NaN"]
) {
  Deno.test(`Flags.parse() refuses "${text}" as a whole number`, () => {
    for (const args of [["--ranks", text], [`--ranks=${text}`]]) {
      const error = assertThrows(() => parse(...args), UsageError);
      assertEquals(
        error.message,
        `--ranks must be a whole number from 1: it is "${text}"`,
      );
    }
  });
}

for (const text of ["0", "0.0", "-1", "1e3", "Infinity", "1s", ".", "1."]) {
  Deno.test(`Flags.parse() refuses "${text}" as a number`, () => {
    const error = assertThrows(() => parse("--seconds", text), UsageError);
    assertEquals(
      error.message,
      `--seconds must be a number above 0: it is "${text}"`,
    );
  });
}

for (
  const text of [
    "0",
    "0.4",
    "-1MiB",
    "1e9",
    "512 MegaBytes",
    "MiB",
    "5iB",
    "5K",
  ]
) {
  Deno.test(`Flags.parse() refuses "${text}" as a size`, () => {
    const error = assertThrows(() => parse("--staging", text), UsageError);
    assertEquals(
      error.message,
      `--staging must be a size such as 512MiB: it is "${text}"`,
    );
  });
}

Deno.test("Flags.parse() refuses numbers above their limit, and says it", () => {
  for (
    const [flag, text, message] of [
      ["--ranks", "65", "a whole number from 1, at most 64"],
      ["--seconds", "1000.5", "a number above 0, at most 1000"],
      ["--sets", "2147483648", "a whole number from 1, at most 2147483647"],
    ] as const
  ) {
    const error = assertThrows(() => parse(flag, text), UsageError);
    assertEquals(error.message, `${flag} must be ${message}: it is "${text}"`);
  }
  assertEquals(parse("--ranks", "64").number("ranks"), 64);
});

for (
  const [text, bytes] of [
    ["1", 1],
    ["4096", 4096],
    ["10B", 10],
    ["3KB", 3000],
    ["2KiB", 2048],
    ["512MiB", 536_870_912],
    ["512mib", 536_870_912],
    ["20 MB", 20_000_000],
    ["1.5GiB", 1_610_612_736],
    ["1.1KiB", 1126],
    ["80GB", 80_000_000_000],
  ] as const
) {
  Deno.test(`Flags.number() reads the size "${text}"`, () => {
    assertEquals(parse("--staging", text).number("staging"), bytes);
  });
}

Deno.test("nearest() finds a name that is a slip away", () => {
  const names = ["rearrange", "doctor", "build"];
  assertEquals(nearest("rearange", names), "rearrange");
  assertEquals(nearest("doktor", names), "doctor");
  assertEquals(nearest("biuld", names), "build");
  assertEquals(nearest("buil", names), "build");
  assertEquals(nearest("reorganize", names), undefined);
  assertEquals(nearest("", names), undefined);
});

Deno.test("nearest() prefers the fewest changes, then the first name", () => {
  assertEquals(nearest("nodex", ["nodes", "node"]), "nodes");
  assertEquals(nearest("layer", ["player", "layers"]), "player");
});
