import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { StoreServer } from "../../lib/cluster/store_server.ts";
import { type RankProcess, startRankProcesses } from "../_rank_processes.ts";
import { leftBehind, sharedMemory } from "../_shared_memory.ts";
import type { ServeReport, ServeTask } from "./_rank_process.ts";

const TASK: ServeTask = {
  layers: 5,
  slotsPerRank: 5,
  experts: 16,
  words: 2000,
  mode: "async",
  policy: "deepseek",
  steps: 160,
  stepInterval: 20,
  timeout: 30_000,
};

/** Runs ranks to their end; what happens to them meanwhile is `during`'s to do. */
async function runRanks(
  ranks: number,
  task: ServeTask,
  during: (ranks: readonly RankProcess<ServeReport>[]) => Promise<void> = () =>
    Promise.resolve(),
): Promise<ServeReport[]> {
  const before = sharedMemory();
  await using server = StoreServer.listen({ worldSize: ranks, token: "t" });
  const processes = startRankProcesses<ServeTask, ServeReport>(server, {
    script: new URL("./_rank_process.ts", import.meta.url),
    task: () => task,
    line: "announced",
  });
  await during(processes);
  const reports = await Promise.all(processes.map(({ report }) => report));
  assertEquals(await leftBehind(before), []);
  return reports.filter((report) => report !== undefined);
}

function assertSound(reports: readonly ServeReport[], steps: number): void {
  for (const report of reports) {
    assertEquals(report.error, undefined);
    assertEquals(report.wrongWords, 0);
    assertEquals(report.differentMaps, 0);
    assertEquals(report.steps, steps);
    assertEquals(report.placement, reports[0]!.placement);
  }
}

for (const mode of ["async", "sync"] as const) {
  for (const policy of ["deepseek", "quota"] as const) {
    Deno.test(`4 processes balance while they serve, ${mode}, ${policy}: one map, every byte right in every step`, async () => {
      const reports = await runRanks(4, { ...TASK, mode, policy });
      assertEquals(reports.length, 4);
      assertSound(reports, TASK.steps);
      for (const { outcomes, failure } of reports) {
        assertEquals(failure, null);
        assert(
          outcomes.filter((one) => one === "committed").length >= 2,
          `${outcomes}`,
        );
        assertEquals(
          outcomes.filter((one) => one === "failed" || one === "abandoned"),
          [],
        );
      }
    });
  }
}

Deno.test("4 processes on 2 nodes, each with staging for one expert: moves follow each other on all", async () => {
  const reports = await runRanks(4, {
    ...TASK,
    nodes: 2,
    staging: 8192,
    layersPerStep: 5,
    stepInterval: 50,
    steps: 300,
    pause: 1,
  });
  assertSound(reports, 300);
  for (const { outcomes, failure } of reports) {
    assertEquals(failure, null);
    assertEquals(new Set(outcomes), new Set(["committed"]));
  }
});

Deno.test("a rank that refuses makes all abandon the cycle, and all serve on", async () => {
  const task = { ...TASK, stopAt: { rank: 1, step: 30 } };
  const reports = await runRanks(4, task);
  assertSound(reports, TASK.steps);
  for (const { outcomes, reasons } of reports) {
    const abandoned = outcomes.indexOf("abandoned");
    assert(abandoned >= 0, `${outcomes}`);
    assertEquals(reasons[abandoned], "rank 1: told to stop");
  }
});

Deno.test("ranks that leave are emptied in the middle of a cycle, on 4 processes", async () => {
  const reports = await runRanks(4, {
    ...TASK,
    slotsPerRank: 6,
    policy: "quota",
    leave: { step: 8, ranks: [1] },
  });
  assertSound(reports, TASK.steps);
  const map = reports[0]!.placement.split(",").map(Number);
  const slots = 4 * 6;
  map.forEach((expert, cell) => {
    if (Math.floor((cell % slots) / 6) === 1) assertEquals(expert, -1);
  });
});

Deno.test("processes that do not agree about the model are refused, and named", async () => {
  const reports = await runRanks(4, { ...TASK, strayInterval: 2 });
  assertEquals(reports.length, 4);
  for (const { error } of reports) {
    assertStringIncludes(error!, 'Cannot add model "main": rank 2 has another');
  }
});

/** Loses rank 2 some time after a cycle has begun; what the other ranks report. */
async function loseRank(
  signal: Deno.Signal,
  milliseconds: number,
): Promise<ServeReport[]> {
  const task = {
    ...TASK,
    layers: 40,
    steps: 90,
    announce: 6,
    pause: 2,
    timeout: 15_000,
  };
  return await runRanks(4, task, async (ranks) => {
    const { heard, child } = ranks[2]!;
    await heard;
    await new Promise((resolve) => setTimeout(resolve, milliseconds));
    child.kill(signal);
    const others = ranks.filter((_, rank) => rank !== 2);
    await Promise.all(others.map(({ report }) => report));
    if (signal === "SIGSTOP") child.kill("SIGKILL");
  });
}

function assertServesOn(reports: readonly ServeReport[]): void {
  assertEquals(reports.map(({ rank }) => rank), [0, 1, 3]);
  for (const report of reports) {
    assertEquals(report.wrongWords, 0);
    assertEquals(report.steps, 90);
    assertEquals(report.placement, reports[0]!.placement);
    assertEquals(report.outcomes.at(-1), "failed");
    assertEquals(report.failedRanks.at(-1), 2, report.reasons.at(-1));
    assert(report.failure !== null);
    assert(report.failureSeconds < 15, `${report.failureSeconds} s`);
  }
}

Deno.test("a rank that dies in a cycle: the others say so, and serve on with maps that are true", async (t) => {
  for (let round = 0; round < 8; round++) {
    await t.step(`round ${round}: after ${40 * round} ms`, async () => {
      assertServesOn(await loseRank("SIGKILL", 40 * round));
    });
  }
});

Deno.test("a rank that hangs in a cycle: the others say so in time, and serve on with maps that are true", async () => {
  assertServesOn(await loseRank("SIGSTOP", 100));
});
