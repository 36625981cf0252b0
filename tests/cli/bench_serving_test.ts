import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { heldAgainst, repeated } from "../../lib/cli/bench/serving.ts";
import "../_native.ts";
import { documentOf, errorOf, run } from "./_run.ts";

Deno.test("heldAgainst() compares the steps of a rearrangement with steps alone", () => {
  // Ten steps alone, 0.02 s each but for one; five steps beside that take 0.125 s in all.
  const idle = [0.02, 0.02, 0.02, 0.02, 0.03, 0.02, 0.02, 0.02, 0.02, 0.02];
  const { speedKept, longest, ...rest } = heldAgainst(
    idle,
    [0.02, 0.025, 0.04, 0.02, 0.02],
  );
  assertClose(speedKept, 0.84); // 5 × 0.021 ÷ 0.125
  assertClose(longest, 2);
  assertClose(rest.meanSeconds, 0.025);
  assertClose(rest.idleMeanSeconds, 0.021);
  assertClose(rest.idleLongest, 1.5);
  assertEquals(rest.steps, 5);
  assertEquals(rest.idleSeconds, 0.02);
  assertEquals(rest.medianSeconds, 0.02);
  assertEquals(rest.longestSeconds, 0.04);
});

Deno.test("repeated() takes the median of each number on its own", () => {
  const runs = [{ a: 1, b: 30 }, { a: 3, b: 10 }, { a: 2, b: 20 }];
  assertEquals(repeated(runs), { median: { a: 2, b: 20 }, runs });
  assertEquals(repeated(runs.slice(0, 2)).median, { a: 2, b: 20 });
});

const SMALL = [
  ...["bench", "--serving", "--device", "host", "--ranks", "2"],
  ...["--repeat", "2", "--step-ms", "2"],
];
const LAYERS = 8;
const SLOTS = 9;

Deno.test("bench --serving --json measures both modes, and every byte arrives", async () => {
  const outcome = await run(...SMALL, "--max-rate", "0.5", "--json");
  assertEquals(outcome.code, 0);
  const { serving, transfers, ceilings, interference, ranks } = documentOf(
    outcome,
  );
  assertEquals([transfers, ceilings, interference], [[], [], []]);
  assertEquals(ranks, 2);
  assertEquals(serving.stepSeconds, 0.002);
  assertEquals(serving.processes, 1);
  assertEquals(serving.maxRate, 500e6);
  const [one, ...others] = serving.cases;
  assertEquals(others, []);
  assertEquals(one.model, "deepseek-r1");
  assertEquals(one.transport, "pull");
  assertEquals(one.layers, LAYERS);
  assertEquals(one.products, null);
  assertEquals(one.wrong, 0);
  assertEquals(one.async.runs.length, 2);
  assertEquals(one.sync.runs.length, 2);
  for (const beside of one.async.runs) {
    // One layer between two steps, after a step that asks.
    assert(beside.steps > LAYERS, `${beside.steps} steps`);
    // Deno's timers are never early by more than the millisecond they round to.
    assert(beside.idleSeconds >= 0.001, `${beside.idleSeconds} s`);
    assert(beside.longestSeconds >= beside.meanSeconds);
    assert(beside.longestSeconds > beside.pauseSeconds);
    assert(beside.speedKept > 0);
    assertClose(beside.longest, beside.longestSeconds / beside.idleSeconds);
  }
  for (const moved of [...one.async.runs, ...one.sync.runs]) {
    assert(moved.moved > 0.2 && moved.moved <= 1, `${moved.moved} moved`);
    // Whole experts, no more than all slots of a rank.
    assertEquals(moved.busiestBytes % one.expertBytes, 0);
    assert(moved.busiestBytes > 0);
    assert(moved.busiestBytes <= LAYERS * SLOTS * one.expertBytes);
    assert(moved.moveSeconds > 0);
    assertClose(
      moved.bytesPerSecond / (moved.busiestBytes / moved.moveSeconds),
      1,
    );
  }
  for (const { busiestBytes, moveSeconds } of one.async.runs) {
    assert(moveSeconds >= busiestBytes / 500e6, `${moveSeconds} s`);
  }
  for (const { pauseSeconds, moveSeconds } of one.sync.runs) {
    assert(pauseSeconds > moveSeconds, `${pauseSeconds} s, ${moveSeconds} s`);
  }
});

Deno.test("bench --serving prints a table, and says that nothing is computed on the host", async () => {
  const { code, stdout } = await run(...SMALL);
  assertEquals(code, 0);
  assertStringIncludes(stdout, "host memory, 2 ranks");
  assertStringIncludes(stdout, "a timer of 2.00 ms; nothing is computed");
  const lines = stdout.split("\n");
  const header = lines.findIndex((line) => line.startsWith("model  "));
  assertStringIncludes(lines[header]!, "speed kept");
  assertEquals(
    [2, 3].map((row) => lines[header + row]!.split(/ {2,}/).slice(0, 3)),
    [["deepseek-r1", "pull", "async"], ["deepseek-r1", "pull", "sync"]],
  );
});

for (
  const [args, message] of [
    [["--step-ms", "5"], "--step-ms needs --serving"],
    [
      ["--max-rate", "5", "--no-interference"],
      "--max-rate cannot be combined with --no-interference",
    ],
    [
      ["--max-rate", "5", "--device", "host"],
      "--max-rate needs two GPUs, or --serving: it bounds what moves beside a model",
    ],
    [
      ["--serving", "--max-rate", "0"],
      '--max-rate must be a number above 0: it is "0"',
    ],
    [
      ["--serving", "--no-processes"],
      "--no-processes cannot be combined with --serving",
    ],
    [
      ["--serving", "--no-interference"],
      "--no-interference cannot be combined with --serving",
    ],
    [
      ["--serving", "--step-ms", "0"],
      '--step-ms must be a number above 0: it is "0"',
    ],
    [
      ["--serving", "--device", "host", "--models", "gpt"],
      '"gpt" is not one of: deepseek-r1; fine-grained',
    ],
    [
      ["--serving", "--device", "host", "--transports", "nccl"],
      '"nccl" is not one of: pull',
    ],
  ] as const
) {
  Deno.test(`bench ${args.join(" ")} is refused`, async () => {
    const outcome = await run("bench", ...args, "--json");
    assertEquals(outcome.code, 2);
    assertEquals(errorOf(outcome).message, message);
  });
}

function assertClose(actual: number, expected: number): void {
  assert(
    Math.abs(actual - expected) < 1e-9,
    `${actual} is not ${expected}`,
  );
}
