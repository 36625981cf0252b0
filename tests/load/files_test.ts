import { assertEquals, assertRejects, assertThrows } from "@std/assert";
import fc from "fast-check";
import {
  type LoadFormat,
  parseLoad,
  type ParseLoadOptions,
  readLoad,
  totalLoad,
} from "../../lib/load/files.ts";
import { dataFile } from "../_data.ts";
import { TemporaryFolder } from "../weights/_files.ts";
import { type Steps, traceOf } from "./_traces.ts";

const MOST = Number.MAX_SAFE_INTEGER;

const traces: fc.Arbitrary<Steps> = fc.record({
  steps: fc.integer({ min: 1, max: 3 }),
  layers: fc.integer({ min: 1, max: 3 }),
  experts: fc.integer({ min: 1, max: 4 }),
}).chain(({ steps, layers, experts }) => {
  const list = <T>(of: fc.Arbitrary<T>, length: number): fc.Arbitrary<T[]> =>
    fc.array(of, { minLength: length, maxLength: length });
  const count = fc.oneof(fc.nat(99), fc.nat(MOST), fc.constant(0.25));
  return list(list(list(count, experts), layers), steps);
});

Deno.test("parseLoad() reads what was written, in every format of text", () => {
  fc.assert(fc.property(traces, (steps) => {
    const expected = traceOf(steps);
    const json = JSON.stringify({ logical_count: steps });
    const lines = steps.map((step) => JSON.stringify({ logical_count: step }));
    const rows = steps.flatMap((layers, step) =>
      layers.flatMap((row, layer) =>
        row.map((count, expert) => `${step},${layer},${expert},${count}`)
      )
    );
    const csv = ["step,layer,expert,count", ...rows].join("\n");
    for (const name of ["load.json", "load", "load.txt"]) {
      assertEquals(parseLoad(json, { name }), expected);
    }
    for (const name of ["load.jsonl", "load.NDJSON", "load"]) {
      assertEquals(parseLoad(lines.join("\n") + "\n", { name }), expected);
    }
    for (const name of ["load.csv", "load"]) {
      assertEquals(parseLoad(csv, { name }), expected);
    }
    assertEquals(parseLoad(csv, { name: "x.json", format: "csv" }), expected);
  }));
});

Deno.test("parseLoad() reads a single step without its own level", () => {
  const step = [[1, 2, 3], [4, 5, 6]];
  const expected = traceOf([step]);
  assertEquals(parseLoad(JSON.stringify({ logical_count: step })), expected);
  assertEquals(parseLoad(JSON.stringify({ load_history: step })), expected);
});

Deno.test("parseLoad() adds up slots where the document has their map", () => {
  const map = [[0, 1, 0, -1], [1, 1, 0, 1]];
  const counts = [[[1, 2, 4, 0], [8, 16, 32, 64]], [[5, 0, 0, 0], [
    0,
    1,
    0,
    1,
  ]]];
  const expected = traceOf([[[5, 2], [32, 88]], [[5, 0], [0, 2]]]);
  for (const name of ["physical_to_logical_map", "p2l_map"]) {
    const text = JSON.stringify({ load_history: counts, [name]: map });
    assertEquals(parseLoad(text), expected);
  }
  // SGLang's counts are those of logical experts, also beside a map.
  const logical = {
    logical_count: [[1, 2]],
    physical_to_logical_map: [[0, 1, 0]],
  };
  assertEquals(parseLoad(JSON.stringify(logical)), traceOf([[[1, 2]]]));
});

Deno.test("parseLoad() reads vLLM's load statistics, whose map may change", () => {
  const stats = { record_type: "eplb_load_stats", version: 1 };
  const text = [
    { record_type: "eplb_load_meta", version: 1, num_ranks: 2, num_layers: 1 },
    { ...stats, step: 1, expert_load: [[3, 7, 1]], p2l_map: [[0, 0, 1]] },
    { ...stats, step: 5, expert_load: [[3, 7, 1]], p2l_map: [[1, 0, 1]] },
    { record_type: "bench_run_start", label: "x" },
  ].map((record) => JSON.stringify(record)).join("\n\n");
  assertEquals(
    parseLoad(text, { name: "stats.jsonl" }),
    traceOf([[[10, 1]], [[7, 4]]]),
  );
});

Deno.test("parseLoad() fills up what a table leaves out, and orders its steps", () => {
  const csv =
    "\uFEFFcount, expert ,layer,step\r\n7,1,0,900\r\n\r\n2.5,0,1,20\r\n";
  assertEquals(parseLoad(csv), traceOf([[[0, 0], [2.5, 0]], [[0, 7], [0, 0]]]));
  assertEquals(
    parseLoad("layer,expert,count\n0,0,1e3\n", { layers: 2, experts: 3 }),
    traceOf([[[1000, 0, 0], [0, 0, 0]]]),
  );
});

