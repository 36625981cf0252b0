// Processes and stores that are lost, and what the others are told.

import {
  assertEquals,
  assertLess,
  assertMatch,
  assertRejects,
} from "@std/assert";
import {
  type RankFailure,
  RankFailureError,
} from "../../lib/cluster/failure.ts";
import { encodeFrame, readFrame } from "../../lib/cluster/frames.ts";
import { StoreClient } from "../../lib/cluster/store_client.ts";
import { bytes, Child, startWorld } from "./_world.ts";

Deno.test("a killed process gives every other rank an error that names it", async () => {
  await using world = await startWorld(3, { worldSize: 4 });
  await using child = Child.rank(world.server, 3);
  await Promise.all(world.clients.map((client) => client.gather("ready")));
  const pending = world.clients.map((client) =>
    assertRejects(
      () => client.gather("a"),
      RankFailureError,
      'Cannot gather "a": rank 3 died: connection lost',
    )
  );
  child.kill("SIGKILL");
  const start = performance.now();
  for (const error of await Promise.all(pending)) {
    assertEquals(error.ranks, [3]);
  }
  // Far below the 30 s of silence: a lost connection is told at once.
  assertLess(performance.now() - start, 5000);
  const failure: RankFailure = {
    kind: "died",
    ranks: [3],
    reason: "died: connection lost",
  };
  for (const client of world.clients) {
    assertEquals(await client.failure, failure);
    await assertRejects(() => client.gather("b"), RankFailureError, "rank 3");
  }
  assertEquals(await world.server.failure, failure);
  const { host, port, token } = world.server;
  await assertRejects(
    () => StoreClient.connect({ host, port, token, rank: 3 }),
    Error,
    "rank 3 is counted as lost",
  );
});

Deno.test("a stopped process gives every other rank an error that names it", async () => {
  const heartbeat = { interval: 100, silence: 2000 };
  await using world = await startWorld(2, { worldSize: 3, heartbeat });
  await using child = Child.rank(world.server, 2);
  await Promise.all(world.clients.map((client) => client.gather("ready")));
  child.kill("SIGSTOP");
  const start = performance.now();
  await Promise.all(world.clients.map(async (client) => {
    const error = await assertRejects(
      () => client.gather("a"),
      RankFailureError,
      'Cannot gather "a": rank 2 was silent for ',
    );
    assertEquals(error.failure.kind, "silent");
  }));
  assertLess(performance.now() - start, 10_000);
  // Once it runs again, it finds out what happened, and does not blame others.
  child.kill("SIGCONT");
  assertMatch(
    await child.firstLine(),
    /^Cannot gather "end": rank 2 was silent for [\d.]+ s$/,
  );
});

Deno.test("a store that dies gives every rank an error that names it", async () => {
  await using store = new Child("./_store.ts", {});
  const port = Number(await store.firstLine());
  const host = "127.0.0.1";
  const ranks = await Promise.all([0, 1].map((rank) => {
    return StoreClient.connect({ host, port, rank, token: "a secret" });
  }));
  const message = `store at ${host}:${port} is gone: connection lost`;
  const pending = ranks.flatMap((client) => [
    assertRejects(() => client.gather("a"), RankFailureError, message),
    assertRejects(() => client.gatherSurvivors("a"), RankFailureError, message),
  ]);
  store.kill("SIGKILL");
  for (const { ranks: lost } of await Promise.all(pending)) {
    assertEquals(lost, []);
  }
  for (const client of ranks) {
    assertEquals((await client.failure).kind, "store");
    await assertRejects(
      () => client.gatherSurvivors("b"),
      RankFailureError,
      message,
    );
    await client.fail("too late");
    await client.close();
  }
});

Deno.test("a store that is stopped gives every rank an error", async () => {
  await using store = new Child("./_store.ts", { EPLB_TEST_SILENCE: "2000" });
  const port = Number(await store.firstLine());
  const options = { host: "127.0.0.1", port, rank: 0, token: "a secret" };
  await using client = await StoreClient.connect(options);
  store.kill("SIGSTOP");
  // Also where the gather's own timeout cannot be answered.
  await assertRejects(
    () => client.gather("a", bytes(), { timeout: 1 }),
    RankFailureError,
    `store at 127.0.0.1:${port} was silent for `,
  );
});

Deno.test("a store that talks nonsense is lost", async () => {
  const welcome = {
    type: "welcome",
    worldSize: 1,
    interval: 1000,
    silence: 5000,
    maxPayload: 100,
  };
  const nonsense: [Uint8Array, string][] = [
    [new Uint8Array(8).fill(255), "header of 4294967295 bytes is above"],
    [encodeFrame({ type: "hello" }), "its type is not known here"],
    [
      encodeFrame({ type: "failure", kind: "odd", ranks: [], reason: "" }),
      '"kind" of "failure" is not valid',
    ],
    [
      encodeFrame(
        { type: "gathered", id: 0, ranks: [0], sizes: [2] },
        bytes(1),
      ),
      "sizes do not fit the payload",
    ],
  ];
  for (const [raw, reason] of nonsense) {
    using listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
    const { hostname: host, port } = listener.addr;
    const joining = StoreClient.connect({ host, port, rank: 0, token: "t" });
    using conn = await listener.accept();
    const limits = { header: 1000, payload: 0 };
    assertEquals((await readFrame(conn, limits))?.header.type, "hello");
    await conn.write(encodeFrame(welcome));
    await using client = await joining;
    const gather = client.gather("a");
    await conn.write(raw);
    await assertRejects(() => gather, RankFailureError, reason);
    assertEquals((await client.failure).kind, "store");
  }
});

Deno.test("a process that was blocked does not accuse the others", async () => {
  const heartbeat = { interval: 50, silence: 200 };
  await using world = await startWorld(2, { heartbeat });
  // Both ends of every connection are in this process, and all are late.
  const end = performance.now() + 700;
  while (performance.now() < end);
  await Promise.all(world.clients.map((client) => client.gather("a")));
});
