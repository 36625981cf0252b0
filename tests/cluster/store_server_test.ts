import { assertEquals, assertRejects, assertThrows } from "@std/assert";
import fc from "fast-check";
import {
  GatherTimeoutError,
  RankFailureError,
} from "../../lib/cluster/failure.ts";
import { encodeFrame, readFrame } from "../../lib/cluster/frames.ts";
import { PROTOCOL } from "../../lib/cluster/protocol.ts";
import {
  StoreServer,
  type StoreServerOptions,
} from "../../lib/cluster/store_server.ts";
import { bytes, join, startWorld } from "./_world.ts";

const LIMITS = { header: 1 << 16, payload: 1 << 16 };

/** Sends raw bytes; returns what the store says before it hangs up, if anything. */
async function answerTo(
  server: StoreServer,
  raw: Uint8Array,
): Promise<Record<string, unknown> | undefined> {
  using conn = await connect(server, raw);
  const frame = await readFrame(conn, LIMITS).catch(() => undefined);
  return frame?.header;
}

async function connect(
  server: StoreServer,
  raw: Uint8Array,
): Promise<Deno.TcpConn> {
  const { host: hostname, port } = server;
  const conn = await Deno.connect({ hostname, port });
  for (let sent = 0; sent < raw.length;) {
    sent += await conn.write(raw.subarray(sent)).catch(() => raw.length);
  }
  return conn;
}

Deno.test("listen() refuses options that cannot work", () => {
  const options = { worldSize: 2, token: "t" };
  const refused: [Partial<StoreServerOptions>, string][] = [
    [
      { worldSize: 0 },
      '"worldSize" must be an integer from 1 to 4294967295: current value is 0',
    ],
    [{ worldSize: 1.5 }, "current value is 1.5"],
    [{ token: "" }, '"token.length" must be'],
    [{ maxPayload: -1 }, '"maxPayload" must be'],
    [
      { heartbeat: { interval: 5000 } },
      '"silence" must be an integer from 5001',
    ],
    [{ joinTimeout: Infinity }, '"joinTimeout" must be'],
  ];
  for (const [change, message] of refused) {
    assertThrows(
      () => StoreServer.listen({ ...options, ...change }),
      RangeError,
      message,
    );
  }
});

Deno.test("listen() says how this machine reaches the store", async () => {
  await using everywhere = StoreServer.listen({
    worldSize: 1,
    token: "t",
    host: "0.0.0.0",
  });
  assertEquals(everywhere.address, `127.0.0.1:${everywhere.port}`);
  const { port } = everywhere;
  assertThrows(
    () =>
      StoreServer.listen({ worldSize: 1, token: "t", host: "0.0.0.0", port }),
    Deno.errors.AddrInUse,
  );
});

Deno.test("failure names the ranks that never came", async () => {
  await using world = await startWorld(1, { worldSize: 4, joinTimeout: 1500 });
  const [zero] = world.clients;
  await using two = await join(world.server, 2);
  await assertRejects(
    () => zero!.gather("a"),
    RankFailureError,
    'Cannot gather "a": ranks 1 and 3 did not join within 1.5 s',
  );
  const expected = {
    kind: "absent",
    ranks: [1, 3],
    reason: "did not join within 1.5 s",
  };
  assertEquals<unknown>(await world.server.failure, expected);
  assertEquals<unknown>(await two.failure, expected);
  await assertRejects(
    () => join(world.server, 1),
    Error,
    "rank 1 is counted as lost",
  );
  const survivors = [zero!, two].map((client) => client.gatherSurvivors("b"));
  assertEquals([...(await Promise.all(survivors))[0]!.keys()], [0, 2]);
});

Deno.test("a rank that joins after a failure is told at once", async () => {
  await using world = await startWorld(1, { worldSize: 2 });
  await world.clients[0]!.fail("out of memory");
  await using late = await join(world.server, 1);
  assertEquals((await late.failure).reason, "gave up: out of memory");
});

Deno.test("gathered() observes the next gather that completes", async () => {
  await using world = await startWorld(2);
  const { server, clients } = world;
  for (const value of [1, 2]) {
    const seen = server.gathered("a");
    await Promise.all(
      clients.map((client) => client.gather("a", bytes(value, client.rank))),
    );
    assertEquals(await seen, [bytes(value, 0), bytes(value, 1)]);
  }
});

Deno.test("gathered() ends with a timeout, a signal, a failure, or the store", async () => {
  await using world = await startWorld(2);
  const { server, clients } = world;
  const posted = clients[0]!.gather("a");
  posted.catch(() => {});
  // The store answers in order, so it has the first post when it answers this.
  await assertRejects(() => clients[0]!.gather("x", bytes(), { timeout: 1 }));
  const late = await assertRejects(
    () => server.gathered("a", { timeout: 1 }),
    GatherTimeoutError,
  );
  assertEquals(late.missing, [1]);
  const never = await assertRejects(
    () => server.gathered("b", { timeout: 1 }),
    GatherTimeoutError,
  );
  assertEquals(never.missing, [0, 1]);
  const stop = new AbortController();
  const stopped = server.gathered("a", { signal: stop.signal });
  stop.abort(new TypeError("enough"));
  await assertRejects(() => stopped, TypeError, "enough");
  const failed = server.gathered("a");
  await clients[1]!.fail("no");
  await assertRejects(() => failed, RankFailureError, "rank 1 gave up: no");
  await assertRejects(() => server.gathered("a"), RankFailureError, "rank 1");
  const closed = StoreServer.listen({ worldSize: 1, token: "t" });
  const message = 'Cannot gather "a": store is closed';
  const pending = closed.gathered("a");
  await closed.close();
  await assertRejects(() => pending, Error, message);
  await assertRejects(() => closed.gathered("a"), Error, message);
});