const REFUSED: readonly {
  readonly what: string;
  readonly text: string;
  readonly name?: string;
  readonly options?: ParseLoadOptions;
  readonly message: string;
}[] = [
  {
    what: "a negative count",
    text: '{"logical_count": [[1, 2], [3, -4]]}',
    message: `: layer 1, expert 1 has count -4, not one from 0 to ${MOST}`,
  },
  {
    what: "NaN as Python writes it",
    text: '{"logical_count": [[[1, 2]], [[NaN, 4]]]}',
    message: `: step 1, layer 0, expert 0 has count "NaN", not one`,
  },
  {
    what: "-Infinity as Python writes it",
    text: '{"logical_count": [[1, -Infinity]]}',
    message: `: layer 0, expert 1 has count "-Infinity", not one`,
  },
  {
    what: "a count too large for a number",
    text: '{"logical_count": [[1, 1e999]]}',
    message: ": layer 0, expert 1 has count Infinity, not one",
  },
  {
    what: "a count that is not exact",
    text: '{"logical_count": [[9007199254740992]]}',
    message: ": layer 0, expert 0 has count 9007199254740992, not one",
  },
  {
    what: "a count that is no number",
    text: '{"logical_count": [[1, null], ["7", 1]]}',
    message: ": layer 0, expert 1 has count null, not one",
  },
  {
    what: "rows of different lengths",
    text: '{"logical_count": [[[1, 2], [3, 4]], [[1, 2], [3]]]}',
    message: ": step 1, layer 1 must have 2 counts, it has 1",
  },
  {
    what: "a row that is none",
    text: '{"logical_count": [[1, 2], 3]}',
    message: ": layer 1 must have 2 counts, it has 3",
  },
  {
    what: "steps of different sizes",
    text: '{"logical_count": [[[1, 2], [3, 4]], [[1, 2]]]}',
    message: ": step 1 has 1 layers of 2 experts, step 0 has 2 of 2",
  },
  ...["[]", "[[]]", "7", "{}"].map((rows) => ({
    what: `counts that are ${rows}`,
    text: `{"logical_count": ${rows}}`,
    message: ": the counts must be an array of layers",
  })),
  {
    what: "no counts",
    text: '{"count": [[1]]}',
    message:
      ': it must have one of "logical_count", "load_history", "expert_load", it has none',
  },
  {
    what: "two sorts of counts",
    text: '{"logical_count": [[1]], "load_history": [[1]]}',
    message:
      ': it must have one of "logical_count", "load_history", "expert_load", it has "logical_count" and "load_history"',
  },
  {
    what: "a document that is no object",
    text: "[[1, 2]]",
    message: ": it must hold an object, it holds an array of 1",
  },
  {
    what: "counts of slots without a map",
    text: '{"expert_load": [[1]]}',
    message: ': "expert_load" counts slots, but there is no "p2l_map"',
  },
  {
    what: "counts of other slots than the map has",
    text: '{"expert_load": [[1, 2]], "p2l_map": [[0, 1, 0]]}',
    message: ": there are counts of 1 layers × 2 slots, the map has 1 × 3",
  },
  {
    what: "a negative count of a slot",
    text: '{"expert_load": [[1, -2]], "p2l_map": [[0, 1]]}',
    message: ": layer 0, slot 1 has count -2, not one",
  },
  {
    what: "tokens in an empty slot",
    text: '{"expert_load": [[1, 2]], "p2l_map": [[0, -1]]}',
    message: ": layer 0, slot 1 is empty but has 2 tokens",
  },
  {
    what: "a map that is none",
    text: '{"expert_load": [[1]], "p2l_map": 5}',
    message: ': "p2l_map": the map must be an Int32Array or an array of layers',
  },
  {
    what: "a map without one of its experts",
    text: '{"expert_load": [[1, 2, 3]], "p2l_map": [[0, 2, 2]]}',
    message: ': "p2l_map": expert 1 has no slot in layer 0',
  },
  {
    what: "other layers than wanted",
    text: '{"logical_count": [[1, 2]]}',
    options: { layers: 2 },
    message: ": it has 1 layers instead of 2",
  },
  {
    what: "other experts than wanted",
    text: '{"logical_count": [[1, 2]]}',
    options: { experts: 3 },
    message: ": it has 2 experts instead of 3",
  },
  {
    what: "a bad count in a line",
    text: '{"logical_count": [[1]]}\n\n{"logical_count": [[-1]]}',
    name: "x.jsonl",
    message: ", line 3: layer 0, expert 0 has count -1, not one",
  },
  {
    what: "lines of different sizes",
    text: '{"logical_count": [[1]]}\n{"logical_count": [[1, 2]]}',
    name: "x.jsonl",
    message: ": step 1 has 1 layers of 2 experts, step 0 has 1 of 1",
  },
  {
    what: "lines without a step",
    text: '{"record_type": "eplb_load_meta"}\n',
    name: "x.jsonl",
    message: ": it holds no step",
  },
  {
    what: "a line that is no object",
    text: "null\n",
    name: "x.jsonl",
    message: ", line 1: it must hold an object, it holds null",
  },
  {
    what: "an empty table",
    text: "layer,expert,count\n",
    message: ": it holds no step",
  },
  ...[
    "",
    "layer,expert",
    "layer,expert,count,weight",
    "layer,layer,expert,count",
  ]
    .map((header) => ({
      what: `the header "${header}"`,
      text: header,
      message:
        `, line 1: the header must be "layer,expert,count", "step" beside them if there are several, it is ${
          JSON.stringify(header)
        }`,
    })),
  ...["-1", "NaN", "", "0x10", "1e999", "1_000", "Infinity"].map((count) => ({
    what: `the count "${count}" in a table`,
    text: `layer,expert,count\n0,0,1\n0,1,${count}\n`,
    message:
      `, line 3: count must be a number from 0 to ${MOST}, it is "${count}"`,
  })),
  ...["-1", "0.5", "65536", "x"].map((layer) => ({
    what: `the layer "${layer}" in a table`,
    text: `layer,expert,count\n${layer},0,1\n`,
    message:
      `, line 2: layer must be a number from 0 to 65535, it is "${layer}"`,
  })),
  {
    what: "a row of another length in a table",
    text: "layer,expert,count\n0,0,1\n0,1\n",
    message: ", line 3: it has 2 values instead of 3",
  },
  {
    what: "a count given twice in a table",
    text: "layer,expert,count\n0,0,1\n0,0,1\n",
    message: ", line 3: layer 0, expert 0 has a count already, 1",
  },
  {
    what: "a table of other sizes than wanted",
    text: "layer,expert,count\n2,1,1\n",
    options: { layers: 2 },
    message: ": it has 3 layers instead of 2",
  },
  {
    what: "the format of a folder",
    text: "",
    options: { format: "tensorrt-llm" },
    message: ": format tensorrt-llm is that of a folder",
  },
];

