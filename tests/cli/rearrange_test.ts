import {
  assert,
  assertAlmostEquals,
  assertEquals,
  assertGreater,
  assertMatch,
  assertStringIncludes,
} from "@std/assert";
import { join } from "@std/path";
import "../_native.ts";
import { TemporaryFolder } from "../weights/_files.ts";
import { assertSaved, FIXTURES } from "./_checkpoints.ts";
import {
  contiguousMap,
  jsonOf,
  needsOf,
  type Rows,
  shuffledMap,
} from "./_maps.ts";
import { documentOf, type Outcome, run } from "./_run.ts";

/** Bytes of one "tiny" expert: [128, 64] and [64, 64] bfloat16, 2 and 1 scales. */
const TINY_BYTES = 2 * (128 * 64 + 64 * 64) + 4 * (2 + 1);

/** Runs `rearrange --json` in host memory; it must succeed. */
// deno-lint-ignore no-explicit-any -- the document's fields are what is tested
async function rearrange(...args: string[]): Promise<any> {
  const outcome = await run("rearrange", "--device", "host", "--json", ...args);
  assertEquals(outcome.code, 0, outcome.stderr);
  return documentOf(outcome);
}

async function writeMap(path: string, rows: Rows): Promise<string> {
  await Deno.writeTextFile(path, jsonOf(rows));
  return path;
}

function sum(values: readonly number[]): number {
  return values.reduce((total, value) => total + value, 0);
}

for (
  const { nodes, size, empty } of [
    { nodes: 1, size: { layers: 4, slots: 24, experts: 16 }, empty: 0 },
    { nodes: 2, size: { layers: 4, slots: 24, experts: 16 }, empty: 0 },
    { nodes: 4, size: { layers: 3, slots: 40, experts: 9 }, empty: 0 },
    { nodes: 2, size: { layers: 5, slots: 24, experts: 17 }, empty: 3 },
  ]
) {
  Deno.test(`rearrange --json counts what moving ${size.layers} x ${size.slots} slots on ${nodes} nodes takes`, async () => {
    await using folder = new TemporaryFolder();
    const from = shuffledMap({ ...size, empty }, 7);
    const to = shuffledMap({ ...size, empty }, 8);
    const report = await rearrange(
      ...["--ranks", "8", "--nodes", String(nodes)],
      ...["--from", await writeMap(folder.file("from.json"), from)],
      ...["--to", await writeMap(folder.file("to.json"), to)],
    );
    const { moves, received } = needsOf(from, to, { ranks: 8, nodes });
    assertEquals(report.moves, moves);
    assertEquals(
      sum(Object.values(moves)),
      size.layers * (size.slots - empty),
    );
    assertEquals(
      report.bytesReceived,
      received.map((experts) => experts * TINY_BYTES),
    );
    assertEquals(report.bytesSent.length, 8);
    assertEquals(sum(report.bytesSent), sum(report.bytesReceived));
    assertEquals(
      sum(report.bytesSent),
      (moves.sameNode + moves.crossNode) * TINY_BYTES,
    );
    assertEquals([report.verified, report.mismatches], [true, 0]);
    assertEquals(report.mismatched, []);
  });
}

Deno.test("rearrange --json tells sizes, transport and times", async () => {
  const report = await rearrange("--ranks", "4", "--nodes", "2");
  const {
    moves,
    bytesSent,
    bytesReceived,
    planSeconds,
    moveSeconds,
    stagingBytes,
    gigabytesPerSecond,
    bytesBetweenNodes,
    runs,
    ...rest
  } = report;
  assertEquals(rest, {
    ranks: 4,
    nodes: 2,
    layers: 4,
    slotsPerRank: 5,
    experts: 16,
    expertBytes: TINY_BYTES,
    weights: "synthetic tiny",
    device: "host",
    transport: "pull",
    processes: 1,
    sources: "balanced",
    maxRate: null,
    // Some expert goes to both ranks of a node.
    hops: 2,
    lowerBoundSeconds: null,
    balancedness: null,
    verified: true,
    mismatches: 0,
    mismatched: [],
  });
  assertEquals(sum(Object.values(moves)), 4 * 4 * 5);
  assertEquals([bytesSent.length, bytesReceived.length], [4, 4]);
  for (const seconds of [planSeconds, moveSeconds]) {
    assert(seconds > 0 && seconds < 60);
  }
  assertGreater(stagingBytes, 2 * TINY_BYTES);
  // An expert crosses nodes once, also if both ranks of the node get it.
  const direct = await rearrange("--ranks", "4", "--nodes", "2", "--no-relay");
  assertEquals(direct.hops, 1);
  assertEquals(direct.bytesBetweenNodes, moves.crossNode * TINY_BYTES);
  assertGreater(direct.bytesBetweenNodes, bytesBetweenNodes);
  const busiestBytes = Math.max(...bytesReceived);
  assertAlmostEquals(
    gigabytesPerSecond,
    busiestBytes / moveSeconds / 1e9,
    1e-9 * gigabytesPerSecond,
  );
  assertEquals(runs, [{
    moveSeconds,
    busiestBytes,
    gigabytesPerSecond,
    lowerBoundSeconds: null,
    verified: true,
  }]);
});

