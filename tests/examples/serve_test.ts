import {
  assert,
  assertAlmostEquals,
  assertEquals,
  assertGreater,
  assertLess,
  assertNotEquals,
  assertRejects,
  assertStringIncludes,
  assertThrows,
} from "@std/assert";
import { fromFileUrl } from "@std/path";
import { openCheckpoint } from "../../lib/weights/checkpoint.ts";
import { compare, DifferenceError } from "../../examples/serve/compare.ts";
import { wholeWorld } from "../../examples/serve/exchange.ts";
import { readModel } from "../../examples/serve/model.ts";
import {
  readArguments,
  type ServeOptions,
} from "../../examples/serve/options.ts";
import { Reference } from "../../examples/serve/reference.ts";
import type { ServeReport } from "../../examples/serve/report.ts";
import { serve } from "../../examples/serve/serve.ts";
import { decode } from "../../examples/serve/tensors.ts";
import {
  driftingWorkloads,
  readWorkloads,
  Traffic,
} from "../../examples/serve/traffic.ts";
import { dataFile } from "../_data.ts";
import "../_native.ts";
import { leftBehind, sharedMemory } from "../_shared_memory.ts";
import { TemporaryFolder } from "../weights/_files.ts";
import { naiveLayers } from "./_naive_moe.ts";

const MAIN = fromFileUrl(import.meta.resolve("../../examples/serve/main.ts"));

function fixture(name: string): string {
  const path = `../fixtures/checkpoints/${name}`;
  return fromFileUrl(import.meta.resolve(path));
}

const QWEN = fixture("qwen3-moe-tiny");
const MIXTRAL = fixture("mixtral-tiny");
const DEEPSEEK = fixture("deepseek-v3-tiny");

function optionsOf(...args: string[]): ServeOptions {
  return readArguments(["--device", "host", ...args]).serve;
}

async function run(...args: string[]): Promise<ServeReport> {
  const options = optionsOf(...args);
  return await serve(options, wholeWorld(options.ranks));
}

async function runChild(
  ...args: string[]
): Promise<{ code: number; stdout: string; stderr: string }> {
  const { code, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
    args: ["run", "-A", MAIN, "--device", "host", ...args],
  }).output();
  const text = (bytes: Uint8Array): string => new TextDecoder().decode(bytes);
  return { code, stdout: text(stdout), stderr: text(stderr) };
}

/** Fails unless every token was equal although experts have moved, and the ranks' loads are evener for it. */
function assertBalanced(report: ServeReport): void {
  const { steps, tokens } = report.options;
  assertEquals(report.tokens, steps * tokens);
  assertEquals(report.equalTokens, report.tokens);
  assertGreater(report.rearrangements, 0);
  const moved = report.phases.reduce((sum, one) => sum + one.movedSlots, 0);
  assertGreater(moved, 0);
  for (const { unbalanced, later } of report.phases) {
    assertGreater(later!, unbalanced);
  }
}

for (const mode of ["sync", "async"]) {
  for (const policy of ["quota", "deepseek", "preserve", "swap"]) {
    Deno.test(`serve() gives every token the same bits: ${mode}, ${policy}`, async () => {
      const report = await run(
        ...["--mode", mode, "--policy", policy],
        ...["--steps", "120", "--phase", "60", "--interval", "10"],
      );
      assertBalanced(report);
      assertEquals(report.phases.map(({ steps }) => steps), [60, 60]);
    });
  }
}

for (
  const [name, folder] of [["Mixtral", MIXTRAL], ["DeepSeek-V3", DEEPSEEK]]
) {
  Deno.test(`serve() gives every token the same bits: ${name}`, async () => {
    assertBalanced(
      await run(
        ...["--checkpoint", folder!, "--ranks", "2", "--tokens", "27"],
        ...["--policy", "preserve"],
        ...["--steps", "100", "--phase", "50", "--interval", "10"],
      ),
    );
  });
}

Deno.test("main gives every token the same bits in four processes: async", async () => {
  const before = sharedMemory();
  const { code, stdout, stderr } = await runChild(
    ...["--processes", "--mode", "async", "--policy", "swap", "--json"],
    ...["--steps", "200", "--phase", "100"],
  );
  assertEquals([code, stderr], [0, ""]);
  const report: ServeReport = JSON.parse(stdout);
  assertBalanced(report);
  assertEquals(report.processes, 4);
  assertEquals(await leftBehind(before), []);
});