Deno.test("close() tells every rank that the store was closed", async () => {
  await using world = await startWorld(2);
  const { host, port } = world.server;
  const pending = world.clients.map((client) =>
    assertRejects(
      () => client.gather("a"),
      RankFailureError,
      `Cannot gather "a": store at ${host}:${port} was closed`,
    )
  );
  await Promise.all([world.server.close(), ...pending]);
  await world.server.close();
});

Deno.test("close() delivers what was gathered before", async () => {
  const large = new Uint8Array(4 << 20).fill(3);
  await using world = await startWorld(2);
  const seen = world.server.gathered("a");
  const gathers = world.clients.map((client) => client.gather("a", large));
  await seen;
  await world.server.close();
  for (const payloads of await Promise.all(gathers)) {
    assertEquals(payloads.map(({ length }) => length), [4 << 20, 4 << 20]);
  }
});

Deno.test("garbage from strangers closes their connection only", async () => {
  await using world = await startWorld(1, { worldSize: 2 });
  const { server } = world;
  const hello = {
    type: "hello",
    protocol: PROTOCOL,
    token: server.token,
    rank: 1,
  };
  const encoder = new TextEncoder();
  const silently = [
    encoder.encode("GET / HTTP/1.1\r\n\r\n"),
    new Uint8Array(64).fill(255),
    encodeFrame({}),
    encodeFrame({ type: "constructor" }),
    encodeFrame({ ...hello, token: 5 }),
    encodeFrame({ ...hello, rank: -1 }),
    encodeFrame({ ...hello, rank: 1.5 }),
    encodeFrame({ ...hello, rank: "1" }),
    encodeFrame({ ...hello, token: "x".repeat(5000) }),
    encodeFrame({ ...hello, padding: "x".repeat(1 << 17) }),
    encodeFrame(hello, bytes(1)),
  ];
  for (const raw of silently) {
    assertEquals(await answerTo(server, raw), undefined);
  }
  const refused = { type: "refused", reason: "token does not match" };
  const post = encodeFrame({ type: "post", id: 0, mode: "all", name: "a" });
  assertEquals(await answerTo(server, post), refused);
  const wrong = encodeFrame({
    ...hello,
    token: "guess",
    protocol: 99,
    rank: 77,
  });
  assertEquals(await answerTo(server, wrong), refused);
  const newer = encodeFrame({ ...hello, protocol: 99 });
  assertEquals(
    (await answerTo(server, newer))?.reason,
    "store speaks protocol 1, rank speaks 99",
  );
  const garbage = fc.uint8Array({ minLength: 8, maxLength: 64 });
  await fc.assert(
    fc.asyncProperty(garbage, async (raw) => {
      // Lengths that no hello has, whatever follows.
      raw[0] = 1;
      assertEquals(await answerTo(server, raw), undefined);
    }),
    { numRuns: 20 },
  );
  // The rank that is there has not noticed, and the other one can still come.
  await using one = await join(server, 1);
  await Promise.all([one.gather("a"), world.clients[0]!.gather("a")]);
});

Deno.test("a stranger who says nothing is sent away", async () => {
  const heartbeat = { interval: 10, silence: 50 };
  await using server = StoreServer.listen({
    worldSize: 1,
    token: "t",
    heartbeat,
  });
  assertEquals(await answerTo(server, bytes()), undefined);
});

Deno.test("strangers cannot take every connection", async () => {
  await using world = await startWorld(1, { worldSize: 2 });
  const { server } = world;
  const silent = await Promise.all(
    Array.from({ length: 100 }, () => connect(server, bytes())),
  );
  // One of them is one too many, and is sent away long before its time.
  const reads = silent.map((conn) =>
    conn.read(new Uint8Array(1)).catch(() => null)
  );
  assertEquals(await Promise.race(reads), null);
  for (const conn of silent) conn.close();
  await using one = await join(server, 1);
  await Promise.all([one.gather("a"), world.clients[0]!.gather("a")]);
});

Deno.test("garbage from a rank is its end, and the others are told", async () => {
  await using world = await startWorld(1, { worldSize: 2 });
  const { server } = world;
  const { token } = server;
  const hello = encodeFrame({
    type: "hello",
    protocol: PROTOCOL,
    token,
    rank: 1,
  });
  using conn = await connect(server, hello);
  assertEquals((await readFrame(conn, LIMITS))?.header.type, "welcome");
  await conn.write(
    encodeFrame({ type: "post", id: 0, mode: "none", name: "a" }),
  );
  const { kind, ranks, reason } = await world.clients[0]!.failure;
  assertEquals({ kind, ranks, reason }, {
    kind: "died",
    ranks: [1],
    reason: 'died: Cannot read message: "mode" of "post" is not valid',
  });
});