Deno.test("rearrange --link-rate bounds the time by the busiest rank", async () => {
  const report = await rearrange("--ranks", "4", "--link-rate", "0.5");
  const busiest = Math.max(...report.bytesSent, ...report.bytesReceived);
  assertAlmostEquals(report.lowerBoundSeconds, busiest / 0.5e9, 1e-12);
  assertEquals(report.runs[0].lowerBoundSeconds, report.lowerBoundSeconds);
});

Deno.test("rearrange --node-rate bounds the time of bytes between nodes", async () => {
  await using folder = new TemporaryFolder();
  const swap = [
    ...["--from", await writeMap(folder.file("from.json"), [[0, 1, 2, 3]])],
    ...["--to", await writeMap(folder.file("to.json"), [[2, 3, 0, 1]])],
    ...["--ranks", "2", "--nodes", "2"],
  ];
  const bounded = await rearrange(...swap, "--node-rate", "10");
  assertEquals(bounded.moves.crossNode, 4);
  assertAlmostEquals(bounded.lowerBoundSeconds, 2 * TINY_BYTES / 10e9, 1e-12);
  // The rate inside nodes says nothing about bytes between them.
  const unknown = await rearrange(...swap, "--link-rate", "10");
  assertEquals(unknown.lowerBoundSeconds, null);
});

Deno.test("rearrange moves nothing between equal maps", async () => {
  const report = await rearrange(
    ...["--ranks", "2", "--to", "contiguous", "--link-rate", "1"],
  );
  assertEquals(report.moves, {
    unchanged: 4 * 2 * 9,
    sameRank: 0,
    duplicate: 0,
    sameNode: 0,
    crossNode: 0,
  });
  assertEquals(report.bytesReceived, [0, 0]);
  assertEquals([report.gigabytesPerSecond, report.lowerBoundSeconds], [0, 0]);
  assert(report.verified);
});

Deno.test("rearrange --repeat goes on from where it is, with the next seed", async () => {
  await using folder = new TemporaryFolder();
  const saved = async (name: string, ...args: string[]): Promise<string> => {
    await rearrange("--ranks", "2", "--save", folder.file(name), ...args);
    return await Deno.readTextFile(join(folder.file(name), "placement.json"));
  };
  const report = await rearrange(
    ...["--ranks", "2", "--to", "random:5", "--repeat", "3"],
    ...["--save", folder.file("repeated")],
  );
  assertEquals(report.runs.length, 3);
  for (const { verified, busiestBytes } of report.runs) {
    assert(verified);
    assertGreater(busiestBytes, 0);
  }
  assertEquals(report.moveSeconds, report.runs[2].moveSeconds);
  assertEquals(
    await Deno.readTextFile(join(folder.file("repeated"), "placement.json")),
    await saved("last", "--to", "random:7"),
  );
  // The counts are those of the last step: from seed 6 to seed 7.
  await saved("before", "--to", "random:6");
  const step = await rearrange(
    ...["--ranks", "2", "--to", "random:7"],
    ...["--from", join(folder.file("before"), "placement.json")],
  );
  assertEquals(report.moves, step.moves);
});

