import { assertEquals, assertLess, assertRejects } from "@std/assert";
import fc from "fast-check";
import {
  GatherTimeoutError,
  RankFailureError,
} from "../../lib/cluster/failure.ts";
import { StoreClient } from "../../lib/cluster/store_client.ts";
import { StoreServer } from "../../lib/cluster/store_server.ts";
import { bytes, Child, join, startWorld } from "./_world.ts";

Deno.test("gather() gives every rank all payloads in rank order", async () => {
  for (const size of [1, 2, 3, 16]) {
    await using world = await startWorld(size);
    const payload = (rank: number): Uint8Array =>
      new Uint8Array(rank * 7).fill(rank);
    const seen = await Promise.all(
      world.clients.map((client) => client.gather("a", payload(client.rank))),
    );
    const expected = Array.from({ length: size }, (_, rank) => payload(rank));
    assertEquals(seen, new Array(size).fill(expected));
    assertEquals(
      world.clients.map(({ worldSize }) => worldSize),
      new Array(size).fill(size),
    );
  }
});

Deno.test("gather() of nothing is a barrier", async () => {
  await using world = await startWorld(2);
  const [zero, one] = world.clients;
  let passed = false;
  const waiting = zero!.gather("barrier").then(() => passed = true);
  await assertRejects(
    () => zero!.gather("other", bytes(), { timeout: 1 }),
    GatherTimeoutError,
  );
  assertEquals(passed, false);
  assertEquals(await one!.gather("barrier"), [bytes(), bytes()]);
  await waiting;
});

Deno.test("gather() joins every rank's k-th use of a name, in any order of names", async () => {
  const size = 3;
  const uses = fc.shuffledSubarray([..."aaabbc"], { minLength: 6 });
  await using world = await startWorld(size);
  await fc.assert(
    fc.asyncProperty(
      fc.tuple(uses, uses, uses),
      fc.nat(255),
      async (orders, salt) => {
        const all = world.clients.map(async (client) => {
          const counts = new Map<string, number>();
          const gathers = orders[client.rank]!.map(async (name) => {
            const k = counts.get(name) ?? 0;
            counts.set(name, k + 1);
            const seen = await client.gather(name, bytes(client.rank, k, salt));
            assertEquals(seen, [0, 1, 2].map((rank) => bytes(rank, k, salt)));
          });
          await Promise.all(gathers);
        });
        await Promise.all(all);
      },
    ),
    { numRuns: 30 },
  );
});

Deno.test("gather() waits for ranks that join late", async () => {
  await using world = await startWorld(1, { worldSize: 2 });
  const early = world.clients[0]!.gather("a", bytes(1));
  await using late = await join(world.server, 1);
  assertEquals(await late.gather("a", bytes(2)), [bytes(1), bytes(2)]);
  assertEquals(await early, [bytes(1), bytes(2)]);
});

Deno.test("gather() copies the payload and gives memory of its own", async () => {
  await using world = await startWorld(2);
  const payload = bytes(9, 1, 2, 3, 4).subarray(1);
  const gathers = world.clients.map((client) => client.gather("a", payload));
  payload.fill(0);
  const [first] = await Promise.all(gathers);
  assertEquals(first, [bytes(1, 2, 3, 4), bytes(1, 2, 3, 4)]);
  assertEquals(first!.map(({ buffer }) => buffer.byteLength), [4, 4]);
});

Deno.test("gather() that runs out of time names the ranks that have not posted", async () => {
  await using world = await startWorld(3, { worldSize: 4 });
  const [zero, one] = world.clients;
  const waiting = one!.gather("a", bytes(1));
  const error = await assertRejects(
    () => zero!.gather("a", bytes(0), { timeout: 20 }),
    GatherTimeoutError,
    'Cannot gather "a": ranks 2 and 3 have not posted within 0.0 s',
  );
  assertEquals(error.missing, [2, 3]);
  // Its post stays: the others are not held up, and it is itself in step.
  const [two, three] = [world.clients[2]!, await join(world.server, 3)];
  await Promise.all([two.gather("a", bytes(2)), three.gather("a", bytes(3))]);
  assertEquals(await waiting, [bytes(0), bytes(1), bytes(2), bytes(3)]);
  await Promise.all([...world.clients, three].map((rank) => rank.gather("a")));
  await three.close();
});

Deno.test("gather() ends when its signal is aborted", async () => {
  await using world = await startWorld(2);
  const [zero, one] = world.clients;
  const stop = new AbortController();
  const gather = zero!.gather("a", bytes(1), { signal: stop.signal });
  stop.abort(new TypeError("enough"));
  await assertRejects(() => gather, TypeError, "enough");
  const { signal } = stop;
  await assertRejects(() => zero!.gather("a", bytes(), { signal }), TypeError);
  assertEquals(await one!.gather("a"), [bytes(1), bytes()]);
});

