import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { library } from "../_native.ts";
import { TemporaryFolder } from "../weights/_files.ts";
import { FIXTURES } from "./_checkpoints.ts";
import { contiguousMap, jsonOf, type Rows } from "./_maps.ts";
import { errorOf, run } from "./_run.ts";

const MIXTRAL = FIXTURES[2]!.folder;
const noGpus = library.devices().devices.length === 0;

/** Fails unless the command is refused with this message, and saves nothing. */
async function assertRefused(
  args: readonly string[],
  refusal: { readonly code: 1 | 2; readonly message: string },
): Promise<void> {
  await using folder = new TemporaryFolder();
  const out = folder.file("out");
  const save = args.includes("--save") ? [] : ["--save", out];
  const outcome = await run("rearrange", "--json", ...args, ...save);
  const { name, message } = errorOf(outcome);
  assertEquals(message, refusal.message);
  assertEquals(outcome.code, refusal.code);
  assertEquals(name === "UsageError", refusal.code === 2);
  assertStringIncludes(outcome.stderr, `error: ${message}\n`);
  // Nothing was allocated: that would have been seen in the progress.
  assert(!outcome.stderr.includes("filling"), outcome.stderr);
  assertEquals(await Array.fromAsync(Deno.readDir(folder.path)), []);
}

// Mistakes in the command line: exit code 2.
for (
  const { args, message } of [
    {
      args: ["--verify", "--no-verify"],
      message: "--verify cannot be combined with --no-verify",
    },
    {
      args: ["--transport", "nccl", "--device", "host"],
      message: "--transport nccl moves GPU memory, and --device is host",
    },
    {
      args: ["--transport", "pull+nccl", "--device", "host"],
      message: "--transport pull+nccl moves GPU memory, and --device is host",
    },
    {
      args: ["--transport", "nccl-put", "--device", "host"],
      message: "--transport nccl-put moves GPU memory, and --device is host",
    },
    {
      args: ["--transport", "rdma"],
      message: "--transport must be one of auto, pull, nccl, pull+nccl, " +
        'nccl-put: it is "rdma"',
    },
    {
      args: ["--shape", "tiny", "--weights", MIXTRAL],
      message: "--shape cannot be combined with --weights",
    },
    {
      args: ["--layers", "2", "--weights", MIXTRAL],
      message: "--layers cannot be combined with --weights",
    },
    {
      args: ["--experts", "8", "--weights", MIXTRAL],
      message: "--experts cannot be combined with --weights",
    },
    {
      args: ["--scale", "2", "--weights", MIXTRAL],
      message: "--scale cannot be combined with --weights",
    },
    {
      args: ["--to", "deepseek"],
      message: "The map deepseek needs a load: give --load",
    },
    {
      args: ["--to", "contiguous", "--repeat", "2"],
      message: "--repeat needs --to random:SEED: any other map is reached " +
        "the first time",
    },
    {
      args: ["--ranks", "8", "--slots", "1"],
      message: "--slots must be at least 2 for 16 experts on 8 ranks: it is 1",
    },
    {
      args: ["--ranks", "3", "--slots", "2", "--weights", MIXTRAL],
      message: "--slots must be at least 3 for 8 experts on 3 ranks: it is 2",
    },
    {
      args: ["--ranks", "8", "--nodes", "3"],
      message: "Cannot create topology: 8 ranks do not divide among 3 nodes",
    },
    {
      args: ["--shape", "tiny", "--scale", "3"],
      message: 'Cannot size model "tiny": scale 3 does not divide hidden ' +
        "size 64 and intermediate size 64",
    },
    {
      args: ["--to", "random"],
      message: 'The seed in "random" must be a whole number from 0 to ' +
        "2147483648, as in random:1",
    },
    {
      args: ["--from", "random:-1"],
      message: 'The seed in "random:-1" must be a whole number from 0 to ' +
        "2147483648, as in random:1",
    },
    {
      args: ["--load", "zipf:2147483649"],
      message: 'The seed in "zipf:2147483649" must be a whole number from 0 ' +
        "to 2147483648, as in zipf:1",
    },
    {
      args: ["--staging", "10"],
      message: "Cannot stage experts: staging has 10 bytes, 1 set(s) of one " +
        "expert need 25088",
    },
    {
      args: ["--save", `${MIXTRAL}/config.json`],
      message: `--save must name a folder: "${MIXTRAL}/config.json" is a file`,
    },
    ...["ranks", "nodes", "layers", "experts", "scale", "slots"]
      .concat(["max-ops", "max-ctas", "staging-sets", "repeat"])
      .map((name) => ({
        args: [`--${name}`, "0"],
        message: `--${name} must be a whole number from 1: it is "0"`,
      })),
    ...["timeout", "link-rate", "node-rate", "max-rate"].map((name) => ({
      args: [`--${name}`, "0"],
      message: `--${name} must be a number above 0: it is "0"`,
    })),
    {
      args: ["--timeout", "2147484"],
      message: "--timeout must be a number above 0, at most 2147483: it is " +
        '"2147484"',
    },
    {
      args: ["--ranks", "65537"],
      message: "--ranks must be a whole number from 1, at most 65536: it is " +
        '"65537"',
    },
    {
      args: ["--staging-sets", "5"],
      message: '--staging-sets must be one of 1, 2, 3, 4: it is "5"',
    },
    {
      args: ["--shape", "gpt"],
      message: "--shape must be one of deepseek-r1, qwen3-235b, " +
        'mixtral-8x7b, fine-grained, tiny: it is "gpt"',
    },
  ]
) {
  Deno.test(`rearrange ${args.join(" ").replaceAll(MIXTRAL, "mixtral-tiny")} is a usage mistake`, () =>
    assertRefused(
      ["--device", "host", ...args].slice(args.includes("--device") ? 2 : 0),
      {
        code: 2,
        message,
      },
    ));
}

