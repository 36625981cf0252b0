import {
  assert,
  assertEquals,
  assertMatch,
  assertStringIncludes,
} from "@std/assert";
import "../_native.ts";
import { TemporaryFolder } from "../weights/_files.ts";
import { assertSaved, FIXTURES } from "./_checkpoints.ts";
import { leftBehind, sharedMemory } from "../_shared_memory.ts";
import { torchrun } from "./_job.ts";
import { contiguousMap, jsonOf, needsOf, shuffledMap } from "./_maps.ts";
import { documentOf, errorOf, run, runProcess } from "./_run.ts";

const MIXTRAL = FIXTURES[2]!;
const JOB = ["rearrange", "--device", "host", "--json"];

Deno.test("rearrange --processes moves a checkpoint between processes, bit for bit", async () => {
  await using folder = new TemporaryFolder();
  const before = sharedMemory();
  const size = { layers: 2, slots: 12, experts: 8 };
  const map = shuffledMap(size, 9);
  await Deno.writeTextFile(folder.file("map.json"), jsonOf(map));
  const outcome = await run(
    ...[...JOB, "--processes", "--ranks", "4", "--nodes", "2"],
    ...["--weights", MIXTRAL.folder, "--to", folder.file("map.json")],
    ...["--save", folder.file("out")],
  );
  assertEquals(outcome.code, 0, outcome.stderr);
  const report = documentOf(outcome);
  assertEquals([report.ranks, report.nodes, report.processes], [4, 2, 4]);
  assertEquals([report.verified, report.mismatches], [true, 0]);
  const world = { ranks: 4, nodes: 2 };
  const { moves, received } = needsOf(contiguousMap(size), map, world);
  assertEquals(report.moves, moves);
  assertEquals(
    report.bytesReceived,
    received.map((experts) => experts * MIXTRAL.expertBytes),
  );
  await assertSaved(folder.file("out"), { fixture: MIXTRAL, map, ranks: 4 });
  assertEquals(await leftBehind(before), []);
});

Deno.test("rearrange --processes prints the same moves as one process", async () => {
  const args = [...JOB, "--ranks", "3", "--repeat", "2", "--load", "zipf:2"];
  const [one, many] = await Promise.all([
    run(...args),
    runProcess([...args, "--processes"]),
  ]);
  assertEquals([one.code, many.code], [0, 0]);
  const [a, b] = [documentOf(one), documentOf(many)];
  for (const key of ["moves", "bytesSent", "bytesReceived", "balancedness"]) {
    assertEquals(b[key], a[key]);
  }
  assertEquals([b.processes, b.runs.length], [3, 2]);
  assertEquals(many.stderr, "");
});

Deno.test("rearrange --processes refuses a mistake once, before it starts a process", async () => {
  const usage = await run(
    ...JOB,
    "--processes",
    "--ranks",
    "4",
    "--slots",
    "1",
  );
  assertEquals(usage.code, 2);
  assertStringIncludes(
    errorOf(usage).message,
    "--slots must be at least 4 for 16 experts on 4 ranks",
  );
  const failure = await run(...JOB, "--processes", "--from", "/no/map.json");
  assertEquals(failure.code, 1);
  for (const { stderr } of [usage, failure]) {
    assert(!stderr.includes("launching"), stderr);
  }
});

Deno.test("rearrange --processes passes on why the ranks failed, and leaves nothing", async () => {
  await using folder = new TemporaryFolder();
  const before = sharedMemory();
  const outcome = await run(
    ...[...JOB, "--processes", "--ranks", "2", "--staging", "10"],
    ...["--save", folder.file("out")],
  );
  const message = "Cannot stage experts: staging has 10 bytes, 1 set(s) of " +
    "one expert need 25088";
  assertEquals(outcome.code, 2);
  assertEquals(errorOf(outcome), { name: "UsageError", message });
  for (const rank of [0, 1]) {
    assertStringIncludes(outcome.stderr, `[rank ${rank}] error: ${message}\n`);
  }
  assertEquals(await leftBehind(before), []);
  assertEquals(await Array.fromAsync(Deno.readDir(folder.path)), []);
});

