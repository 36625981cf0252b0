import { assertEquals, assertRejects } from "@std/assert";
import { readLoad } from "../../lib/load/files.ts";
import {
  type SafetensorsSpec,
  writeSafetensors,
} from "../../lib/weights/safetensors.ts";
import { TemporaryFolder } from "../weights/_files.ts";
import { traceOf } from "./_traces.ts";

const MOST = Number.MAX_SAFE_INTEGER;

/** Counts of one rank by "ITERATION_LAYER". */
type RankCounts = Readonly<Record<string, readonly number[]>>;

/** Writes a folder as TensorRT-LLM does. */
async function writeStatistics(
  folder: TemporaryFolder,
  ranks: readonly RankCounts[],
  options: { readonly meta?: unknown; readonly dtype?: "I64" | "I32" | "F32" } =
    {},
): Promise<void> {
  const { meta = { num_experts: 3, num_experts_per_token: 2 }, dtype = "I64" } =
    options;
  await Deno.writeTextFile(folder.file("meta_info.json"), JSON.stringify(meta));
  for (const [rank, counts] of ranks.entries()) {
    const specs = Object.entries(counts).map((
      [name, row],
    ): SafetensorsSpec => ({
      name,
      dtype,
      shape: [row.length],
    }));
    await writeSafetensors(folder.file(`rank${rank}.safetensors`), specs, {
      *data({ name }): Generator<Uint8Array> {
        const row = counts[name]!;
        const values = dtype === "I64"
          ? BigInt64Array.from(row, BigInt)
          : Int32Array.from(row);
        yield new Uint8Array(values.buffer);
      },
    });
  }
}

Deno.test("readLoad() adds up the ranks of TensorRT-LLM's statistics", async () => {
  for (const dtype of ["I64", "I32"] as const) {
    await using folder = new TemporaryFolder();
    // Iterations 50 and 51 of layers 1 and 3, of which rank 1 saw but a part.
    await writeStatistics(folder, [
      { "50_1": [1, 2, 3], "50_3": [4, 5, 6], "51_3": [7, 8, 9] },
      { "51_1": [10, 20, 30], "51_3": [40, 50, 60] },
    ], { dtype });
    // Each token's experts, which are not counts.
    await Deno.writeTextFile(folder.file("rank0_raw.safetensors"), "");
    const none = [0, 0, 0];
    const [first, second] = [
      [none, [1, 2, 3], none, [4, 5, 6]],
      [none, [10, 20, 30], none, [47, 58, 69]],
    ];
    assertEquals(await readLoad(folder.path), traceOf([first, second]));
    assertEquals(
      await readLoad(folder.path, { layers: 5, experts: 3 }),
      traceOf([[...first, none], [...second, none]]),
    );
  }
});

Deno.test("readLoad() reads 64-bit counts as far as they are exact", async () => {
  await using folder = new TemporaryFolder();
  await writeStatistics(folder, [{ "0_0": [2 ** 32, 2 ** 52 + 1, MOST] }]);
  const { load } = await readLoad(folder.path);
  assertEquals([...load], [2 ** 32, 2 ** 52 + 1, MOST]);
});

const BAD_STATISTICS: readonly {
  readonly what: string;
  readonly ranks: readonly RankCounts[];
  readonly meta?: unknown;
  readonly dtype?: "F32";
  readonly message: string;
}[] = [
  {
    what: "an iteration without one of the layers",
    ranks: [{ "0_0": [1, 1, 1], "0_1": [1, 1, 1], "1_0": [1, 1, 1] }],
    message: ": iteration 1 has no layer 1, others have",
  },
  {
    what: "a tensor of another name",
    ranks: [{ "layer0": [1, 1, 1] }],
    message:
      ', "rank0.safetensors": tensor "layer0" is not named by an iteration and a layer',
  },
  {
    what: "another number of experts than said",
    ranks: [{ "0_0": [1, 1] }],
    message:
      ', "rank0.safetensors": tensor "0_0" must be of dtype I64 or I32 and shape [3], it is of I64 and [2]',
  },
  {
    what: "counts of another type",
    ranks: [{ "0_0": [1, 1, 1] }],
    dtype: "F32",
    message:
      ', "rank0.safetensors": tensor "0_0" must be of dtype I64 or I32 and shape [3], it is of F32 and [3]',
  },
  {
    what: "a negative count",
    ranks: [{ "0_0": [1, 1, 1] }, { "0_0": [1, -1, 1] }],
    message:
      `, "rank1.safetensors": tensor "0_0", expert 1 has count -1, not one from 0 to ${MOST}`,
  },
  {
    what: "sums that are not exact",
    ranks: [{ "0_0": [1, 1, MOST] }, { "0_0": [1, 1, 2] }],
    message:
      ', "rank1.safetensors": tensor "0_0", expert 2 has count 2, not one',
  },
  {
    what: "no ranks",
    ranks: [],
    message: ': there is no "rank0.safetensors"',
  },
  {
    what: "no number of experts",
    ranks: [{ "0_0": [1] }],
    meta: {},
    message:
      ', "meta_info.json": num_experts must be an integer from 1 to 65536, it is undefined',
  },
  {
    what: "no iterations",
    ranks: [{}],
    message: ": it holds no step",
  },
];

for (const { what, ranks, message, ...options } of BAD_STATISTICS) {
  Deno.test(`readLoad() refuses statistics with ${what}`, async () => {
    await using folder = new TemporaryFolder();
    await writeStatistics(folder, ranks, options);
    await assertRejects(
      () => readLoad(folder.path),
      RangeError,
      `Cannot use load "${folder.path}"${message}`,
    );
  });
}

Deno.test("readLoad() refuses statistics that lack a rank", async () => {
  await using folder = new TemporaryFolder();
  const row = { "0_0": [1, 1, 1] };
  await writeStatistics(folder, [row, row, row]);
  await Deno.remove(folder.file("rank1.safetensors"));
  await assertRejects(
    () => readLoad(folder.path),
    RangeError,
    `Cannot use load "${folder.path}": there is no "rank1.safetensors"`,
  );
});
