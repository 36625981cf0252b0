import {
  assert,
  assertEquals,
  assertMatch,
  assertStringIncludes,
} from "@std/assert";
import { StoreServer } from "../../lib/cluster/store_server.ts";
import { SeededRandom } from "../../lib/random.ts";
import { leftBehind, sharedMemory } from "../_shared_memory.ts";
import { startRanks } from "./_job.ts";
import type { RankReport, RankTask } from "./_rank_process.ts";

const small: RankTask = {
  layers: 3,
  slotsPerRank: 5,
  experts: 12,
  nodes: 2,
  words: [1, 300, 5000],
  steps: 40,
  timeout: 60_000,
};

async function runAll(
  worldSize: number,
  task: RankTask | ((rank: number) => RankTask),
): Promise<RankReport[]> {
  await using server = StoreServer.listen({ worldSize, token: "t" });
  const ranks = startRanks(server, task);
  const reports = await Promise.all(ranks.map(({ report }) => report));
  return reports.filter((one) => one !== undefined);
}

Deno.test("rearrange() leaves every byte where the map says, one process per rank", async () => {
  const before = sharedMemory();
  const reports = await runAll(4, small);
  assertEquals(reports.map(({ error }) => error), Array(4).fill(undefined));
  assertEquals(reports.map(({ steps }) => steps), Array(4).fill(40));
  assertEquals(reports.map(({ wrongWords }) => wrongWords), Array(4).fill(0));
  assertEquals(await leftBehind(before), []);
});

Deno.test("rearrange() refuses plans that differ, and names the rank", async () => {
  const reports = await runAll(
    4,
    (rank) => rank === 2 ? { ...small, strayFrom: 3 } : small,
  );
  for (const report of reports) {
    assertEquals(report.errorName, "PlanMismatchError");
    assertStringIncludes(report.error!, "rank 2 has");
    assertEquals(report.wrongWords, 0);
    assertEquals(report.steps, 3);
  }
  assertEquals(reports.length, 4);
});

Deno.test("connect() refuses ranks whose tensors differ in size, and names one", async () => {
  const before = sharedMemory();
  const reports = await runAll(
    2,
    (rank) => ({
      ...small,
      experts: 10,
      words: rank === 1 ? [1, 300, 5001] : small.words,
    }),
  );
  assertEquals(reports.length, 2);
  for (const { error } of reports) assertMatch(error!, /rank [01]/);
  assert(reports.some(({ error }) => error!.includes("tensor")));
  assertEquals(await leftBehind(before), []);
});

Deno.test("kill -9 of a rank gives every survivor an error that names it, and loses nothing", async (t) => {
  const large: RankTask = {
    ...small,
    layers: 24,
    slotsPerRank: 8,
    experts: 24,
    words: [40_000, 10],
    steps: 1_000_000,
    timeout: 20_000,
  };
  const random = new SeededRandom(11);
  let midMove = 0;
  for (let round = 0; round < 20; round++) {
    const victim = random.below(4);
    const moment = random.below(400);
    await t.step(
      `round ${round}: rank ${victim} after ${moment} ms`,
      async () => {
        const before = sharedMemory();
        await using server = StoreServer.listen({ worldSize: 4, token: "t" });
        const ranks = startRanks(server, large);
        await Promise.all(ranks.map(({ heard }) => heard));
        await new Promise((resolve) => setTimeout(resolve, moment));
        ranks[victim]!.child.kill("SIGKILL");
        const killed = performance.now();
        const reports = await Promise.all(ranks.map(({ report }) => report));
        const seconds = (performance.now() - killed) / 1e3;
        const survivors = reports.filter((one) => one !== undefined);
        assertEquals(survivors.length, 3);
        for (const report of survivors) {
          assertEquals(report.errorName, "RearrangeError");
          assertEquals(report.failedRank, victim, report.error);
          assertStringIncludes(report.error!, `rank ${victim}`);
          assertEquals(report.wrongWords, 0);
          assertEquals(report.placement, survivors[0]!.placement);
        }
        const layers = survivors.map((report) => report.committedLayers!);
        if (layers.some((n) => n > 0 && n < large.layers)) midMove++;
        assert(seconds < 20, `survivors took ${seconds} s`);
        assertEquals(await leftBehind(before), []);
      },
    );
  }
});