Deno.test("rearrange under torchrun is one rank of the job, and rank 0 prints", async () => {
  await using folder = new TemporaryFolder();
  const before = sharedMemory();
  const map = shuffledMap({ layers: 2, slots: 12, experts: 8 }, 5);
  await Deno.writeTextFile(folder.file("map.json"), jsonOf(map));
  const outcomes = await torchrun(3, () => [
    ...[...JOB, "--weights", MIXTRAL.folder, "--to", folder.file("map.json")],
    ...["--save", folder.file("out")],
  ]);
  assertEquals(outcomes.map(({ code }) => code), [0, 0, 0]);
  assertEquals(outcomes.map(({ stderr }) => stderr), ["", "", ""]);
  const [first, ...others] = outcomes;
  assertEquals(others.map(({ stdout }) => stdout), ["", ""]);
  const report = documentOf(first!);
  // All processes are on one host, which is one node.
  assertEquals([report.ranks, report.nodes, report.processes], [3, 1, 3]);
  assertEquals([report.transport, report.verified], ["pull", true]);
  await assertSaved(folder.file("out"), { fixture: MIXTRAL, map, ranks: 3 });
  assertEquals(await leftBehind(before), []);
});

Deno.test("rearrange under torchrun tells every rank which one failed, and why", async () => {
  const before = sharedMemory();
  const argsOf = (rank: number): string[] => [
    ...[...JOB, "--ranks", "3", "--timeout", "20"],
    ...["--to", rank === 1 ? "/no/map.json" : "random:1"],
  ];
  // The last rank comes when rank 1 could have failed long ago.
  const outcomes = await torchrun(3, argsOf, 700);
  assertEquals(outcomes.map(({ code }) => code), [1, 1, 1]);
  const reason = 'Cannot read "/no/map.json": no such file';
  const [zero, one, two] = outcomes;
  assertEquals([one!.stdout, two!.stdout], ["", ""]);
  assertEquals(one!.stderr, `error: ${reason}\n`);
  for (const message of [errorOf(zero!).message, two!.stderr]) {
    assertMatch(message, /rank 1 gave up/);
    assertStringIncludes(message, reason);
  }
  assertEquals(await leftBehind(before), []);
});

Deno.test("rearrange under torchrun refuses to plan for different maps", async () => {
  const outcomes = await torchrun(3, (rank) => [
    ...[...JOB, "--timeout", "20", "--to", `random:${rank === 2 ? 6 : 5}`],
  ]);
  assertEquals(outcomes.map(({ code }) => code), [1, 1, 1]);
  const { error } = documentOf(outcomes[0]!);
  assertEquals(error.name, "PlanMismatchError");
  assertEquals(error.ranks, [2]);
  assertEquals(outcomes.slice(1).map(({ stdout }) => stdout), ["", ""]);
});

Deno.test("rearrange under torchrun refuses options that contradict it", async () => {
  const [zero, one] = await torchrun(2, (rank) => [
    ...[...JOB, ...rank === 0 ? ["--processes"] : ["--ranks", "4"]],
  ]);
  assertEquals([zero!.code, one!.code, one!.stdout], [2, 2, ""]);
  assertEquals(
    errorOf(zero!).message,
    "--processes launches ranks, but torchrun has launched this one, rank 0 of 2",
  );
  assertStringIncludes(
    one!.stderr,
    "error: --ranks is 4, but torchrun has launched 2\n",
  );
});

Deno.test("rearrange under torchrun says which port is taken", async () => {
  using listener = Deno.listen({ port: 0 });
  const { port } = listener.addr;
  const outcome = await runProcess(JOB, {
    RANK: "0",
    WORLD_SIZE: "2",
    LOCAL_RANK: "0",
    MASTER_ADDR: "127.0.0.1",
    EPLB_STORE_PORT: `${port}`,
  });
  assertEquals(outcome.code, 1);
  assertEquals(
    errorOf(outcome).message,
    `Cannot host the store: port ${port} is taken, EPLB_STORE_PORT can name another`,
  );
});

Deno.test("rearrange under torchrun gives up on ranks that do not come", async () => {
  const outcome = await runProcess([...JOB, "--timeout", "0.5"], {
    RANK: "1",
    WORLD_SIZE: "2",
    LOCAL_RANK: "1",
    MASTER_ADDR: "127.0.0.1",
    EPLB_STORE_PORT: "1",
  });
  assertEquals([outcome.code, outcome.stdout], [1, ""]);
  assertMatch(
    outcome.stderr,
    /^error: Cannot join store at 127\.0\.0\.1:1 as rank 1: no answer within 0\.5 s/,
  );
});