for (const { what, text, name = "x", options, message } of REFUSED) {
  Deno.test(`parseLoad() refuses ${what}`, () => {
    assertThrows(
      () => parseLoad(text, { name, ...options }),
      RangeError,
      `Cannot use load "${name}"${message}`,
    );
  });
}

Deno.test("parseLoad() names the file and the line that is no JSON", () => {
  const cases: [string, LoadFormat, string][] = [
    ['{"logical_count": [[1, 2', "json", 'Cannot read "x": '],
    ['{"a": 1}\n{"a"', "json", 'Cannot read "x": '],
    ['{"logical_count": [[1]]}\nx', "jsonl", 'Cannot read "x", line 2: '],
  ];
  for (const [text, format, message] of cases) {
    assertThrows(
      () => parseLoad(text, { name: "x", format }),
      SyntaxError,
      message,
    );
  }
});

Deno.test("totalLoad() adds up steps, and refuses what is not exact", () => {
  assertEquals(
    [...totalLoad(traceOf([[[1, 2], [3, 4]], [[10, 20], [30, 40]]]))],
    [11, 22, 33, 44],
  );
  assertThrows(
    () => totalLoad(traceOf([[[0], [MOST]], [[0], [1]]])),
    RangeError,
    `Cannot add up load: layer 1, expert 0 has ${2 ** 53} tokens`,
  );
});

Deno.test("readLoad() names a file that is missing, broken or of another format", async () => {
  await using folder = new TemporaryFolder();
  const missing = folder.file("x.json");
  await assertRejects(
    () => readLoad(missing),
    Deno.errors.NotFound,
    `Cannot read "${missing}": no such file`,
  );
  await assertRejects(
    () => readLoad(folder.path),
    Deno.errors.NotFound,
    `Cannot read "${folder.path}": the folder has no "meta_info.json"`,
  );
  await assertRejects(
    () => readLoad(folder.path, { format: "csv" }),
    RangeError,
    `Cannot use load "${folder.path}": it is a folder`,
  );
  await Deno.writeTextFile(missing, "{");
  await assertRejects(
    () => readLoad(missing),
    SyntaxError,
    `Cannot read "${missing}": `,
  );
  await assertRejects(
    () => readLoad(missing, { format: "tensorrt-llm" }),
    RangeError,
    `Cannot use load "${missing}": it is no folder`,
  );
  await Deno.writeTextFile(folder.file("meta_info.json"), "{");
  await assertRejects(
    () => readLoad(folder.path),
    SyntaxError,
    `Cannot read "${folder.path}", "meta_info.json": `,
  );
});

const RECORDED = dataFile("traces/decode_in1000out1000.json");

Deno.test({
  name: "readLoad() reads a load that SGLang recorded",
  ignore: RECORDED === undefined,
  fn: async () => {
    const { pathname } = RECORDED!;
    const trace = await readLoad(pathname, { layers: 61, experts: 256 });
    const rows = JSON.parse(await Deno.readTextFile(pathname)).logical_count;
    assertEquals(trace, traceOf([rows]));
  },
});