Deno.test("gather() refuses payloads above the store's limit and goes on", async () => {
  await using world = await startWorld(2, { maxPayload: 10 });
  const [zero, one] = world.clients;
  await assertRejects(
    () => zero!.gather("a", new Uint8Array(11)),
    RangeError,
    'Cannot gather "a": 11 bytes are above the limit of 10',
  );
  await Promise.all([zero!, one!].map((client) =>
    assertRejects(
      () => client.gather("a", new Uint8Array(6)),
      RangeError,
      'Cannot gather "a": 12 bytes are above the limit of 10',
    )
  ));
  await Promise.all(
    [zero!, one!].map((client) => client.gather("a", bytes(1, 2, 3, 4, 5))),
  );
  const name = "x".repeat(5000);
  await assertRejects(() => zero!.gather(name), RangeError, "5000 characters");
});

Deno.test("gather() refuses timeouts that no timer keeps", async () => {
  await using world = await startWorld(1);
  for (const timeout of [0, -1, NaN, Infinity, 2 ** 31]) {
    await assertRejects(
      () => world.clients[0]!.gather("a", bytes(), { timeout }),
      RangeError,
      `current value is ${timeout}`,
    );
  }
});

Deno.test("connect() keeps trying until the store is up", async () => {
  // Nobody else binds to this loopback address, so the port stays free.
  const host = "127.0.0.77";
  const closed = Deno.listen({ hostname: host, port: 0 });
  const { port } = closed.addr;
  const joining = StoreClient.connect({ host, port, rank: 0, token: "t" });
  (await closed.accept()).close();
  closed.close();
  await using _server = StoreServer.listen({
    worldSize: 1,
    token: "t",
    host,
    port,
  });
  await using client = await joining;
  await client.gather("a");
});

Deno.test("connect() says why it gave up", async () => {
  const host = "127.0.0.78";
  const closed = Deno.listen({ hostname: host, port: 0 });
  const { port } = closed.addr;
  closed.close();
  const options = { host, port, rank: 2, token: "t" };
  await assertRejects(
    () => StoreClient.connect({ ...options, timeout: 300 }),
    Error,
    `Cannot join store at ${host}:${port} as rank 2: no answer within 0.3 s (Connection refused`,
  );
  const stop = new AbortController();
  const joining = StoreClient.connect({ ...options, signal: stop.signal });
  stop.abort(new TypeError("enough"));
  await assertRejects(() => joining, TypeError, "enough");
  await assertRejects(
    () => StoreClient.connect({ ...options, rank: -1 }),
    RangeError,
    '"rank" must be an integer >= 0: current value is -1',
  );
});

Deno.test("connect() gives up on a host that accepts and does not answer", async () => {
  using mute = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  const { port } = mute.addr;
  const joining = StoreClient.connect({
    host: "127.0.0.1",
    port,
    rank: 0,
    token: "t",
    timeout: 50,
  });
  await assertRejects(() => joining, Error, "no answer within 0.1 s");
});

Deno.test("connect() is refused with the wrong token, out of range, or twice", async () => {
  await using world = await startWorld(1, { worldSize: 2 });
  const { server } = world;
  const { host, port, token } = server;
  const refused = (
    rank: number,
    secret: string,
    reason: string,
  ): Promise<Error> =>
    assertRejects(
      () => StoreClient.connect({ host, port, rank, token: secret }),
      Error,
      `Cannot join store at ${host}:${port} as rank ${rank}: ${reason}`,
    );
  // The token comes first: without it, nothing is told about the ranks.
  await refused(0, "a secreT", "token does not match");
  await refused(7, "", "token does not match");
  await refused(0, token, "rank 0 has already joined");
  await refused(2, token, "rank must be below the world size of 2");
  await using one = await join(server, 1);
  await Promise.all([one.gather("a"), world.clients[0]!.gather("a")]);
  await one.close();
  await refused(1, token, "rank 1 has left before");
});

Deno.test("fail() tells every rank why", async () => {
  await using world = await startWorld(3);
  const reason = 'layer 7: "ncclGroupEnd" timed out';
  const told = (rank: number): Promise<Error> =>
    assertRejects(
      () => world.clients[rank]!.gather("a"),
      RankFailureError,
      `Cannot gather "a": rank 1 gave up: ${reason}`,
    );
  const pending = [told(0), told(2)];
  await world.clients[1]!.fail(reason);
  await Promise.all([...pending, told(1)]);
  // The first failure remains.
  await world.clients[2]!.fail("because of the others");
  for (const client of world.clients) {
    const { kind, ranks } = await client.failure;
    assertEquals({ kind, ranks }, { kind: "gave-up", ranks: [1] });
  }
});