Deno.test("rearrange --no-verify leaves the verdict open", async () => {
  const report = await rearrange("--ranks", "2", "--no-verify");
  assertEquals([report.verified, report.mismatches], [null, 0]);
  assertEquals(report.runs[0].verified, null);
  assert((await rearrange("--ranks", "2", "--verify")).verified);
});

Deno.test("rearrange --load shows how balanced the maps are", async () => {
  await using folder = new TemporaryFolder();
  await Deno.writeTextFile(
    folder.file("load.json"),
    JSON.stringify({ logical_count: [[40, 10, 30, 20]] }),
  );
  const report = await rearrange(
    ...["--from", await writeMap(folder.file("a.json"), [[0, 1, 2, 3, 0, 1]])],
    ...["--to", await writeMap(folder.file("b.json"), [[0, 1, 3, 0, 2, 2]])],
    ...["--ranks", "2", "--load", folder.file("load.json")],
  );
  // Ranks take 20 + 5 + 30 and 20 + 20 + 5; then 20 + 10 + 20 and 20 + 30.
  assertAlmostEquals(report.balancedness.before, 50 / 55, 1e-12);
  assertAlmostEquals(report.balancedness.after, 1, 1e-12);
});

Deno.test("rearrange --to deepseek balances a made-up load", async () => {
  const args = ["--ranks", "4", "--experts", "32", "--load", "zipf:3"];
  const report = await rearrange(...args, "--to", "deepseek");
  const { before, after } = report.balancedness;
  assert(before < 0.75, `contiguous is at ${before}`);
  assert(after > 0.9 && after <= 1, `deepseek is at ${after}`);
  const other = await rearrange(...args.slice(0, -1), "zipf:4");
  assert(before !== other.balancedness.before);
});

Deno.test("rearrange --max-rate takes its time, and says within what bound", async () => {
  const args = ["--ranks", "2", "--max-rate", "0.01"];
  const { maxRate, moveSeconds, bytesReceived, verified } = await rearrange(
    ...args,
  );
  assertEquals([maxRate, verified], [10e6, true]);
  const most = Math.max(...bytesReceived);
  assertGreater(most, 0);
  assert(moveSeconds >= most / 10e6, `${moveSeconds} s`);
  const { stdout } = await run("rearrange", "--device", "host", ...args);
  assertMatch(stdout, /bound on what a rank gathers +10.0 MB\/s/);
});

Deno.test("rearrange --sources chunked sends the same bytes into each rank", async () => {
  // Many replicas leave much to choose.
  const maps = ["--from", "random:3", "--to", "random:53"];
  const args = [...maps, "--experts", "4", "--slots", "4", "--sources"];
  const balanced = await rearrange(...args, "balanced");
  const chunked = await rearrange(...args, "chunked");
  assertEquals(chunked.sources, "chunked");
  assertEquals(chunked.moves, balanced.moves);
  assertEquals(chunked.bytesReceived, balanced.bytesReceived);
  assert(Math.max(...chunked.bytesSent) > Math.max(...balanced.bytesSent));
  assert(chunked.verified);
});

Deno.test("rearrange --staging and --staging-sets bound the staging memory", async () => {
  const size = ["--ranks", "2", "--layers", "1", "--experts", "4"];
  const full = await rearrange(...size);
  const one = await rearrange(...size, "--staging-sets", "1");
  assertEquals(one.stagingBytes, full.stagingBytes / 2);
  const bound = await rearrange(...size, "--staging", "110KB");
  assert(bound.stagingBytes <= 110_000);
  assert(bound.stagingBytes < full.stagingBytes);
  for (const { verified } of [full, one, bound]) assert(verified);
});

for (
  const { shape, bytes } of [
    // Gate and up, down; scales of 128 × 128 blocks, gate's and up's apart.
    { shape: "deepseek-r1", bytes: 3 * 112 * 32 + 4 * 3 },
    { shape: "qwen3-235b", bytes: 2 * 3 * 64 * 24 },
    { shape: "mixtral-8x7b", bytes: 2 * 3 * 64 * 224 },
    { shape: "tiny", bytes: 2 * 3 + 4 * 3 },
  ]
) {
  Deno.test(`rearrange --shape ${shape} has experts of the model's shape`, async () => {
    const report = await rearrange(
      ...["--shape", shape, "--scale", "64", "--ranks", "2", "--layers", "2"],
      ...["--experts", "8"],
    );
    assertEquals(report.expertBytes, bytes);
    assertEquals([report.layers, report.experts], [2, 8]);
    assertEquals(report.weights, `synthetic ${shape} / 64`);
    assert(report.verified);
  });
}