Deno.test({
  name: "rearrange refuses what needs GPUs where there are none, and says why",
  ignore: !noGpus,
  fn: async () => {
    const { reason } = library.devices();
    const lack = "a GPU for each of 2 ranks: rank 0 has none of its own";
    for (
      const args of [["--device", "cuda"], ["--transport", "nccl"], [
        ...["--device", "cuda", "--transport", "nccl"],
      ]]
    ) {
      const [flag, value] = args;
      const message = `${flag} ${value} needs ${lack} (${reason})`;
      await assertRefused(["--ranks", "2", ...args], { code: 2, message });
    }
  },
});

// Files that do not serve: exit code 1.
const GOOD: Rows = contiguousMap({ layers: 2, slots: 4, experts: 4 });
for (
  const { what, text, args = [], state } of [
    {
      what: "ragged rows",
      text: jsonOf([GOOD[0]!, [0, 1, 2]]),
      state: "layer 1 has 3 slots instead of 4",
    },
    {
      what: "an id that is no expert",
      text: jsonOf([GOOD[0]!, [0, 1, 2, 7]]),
      args: ["--experts", "4"],
      state: "layer 1, slot 3 holds 7, not one of 4 experts or -1",
    },
    {
      what: "an id below -1",
      text: jsonOf([GOOD[0]!, [0, 1, 2, -2]]),
      state: "layer 1, slot 3 must be an integer from -1 to 2147483646, got -2",
    },
    {
      what: "a fraction",
      text: jsonOf([GOOD[0]!, [0, 1, 2, 2.5]]),
      state:
        "layer 1, slot 3 must be an integer from -1 to 2147483646, got 2.5",
    },
    {
      what: "an expert without a slot",
      text: jsonOf([GOOD[0]!, [0, 1, 3, 1]]),
      state: "expert 2 has no slot in layer 1",
    },
    {
      what: "a row that is none",
      text: '{"physical_to_logical_map": [[0, 1], 3]}',
      state: '"physical_to_logical_map" must be an array of layers',
    },
    {
      what: "slots that do not divide among the ranks",
      text: jsonOf(GOOD),
      args: ["--ranks", "3"],
      state: "4 slots do not divide among 3 ranks",
    },
    {
      what: "fewer slots than experts",
      text: jsonOf(GOOD),
      args: ["--experts", "5"],
      state: "4 slots cannot hold 5 experts",
    },
    {
      what: "other layers than asked for",
      text: jsonOf(GOOD),
      args: ["--layers", "3"],
      state: "it has 2 layers, the weights have 3",
    },
    {
      what: "other slots than asked for",
      text: jsonOf(GOOD),
      args: ["--slots", "3"],
      state: "it has 2 slots per rank, the job has 3",
    },
    {
      what: "other experts than the checkpoint",
      text: jsonOf(contiguousMap({ layers: 2, slots: 10, experts: 10 })),
      args: ["--weights", MIXTRAL],
      state: "layer 0, slot 8 holds 8, not one of 8 experts or -1",
    },
    {
      what: "other layers than the checkpoint",
      text: jsonOf(contiguousMap({ layers: 1, slots: 8, experts: 8 })),
      args: ["--weights", MIXTRAL],
      state: "it has 1 layers, the weights have 2",
    },
    {
      what: "no map in it",
      text: '{"logical_count": [[1, 2]]}',
      state: '"physical_to_logical_map" must be an array of layers',
    },
    {
      what: "no layers",
      text: jsonOf([]),
      state: '"physical_to_logical_map" must be an array of layers',
    },
    { what: "empty layers", text: jsonOf([[]]), state: "it holds no expert" },
    {
      what: "null",
      text: "null",
      state: '"physical_to_logical_map" must be an array of layers',
    },
  ]
) {
  Deno.test(`rearrange refuses a map with ${what}, and names the file`, async () => {
    await using folder = new TemporaryFolder();
    const path = folder.file("map.json");
    await Deno.writeTextFile(path, text);
    const ranks = args.includes("--ranks") ? [] : ["--ranks", "2"];
    const message = `Cannot use map "${path}": ${state}`;
    for (const flag of ["--from", "--to"]) {
      const all = ["--device", "host", ...ranks, ...args, flag, path];
      await assertRefused(all, { code: 1, message });
    }
  });
}