Deno.test("main does the same in four processes as in one: sync", async () => {
  const before = sharedMemory();
  const args = [
    ...["--mode", "sync", "--policy", "preserve"],
    ...["--steps", "200", "--phase", "100"],
  ];
  const one = await run(...args);
  const { code, stdout, stderr } = await runChild(
    ...["--processes", "--json", ...args],
  );
  assertEquals([code, stderr], [0, ""]);
  const four: ServeReport = JSON.parse(stdout);
  assertBalanced(four);
  assertEquals([one.processes, four.processes], [1, 4]);
  assertEquals(four.phases, one.phases);
  assertEquals(four.rearrangements, one.rearrangements);
  assertEquals(await leftBehind(before), []);
});

Deno.test("main prints what happened in each phase", async () => {
  const { code, stdout, stderr } = await runChild(
    ...["--steps", "50", "--phase", "50", "--interval", "10"],
  );
  assertEquals([code, stderr], [0, ""]);
  assertStringIncludes(stdout, "qwen3-moe: 2 MoE layers of 16 experts");
  assertStringIncludes(stdout, "drift 1");
  assertStringIncludes(stdout, "1600 of 1600 tokens came out");
});

Deno.test("serve() notices a bit that is wrong in the memory of a rank", async () => {
  const error = await assertRejects(
    () => run("--steps", "60", "--corrupt", "10"),
    DifferenceError,
    "gave other bits than the model without balancing",
  );
  assertEquals(error.layer, 0);
  assert(error.step > 10 && error.expert !== undefined, error.message);
});

Deno.test("main --processes ends every rank if one finds other bits", async () => {
  const before = sharedMemory();
  const { code, stdout, stderr } = await runChild(
    ...["--processes", "--ranks", "2", "--steps", "60", "--corrupt", "10"],
  );
  assertEquals([code, stdout], [1, ""]);
  assertStringIncludes(stderr, "gave other bits than the model");
  assertEquals(await leftBehind(before), []);
});

for (const folder of [QWEN, MIXTRAL, DEEPSEEK]) {
  Deno.test(`Reference.forward() computes what the formulas say: ${folder.split("/").at(-1)}`, async () => {
    using checkpoint = await openCheckpoint(folder);
    const model = await readModel(checkpoint);
    const reference = await Reference.read(checkpoint, model);
    const zeros = model.layers.map(() => new Float64Array(model.experts));
    const input = model.embeddings.subarray(5 * model.hidden, 8 * model.hidden);
    const outcomes = await reference.forward(input, zeros);
    for (let token = 0; token < 3; token++) {
      const row = (values: Float32Array): number[] => [
        ...values.subarray(token * model.hidden, (token + 1) * model.hidden),
      ];
      const states = await naiveLayers(
        folder,
        row(input),
        checkpoint.modelLayers,
      );
      for (const [layer, state] of states.entries()) {
        const actual = row(outcomes[layer]!.hidden);
        for (const [i, value] of state.entries()) {
          assertAlmostEquals(actual[i]!, value, 1e-8);
        }
      }
    }
  });
}

Deno.test("Traffic gives experts about the load of its workload, the same in each run", async () => {
  using checkpoint = await openCheckpoint(QWEN);
  const model = await readModel(checkpoint);
  const reference = await Reference.read(checkpoint, model);
  const workloads = driftingWorkloads(checkpoint, { count: 2, seed: 3 });
  const options = { workloads, steps: 40, tokens: 32, seed: 3 };
  const traffic = new Traffic(model, options);
  assertEquals([1, 40, 41, 80, 81].map((step) => traffic.phase(step)), [
    0,
    0,
    1,
    1,
    2,
  ]);
  assertEquals(traffic.workload(81).name, "drift 1");
  for (const workload of [0, 1]) {
    const counts = new Float64Array(16);
    for (let step = 1 + 40 * workload; step <= 40 + 40 * workload; step++) {
      const [first] = await reference.forward(
        traffic.hidden(step),
        traffic.biases(step),
      );
      for (const expert of first!.experts) counts[expert]! += 1;
    }
    const wanted = workloads[workload]!.load[0]!;
    const mean = counts.reduce((a, b) => a + b, 0) / 16;
    const hottest = wanted.indexOf(Math.max(...wanted));
    assertEquals(counts.indexOf(Math.max(...counts)), hottest);
    assertGreater(counts[hottest]! / mean, 2);
    const distance = counts.reduce((sum, count, expert) =>
      sum + Math.abs(count / mean - wanted[expert]!), 0) / 32;
    assertLess(distance, 0.25);
  }
  assertEquals(new Traffic(model, options).hidden(7), traffic.hidden(7));
  assertNotEquals(traffic.hidden(8), traffic.hidden(7));
  const other = new Traffic(model, { ...options, seed: 4 });
  assertNotEquals(other.hidden(7), traffic.hidden(7));
});

