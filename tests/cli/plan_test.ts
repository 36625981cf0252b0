import {
  assert,
  assertAlmostEquals,
  assertEquals,
  assertStringIncludes,
} from "@std/assert";
import { join } from "@std/path";
import { run } from "./_run.ts";

/** Two MoE layers of four experts below a dense one. */
const LOAD = [[0, 0, 0, 0], [90, 10, 20, 40], [1, 1, 1, 9]];

async function withFiles(
  test: (folder: string, load: string) => Promise<void>,
): Promise<void> {
  const folder = await Deno.makeTempDir();
  try {
    const path = join(folder, "load.json");
    await Deno.writeTextFile(path, JSON.stringify({ logical_count: LOAD }));
    await test(folder, path);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

function rankLoads(
  plan: { physical_to_logical_map: number[][]; replica_shares: number[][] },
  layer: number,
  ranks: number,
): number[] {
  const map = plan.physical_to_logical_map[layer]!;
  const loads = Array(ranks).fill(0);
  map.forEach((expert, slot) => {
    if (expert < 0) return;
    loads[Math.floor(slot * ranks / map.length)] += LOAD[layer]![expert]! *
      plan.replica_shares[layer]![slot]!;
  });
  return loads;
}

for (const policy of ["quota", "deepseek", "preserve", "swap"]) {
  Deno.test(`plan --policy ${policy} prints a map whose imbalance it tells`, async () => {
    await withFiles(async (_, load) => {
      const { code, stdout } = await run(...[
        ...["plan", "--load", load, "--ranks", "2", "--redundant", "2"],
        ...["--policy", policy, "--json"],
      ]);
      assertEquals(code, 0);
      const plan = JSON.parse(stdout);
      assertEquals(plan.physical_to_logical_map.length, 3);
      const values = [1, 2].map((layer) => {
        const loads = rankLoads(plan, layer, 2);
        return 2 * Math.max(...loads) / (loads[0]! + loads[1]!);
      });
      assertAlmostEquals(plan.imbalance.mean, (values[0]! + values[1]!) / 2);
      assertAlmostEquals(plan.imbalance.max, Math.max(...values));
      assertEquals(plan.movedSlots, null);
      assert(plan.planSeconds >= 0);
    });
  });
}

Deno.test("plan --current counts what moves: planning again on its own map moves nothing", async () => {
  await withFiles(async (folder, load) => {
    const sizes = ["--load", load, "--ranks", "2", "--redundant", "2"];
    const first = await run(...["plan", ...sizes, "--json"]);
    const path = join(folder, "map.json");
    await Deno.writeTextFile(path, first.stdout);
    const again = await run(...["plan", ...sizes, "--current", path, "--json"]);
    const plan = JSON.parse(again.stdout);
    assertEquals(plan.movedSlots, 0);
    assertEquals(
      plan.physical_to_logical_map,
      JSON.parse(first.stdout).physical_to_logical_map,
    );
  });
});

Deno.test("plan --active leaves the other ranks' slots empty", async () => {
  await withFiles(async (_, load) => {
    const { code, stdout } = await run(...[
      ...["plan", "--load", load, "--ranks", "3", "--redundant", "5"],
      ...["--active", "0,2", "--json"],
    ]);
    assertEquals(code, 0);
    const map: number[][] = JSON.parse(stdout).physical_to_logical_map;
    for (const row of map) {
      assertEquals(row.slice(3, 6), [-1, -1, -1]);
      assertEquals(new Set(row.filter((id) => id >= 0)).size, 4);
    }
  });
});

Deno.test("plan without --json prints a line for each MoE layer", async () => {
  await withFiles(async (_, load) => {
    const { code, stdout } = await run(
      ...["plan", "--load", load, "--ranks", "2", "--redundant", "2"],
    );
    assertEquals(code, 0);
    const lines = stdout.split("\n").filter((line) =>
      /^ +\d+ +\d\.\d{4} /.test(line)
    );
    assertEquals(lines.length, 2);
    assertStringIncludes(stdout, "in the worst layer");
  });
});

Deno.test("plan refuses what cannot be planned", async () => {
  await withFiles(async (folder, load) => {
    const bad = join(folder, "bad.json");
    await Deno.writeTextFile(bad, '{"logical_count": [[1, -2]]}');
    const cases: [string[], number, string][] = [
      [["--ranks", "2"], 2, "--load is needed"],
      [["--load", load], 2, "--ranks is needed"],
      [["--load", load, "--ranks", "3"], 2, "do not divide among 3 ranks"],
      [
        ["--load", load, "--ranks", "2", "--redundant", "-1"],
        2,
        "--redundant must be a whole number",
      ],
      [
        ["--load", load, "--ranks", "2", "--policy", "best"],
        2,
        "--policy must be one of",
      ],
      [
        ["--load", load, "--ranks", "2", "--active", "0,x"],
        2,
        '"x" is none',
      ],
      [["--load", load, "--ranks", "2", "--active", "0"], 1, "slots"],
      [["--load", bad, "--ranks", "1"], 1, "-2"],
      [["--load", "/no/such", "--ranks", "1"], 1, "no such file"],
    ];
    for (const [args, code, message] of cases) {
      const outcome = await run(...["plan", ...args]);
      assertEquals([outcome.code, outcome.stdout], [code, ""], outcome.stderr);
      assertStringIncludes(outcome.stderr, message);
    }
  });
});

Deno.test("simulate compares policies over phases", async () => {
  await withFiles(async (folder, load) => {
    const other = join(folder, "other.json");
    const shifted = LOAD.map((row) => [...row.slice(1), row[0]]);
    await Deno.writeTextFile(other, JSON.stringify({ logical_count: shifted }));
    const { code, stdout } = await run(...[
      ...["simulate", "--trace", `${load},${other}`, "--ranks", "2"],
      ...["--redundant", "2", "--policy", "quota,deepseek"],
      ...["--link-rate", "100", "--json"],
    ]);
    assertEquals(code, 0);
    const { policies } = JSON.parse(stdout);
    assertEquals(
      policies.map(({ policy }: { policy: string }) => policy),
      ["quota", "deepseek"],
    );
    for (const { phases } of policies) {
      assertEquals(
        phases.map(({ name }: { name: string }) => name),
        ["load", "other"],
      );
      for (const phase of phases) {
        assert(phase.mean <= phase.max);
        assert(phase.estimatedMoveMilliseconds >= 0);
        assert(phase.movedSlotsPerLayer <= 6);
      }
    }
  });
});

Deno.test("simulate --tokens draws the same steps for the same seed", async () => {
  await withFiles(async (_, load) => {
    const once = async (seed: string): Promise<string> => {
      const { stdout } = await run(...[
        ...["simulate", "--trace", load, "--ranks", "2", "--redundant", "2"],
        ...["--policy", "quota", "--tokens", "50", "--steps", "4"],
        ...["--seed", seed, "--json"],
      ]);
      return stdout.replace(/"planMilliseconds": [\d.e-]+/g, "");
    };
    assertEquals(await once("7"), await once("7"));
  });
});

Deno.test("simulate refuses what cannot be replayed", async () => {
  await withFiles(async (_, load) => {
    const cases: [string[], string][] = [
      [["--ranks", "2"], "--trace is needed"],
      [["--trace", load, "--ranks", "2", "--policy", "x"], 'it is "x"'],
      [["--trace", load, "--ranks", "2", "--steps", "3"], "need --tokens"],
    ];
    for (const [args, message] of cases) {
      const outcome = await run(...["simulate", ...args]);
      assertEquals(outcome.code, 2);
      assertStringIncludes(outcome.stderr, message);
    }
  });
});
