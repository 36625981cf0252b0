import { assertEquals, assertLess, assertRejects } from "@std/assert";
import {
  type LaunchOptions,
  launchRanks,
  type RankExit,
} from "../../lib/cluster/launch.ts";
import { StoreServer } from "../../lib/cluster/store_server.ts";

const NO_STORE = { address: "127.0.0.1:1", token: "a secret" };

/** Runs a shell script in every rank. */
function launch(
  worldSize: number,
  script: string,
  options: Partial<LaunchOptions> = {},
): Promise<RankExit[]> {
  return launchRanks({
    worldSize,
    command: "sh",
    args: ["-c", script],
    server: NO_STORE,
    onLine: () => {},
    ...options,
  });
}

/** Whether a process is gone, or soon will be: a signal takes a moment. */
async function ends(pid: number): Promise<boolean> {
  for (let attempt = 0; attempt < 500; attempt++) {
    const stat = await Deno.readTextFile(`/proc/${pid}/stat`).catch(() => "");
    // What nobody has waited for stays as a zombie.
    if (stat === "" || / [ZX] /.test(stat)) return true;
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  return false;
}

Deno.test("launchRanks() returns how every rank ended", async () => {
  const script = 'if [ "$EPLB_RANK" = 2 ]; then kill -9 $$; fi; exit 0';
  assertEquals(await launch(3, script), [
    { rank: 0, code: 0, signal: null },
    { rank: 1, code: 0, signal: null },
    { rank: 2, code: 137, signal: "SIGKILL" },
  ]);
});

Deno.test("launchRanks() tells every rank who it is", async () => {
  const lines: string[] = [];
  const script = 'echo "$EPLB_RANK/$EPLB_WORLD_SIZE $EPLB_LOCAL_RANK ' +
    '$EPLB_STORE $EPLB_TOKEN $FRUIT"';
  await launch(2, script, {
    env: { FRUIT: "pear", EPLB_RANK: "9" },
    onLine: (line) => lines.push(line),
  });
  assertEquals(lines.sort(), [
    "[rank 0] 0/2 0 127.0.0.1:1 a secret pear",
    "[rank 1] 1/2 1 127.0.0.1:1 a secret pear",
  ]);
});

Deno.test("launchRanks() hands over whole lines of both streams", async () => {
  const lines: Record<string, string[]> = { stdout: [], stderr: [] };
  const script = "printf 'one\\ntw'; printf 'o\\r\\n\\n\\303'; " +
    "printf '\\251 end'; printf 'bad\\n' >&2";
  await launch(1, script, {
    onLine: (line, stream) => lines[stream]!.push(line),
  });
  assertEquals(lines, {
    stdout: ["[rank 0] one", "[rank 0] two", "[rank 0] ", "[rank 0] é end"],
    stderr: ["[rank 0] bad"],
  });
});

Deno.test("launchRanks() hands over a line without end in pieces", async () => {
  const lines: string[] = [];
  const script = "head -c 1000000 /dev/zero | tr '\\0' x";
  await launch(1, script, { onLine: (line) => lines.push(line.slice(9)) });
  assertEquals(lines.join(""), "x".repeat(1_000_000));
  for (const { length } of lines) assertLess(length, 1_000_000);
});

Deno.test("launchRanks() starts ranks that find each other", async () => {
  await using server = StoreServer.listen({ worldSize: 2, token: "a secret" });
  const ready = server.gathered("ready");
  const lines: string[] = [];
  const script = new URL("./_rank.ts", import.meta.url).pathname;
  const exits = await launchRanks({
    worldSize: 2,
    command: Deno.execPath(),
    args: ["run", "--allow-net", "--allow-env", script, "--once"],
    server,
    onLine: (line) => lines.push(line),
  });
  assertEquals(exits.map(({ code }) => code), [0, 0]);
  assertEquals(lines.sort(), [
    "[rank 0] rank 0 sees 0,1",
    "[rank 1] rank 1 sees 0,1",
  ]);
  assertEquals((await ready).length, 2);
});

Deno.test("launchRanks() lets ranks end by themselves after a failure", async () => {
  const flag = await Deno.makeTempFile();
  // Rank 1 ends later than rank 0 has failed.
  const script = `if [ "$EPLB_RANK" = 0 ]; then rm ${flag}; exit 3; fi
    while [ -e ${flag} ]; do sleep 0.01; done; sleep 0.2; exit 5`;
  assertEquals(await launch(2, script), [
    { rank: 0, code: 3, signal: null },
    { rank: 1, code: 5, signal: null },
  ]);
});

Deno.test("launchRanks() terminates stragglers after a failure, then kills them", async () => {
  const flag = await Deno.makeTempFile();
  // Rank 1 does not mind SIGTERM, and says so before rank 0 fails.
  const script = `case "$EPLB_RANK" in
    0) while [ -e ${flag} ]; do sleep 0.01; done; exit 3;;
    1) trap '' TERM; rm ${flag}; exec sleep 600;;
    2) exec sleep 600;;
  esac`;
  assertEquals(await launch(3, script, { killGrace: 500 }), [
    { rank: 0, code: 3, signal: null },
    { rank: 1, code: 137, signal: "SIGKILL" },
    { rank: 2, code: 143, signal: "SIGTERM" },
  ]);
});

Deno.test("launchRanks() kills what a rank leaves behind", async () => {
  const pids: number[] = [];
  // The child holds the rank's output open.
  await launch(1, "sleep 600 & echo $!", {
    onLine: (line) => pids.push(Number(line.slice("[rank 0] ".length))),
  });
  assertEquals(await Promise.all(pids.map(ends)), [true]);
});

Deno.test("launchRanks() ends every rank when its signal is aborted", async () => {
  const stop = new AbortController();
  const pids: number[] = [];
  const launching = launch(2, "echo $$; exec sleep 600", {
    signal: stop.signal,
    onLine: (line) => {
      pids.push(Number(line.slice("[rank 0] ".length)));
      if (pids.length === 2) stop.abort(new TypeError("enough"));
    },
  });
  await assertRejects(() => launching, TypeError, "enough");
  assertEquals(await Promise.all(pids.map(ends)), [true, true]);
  const { signal } = stop;
  await assertRejects(() => launch(1, "exit 0", { signal }), TypeError);
});

Deno.test("launchRanks() ends every rank when a line is not taken", async () => {
  const launching = launch(2, "echo hello; exec sleep 600", {
    onLine: () => {
      throw new TypeError("no more");
    },
  });
  await assertRejects(() => launching, TypeError, "no more");
});

Deno.test("launchRanks() refuses what it cannot run", async () => {
  await assertRejects(
    () => launch(1, "", { command: "/nowhere/no-such-program" }),
    Deno.errors.NotFound,
  );
  await assertRejects(
    () => launch(0, ""),
    RangeError,
    'Cannot launch ranks: "worldSize" must be an integer >= 1: current value is 0',
  );
  await assertRejects(() => launch(1, "", { killGrace: 0 }), RangeError);
});

Deno.test("an interrupted launcher takes its ranks with it", async () => {
  for (const signal of ["SIGTERM", "SIGINT"] as const) {
    const script = new URL("./_launcher.ts", import.meta.url).pathname;
    const launcher = new Deno.Command(Deno.execPath(), {
      args: ["run", "--allow-all", script],
      stdout: "piped",
    }).spawn();
    const lines: string[] = [];
    let rest = "";
    const output = launcher.stdout.pipeThrough(new TextDecoderStream());
    for await (const text of output) {
      const parts = (rest + text).split("\n");
      rest = parts.pop()!;
      lines.push(...parts);
      // Two ranks and the child of each: everyone is there.
      if (lines.length === 4) launcher.kill(signal);
    }
    assertEquals((await launcher.status).code, 7);
    assertEquals(lines[4], `Cannot finish launch: interrupted by ${signal}`);
    const pids = lines.slice(0, 4).map((line) => Number(line.slice(9)));
    assertEquals(pids.every((pid) => pid > 0), true);
    assertEquals(await Promise.all(pids.map(ends)), new Array(4).fill(true));
  }
});

Deno.test("launchRanks() leaves signals alone where it is told to", async () => {
  const flag = await Deno.makeTempFile();
  const listener = (): void => Deno.removeSync(flag);
  Deno.addSignalListener("SIGHUP", listener);
  try {
    const exits = await launch(
      1,
      `kill -HUP ${Deno.pid}; while [ -e ${flag} ]; do sleep 0.01; done; exit 4`,
      { handleSignals: false },
    );
    assertEquals(exits, [{ rank: 0, code: 4, signal: null }]);
  } finally {
    Deno.removeSignalListener("SIGHUP", listener);
  }
});