Deno.test("readWorkloads() groups experts, and takes the layers that change most", async () => {
  await using folder = new TemporaryFolder();
  const write = async (name: string, rows: number[][]): Promise<string> => {
    const path = folder.file(name);
    await Deno.writeTextFile(path, JSON.stringify({ logical_count: rows }));
    return path;
  };
  const paths = [
    // A dense layer, and three others; the last two change.
    await write("a.json", [[0, 0, 0, 0], [1, 1, 1, 1], [3, 3, 1, 1], [
      8,
      0,
      0,
      0,
    ]]),
    await write("b.json", [[0, 0, 0, 0], [1, 2, 2, 1], [1, 1, 3, 3], [
      0,
      0,
      1,
      7,
    ]]),
  ];
  const workloads = await readWorkloads(paths, { layers: 2, experts: 2 });
  assertEquals(
    workloads.map(({ name, load }) => [name, load.map((row) => [...row])]),
    [["a", [[1.5, 0.5], [2, 0]]], ["b", [[0.5, 1.5], [0, 2]]]],
  );
  await assertRejects(
    () => readWorkloads(paths, { layers: 4, experts: 2 }),
    RangeError,
    "it has tokens in 3 layers of 4 experts, the model has 4 of 2",
  );
});

Deno.test("serve() follows recorded loads", async (t) => {
  const traces = ["prefill_in4096", "decode_in1000out1000"]
    .map((name) => dataFile(`traces/${name}.json`));
  if (traces.includes(undefined)) return;
  await t.step("with real traces", async () => {
    const report = await run(
      ...["--trace", traces.map((url) => fromFileUrl(url!)).join(",")],
      ...["--steps", "150", "--phase", "50", "--interval", "10"],
    );
    assertBalanced(report);
    assertEquals(
      report.phases.map(({ workload }) => workload),
      ["prefill_in4096", "decode_in1000out1000", "prefill_in4096"],
    );
  });
});

Deno.test("compare() sees each bit, and says where it is", () => {
  const layer = (): {
    experts: Int32Array;
    outputs: Float32Array;
    hidden: Float32Array;
  } => ({
    experts: new Int32Array([3, 1, 0, 2]),
    outputs: new Float32Array([1, 2, 3, 4, 5, 6, 7, 0]),
    hidden: new Float32Array([1, 2, 3, NaN]),
  });
  const served = { ...layer(), slots: new Int32Array([3, 1, 0, 5]) };
  const options = { step: 9, firstToken: 0, topK: 2, slotsPerRank: 3 };
  compare([served], [layer()], options);
  served.outputs[7] = -0;
  const error = assertThrows(
    () => compare([served], [layer()], options),
    DifferenceError,
    "step 9, layer 0, token 1: expert 2 in slot 5 of rank 1 gave other bits",
  );
  assertEquals([error.token, error.expert, error.rank], [1, 2, 1]);
  served.outputs[7] = 0;
  served.hidden[1] = 2.0000002;
  assertThrows(
    () => compare([served], [layer()], options),
    DifferenceError,
    "token 0: its hidden state gave other bits",
  );
  // The second token alone is the first one of another rank's.
  const own = layer();
  compare([{ ...served, hidden: layer().hidden }], [{
    experts: own.experts.slice(2),
    outputs: own.outputs.slice(4),
    hidden: own.hidden.slice(2),
  }], { ...options, firstToken: 1 });
});

Deno.test("decode() widens bfloat16", () => {
  const words = new Uint16Array([0x3f80, 0xc040, 0x0001, 0x7f80]);
  const values = decode(new Uint8Array(words.buffer), "BF16");
  assertEquals([...values], [1, -3, 2 ** -133, Infinity]);
  assertThrows(
    () => decode(new Uint8Array(4), "F8_E4M3"),
    TypeError,
    "Cannot compute with weights of type F8_E4M3",
  );
});

Deno.test("readArguments() refuses what it does not know", () => {
  for (
    const [args, message] of [
      [["--rank", "4"], "--rank"],
      [["--ranks", "0"], '--ranks must be a whole number from 1: it is "0"'],
      [["--mode", "lazy"], "--mode must be one of sync, async"],
      [["--policy", "none"], "--policy must be one of quota, deepseek"],
      [["extra"], "extra"],
    ] as const
  ) {
    assertThrows(() => readArguments(args), TypeError, message);
  }
});