Deno.test("fail() cuts a reason that is too long for a message", async () => {
  await using world = await startWorld(1);
  await world.clients[0]!.fail("x".repeat(100_000));
  const { reason } = await world.clients[0]!.failure;
  assertEquals(reason, "gave up: ".padEnd(4096, "x"));
});

Deno.test("onFailure() calls back once, at once if it is late, and not after its end", async () => {
  await using world = await startWorld(2);
  const [zero, one] = world.clients;
  const heard: string[] = [];
  zero!.onFailure(({ reason }) => heard.push(`early ${reason}`));
  const end = zero!.onFailure(() => heard.push("ended"));
  end();
  await one!.fail("first");
  await one!.fail("second");
  await zero!.failure;
  zero!.onFailure(({ ranks }) => heard.push(`late ${ranks}`));
  assertEquals(heard, ["early gave up: first", "late 1"]);
});

Deno.test("gatherSurvivors() gathers among the ranks that are alive", async () => {
  await using world = await startWorld(3, { worldSize: 4 });
  await using child = Child.rank(world.server, 3);
  await Promise.all(world.clients.map((client) => client.gather("ready")));
  const [zero, one, two] = world.clients;
  // One waits since before the death; one has given up, but is alive.
  const before = zero!.gatherSurvivors("agree", bytes(10));
  await two!.fail("first");
  child.kill("SIGKILL");
  const after = one!.gatherSurvivors("agree", bytes(11));
  const last = two!.gatherSurvivors("agree", bytes(12));
  const expected = new Map([[0, bytes(10)], [1, bytes(11)], [2, bytes(12)]]);
  assertEquals(await Promise.all([before, after, last]), [
    expected,
    expected,
    expected,
  ]);
  assertEquals([...(await before).keys()], [0, 1, 2]);
  await one!.close();
  const pair = [zero!, two!].map((client) => client.gatherSurvivors("agree"));
  assertEquals([...(await Promise.all(pair))[1]!.keys()], [0, 2]);
});

Deno.test("gatherSurvivors() that runs out of time names who has not posted", async () => {
  await using world = await startWorld(2);
  const error = await assertRejects(
    () => world.clients[1]!.gatherSurvivors("a", bytes(), { timeout: 1 }),
    GatherTimeoutError,
    "rank 0 has not posted",
  );
  assertEquals(error.missing, [0]);
});

Deno.test("close() is no failure unless someone waits for the rank", async () => {
  await using world = await startWorld(3);
  const [zero, one, two] = world.clients;
  // Who leaves after posting is not waited for, and has posted all the same.
  const posted = assertRejects(() => two!.gather("a", bytes(2)));
  await two!.close();
  await posted;
  const gathers = [zero!, one!].map((rank) =>
    rank.gather("a", bytes(rank.rank))
  );
  for (const seen of await Promise.all(gathers)) {
    assertEquals(seen, [bytes(0), bytes(1), bytes(2)]);
  }
  const late = zero!.gatherSurvivors("b", bytes(), { timeout: 1 });
  const failed = await Promise.race([
    world.server.failure,
    late.catch(({ missing }) => missing),
  ]);
  assertEquals(failed, [1]);
  await assertRejects(
    () => one!.gather("b"),
    RankFailureError,
    'Cannot gather "b": rank 2 left while gather "b" waited',
  );
  assertEquals((await zero!.failure).kind, "left");
});

Deno.test("close() ends a gather that others wait in, and those of its own", async () => {
  await using world = await startWorld(3);
  const [zero, one] = world.clients;
  const waiting = assertRejects(
    () => zero!.gather("a"),
    RankFailureError,
    "rank 1 left",
  );
  const own = assertRejects(
    () => one!.gather("b"),
    Error,
    'Cannot gather "b": client is closed',
  );
  await one!.close();
  await Promise.all([waiting, own]);
  await assertRejects(() => one!.gather("c"), Error, "client is closed");
  await one!.fail("nobody is told");
  await one!.close();
});

Deno.test("64 ranks meet in one process within two seconds", async () => {
  const times: number[] = [];
  // Once is enough: the machine may be busy with something else.
  while (times.length < 5 && !(Math.min(...times) < 2000)) {
    const start = performance.now();
    await using world = await startWorld(64);
    const seen = await Promise.all(
      world.clients.map((client) =>
        client.gather("a", new Uint8Array(4096).fill(client.rank))
      ),
    );
    times.push(performance.now() - start);
    const ranks = [...new Array(64).keys()];
    for (const payloads of seen) {
      assertEquals(payloads.map((payload) => payload[4095]), ranks);
    }
  }
  assertLess(Math.min(...times), 2000);
});