Deno.test("rearrange takes its sizes from a map file", async () => {
  await using folder = new TemporaryFolder();
  const size = { layers: 3, slots: 12, experts: 10 };
  const map = await writeMap(folder.file("map.json"), shuffledMap(size, 1));
  for (const flag of ["--from", "--to"]) {
    const report = await rearrange("--ranks", "4", flag, map);
    assertEquals(report.layers, 3);
    assertEquals([report.slotsPerRank, report.experts], [3, 10]);
  }
  const back = await rearrange("--ranks", "4", "--from", map, "--to", map);
  assertEquals(back.moves.unchanged, 36);
});

for (const fixture of FIXTURES) {
  Deno.test(`rearrange --save writes the experts of ${fixture.name} as the map says, from file to file`, async () => {
    await using folder = new TemporaryFolder();
    const { layers, experts, expertBytes } = fixture;
    const size = { layers, slots: experts + 8, experts };
    const maps = [
      contiguousMap(size),
      shuffledMap(size, 3),
      shuffledMap({ ...size, empty: 2 }, 4),
    ];
    let from = "contiguous";
    for (let step = 1; step < maps.length; step++) {
      const out = folder.file(`out-${step}`);
      const to = folder.file(`map-${step}.json`);
      const report = await rearrange(
        ...["--weights", fixture.folder, "--ranks", "4", "--nodes", "2"],
        ...["--from", from, "--to", await writeMap(to, maps[step]!)],
        ...["--save", out],
      );
      assertEquals(report.expertBytes, expertBytes);
      assertEquals(
        report.moves,
        needsOf(maps[step - 1]!, maps[step]!, { ranks: 4, nodes: 2 }).moves,
      );
      assertStringIncludes(report.weights, fixture.folder);
      assert(report.verified);
      await assertSaved(out, { fixture, map: maps[step]!, ranks: 4 });
      from = join(out, "placement.json");
    }
  });
}

Deno.test("rearrange --save writes over what an earlier run has saved", async () => {
  await using folder = new TemporaryFolder();
  const fixture = FIXTURES[2]!;
  const size = { layers: 2, slots: 12, experts: 8 };
  for (const seed of [1, 2]) {
    const map = shuffledMap(size, seed);
    await rearrange(
      ...["--weights", fixture.folder, "--ranks", "4"],
      ...["--to", await writeMap(folder.file("map.json"), map)],
      ...["--save", folder.file("out")],
    );
    await assertSaved(folder.file("out"), { fixture, map, ranks: 4 });
  }
});

Deno.test("rearrange prints tables for people, and progress on stderr only", async () => {
  const outcome: Outcome = await run(
    ...["rearrange", "--device", "host", "--ranks", "2", "--layers", "1"],
    ...["--load", "zipf:1", "--link-rate", "50", "--repeat", "2"],
  );
  const { code, stdout, stderr } = outcome;
  assertEquals(code, 0);
  assertMatch(stdout, /^synthetic tiny: 1 layer, 16 experts of 24.6 kB\n/);
  assertStringIncludes(
    stdout,
    "\n2 ranks with 9 slots on 1 node, in host memory, transport pull, 1 process\n",
  );
  for (
    const name of [
      "unchanged",
      "copied inside the rank",
      "duplicate of a received one",
      "from the same node",
      "from another node",
      "lower bound",
      "into the busiest rank",
      "balancedness",
    ]
  ) {
    assertMatch(stdout, new RegExp(`^${name} +\\S`, "m"));
  }
  assertMatch(stdout, /^ +2 .* yes$/m);
  assert(
    stdout.endsWith(
      "\nverified: every expert's digest is that of its source\n",
    ),
  );
  // deno-lint-ignore no-control-regex -- there must be none
  assert(!/[\r\x1b]/.test(stdout));
  assertStringIncludes(stderr, "\rfilling the slots of rank 1\r");
  assert(stderr.endsWith("\r"), "the last state must be cleared");
});