Deno.test("rearrange refuses two maps of different sizes, and names the second", async () => {
  await using folder = new TemporaryFolder();
  const [from, to] = [folder.file("from.json"), folder.file("to.json")];
  await Deno.writeTextFile(from, jsonOf(GOOD));
  await Deno.writeTextFile(
    to,
    jsonOf(contiguousMap({ layers: 2, slots: 6, experts: 4 })),
  );
  await assertRefused(
    ["--device", "host", "--ranks", "2", "--from", from, "--to", to],
    {
      code: 1,
      message: `Cannot use map "${to}": it has 3 slots per rank, the job has 2`,
    },
  );
});

for (const flag of ["--from", "--to", "--load"]) {
  Deno.test(`rearrange ${flag} names a file that is missing, broken or a folder`, async () => {
    await using folder = new TemporaryFolder();
    const missing = folder.file("missing.json");
    await assertRefused(["--device", "host", flag, missing], {
      code: 1,
      message: `Cannot read "${missing}": no such file`,
    });
    const broken = folder.file("broken.json");
    await Deno.writeTextFile(broken, '{"physical_to_logical_map": [[0, 1');
    for (const path of [broken, folder.path]) {
      const outcome = await run("rearrange", "--json", flag, path);
      assertEquals(outcome.code, 1);
      assertStringIncludes(
        errorOf(outcome).message,
        `Cannot read "${path}": `,
      );
    }
  });
}

for (
  const { what, counts, where } of [
    { what: "too few layers", counts: [[1, 1, 1, 1]], where: "1 layers" },
    {
      what: "a short layer",
      counts: [[1, 1, 1, 1], [1, 1, 1]],
      where: "layer 1 ",
    },
    {
      what: "a negative count",
      counts: [[1, 1, 1, 1], [1, -5, 1, 1]],
      where: "layer 1, expert 1 ",
    },
    {
      what: "a count that is no number",
      counts: [[1, 1, null, 1], [1, 1, 1, 1]],
      where: "layer 0, expert 2 ",
    },
    { what: "no counts", counts: undefined, where: '"logical_count"' },
  ]
) {
  Deno.test(`rearrange refuses a load with ${what}, and names file and place`, async () => {
    await using folder = new TemporaryFolder();
    const path = folder.file("load.json");
    await Deno.writeTextFile(path, JSON.stringify({ logical_count: counts }));
    const outcome = await run(
      ...["rearrange", "--device", "host", "--json", "--load", path],
      ...["--layers", "2", "--experts", "4"],
    );
    assertEquals(outcome.code, 1);
    const { message } = errorOf(outcome);
    assertStringIncludes(message, `Cannot use load "${path}": `);
    assertStringIncludes(message, where);
    assert(!outcome.stderr.includes("connecting"));
  });
}

Deno.test("rearrange --weights names a folder that has no checkpoint", async () => {
  await using folder = new TemporaryFolder();
  for (const path of [folder.path, folder.file("missing")]) {
    await assertRefused(["--device", "host", "--weights", path], {
      code: 1,
      message:
        `Cannot open checkpoint "${path}": there is no file "model.safetensors"`,
    });
  }
});

Deno.test("rearrange refuses more weights than memory holds, before it takes any", async () => {
  const outcome = await run(
    ...["rearrange", "--device", "host", "--json", "--layers", "1000000000"],
  );
  assertEquals(outcome.code, 1);
  const { message } = errorOf(outcome);
  assertStringIncludes(message, "Cannot hold 590 TB of weights in host memory");
  assertStringIncludes(message, "lower --layers");
  assert(!outcome.stderr.includes("connecting"));
});
