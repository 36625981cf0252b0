import { assertEquals, assertRejects, assertThrows } from "@std/assert";
import { EplbMetrics } from "../../lib/telemetry/metrics.ts";
import { type MetricsServer, serveMetrics } from "../../lib/telemetry/serve.ts";
import { committed } from "./_events.ts";
import { parsePrometheus } from "./_prometheus.ts";

function url({ address }: MetricsServer, path = "/metrics"): string {
  return `http://${address.hostname}:${address.port}${path}`;
}

Deno.test("serveMetrics() answers GET with the metrics of that moment", async () => {
  const metrics = new EplbMetrics();
  await using server = serveMetrics(metrics, { port: 0 });
  assertEquals(server.address.hostname, "127.0.0.1");
  for (const layers of [2, 4]) {
    metrics.observe(committed());
    const response = await fetch(url(server, "/metrics?x=1"));
    assertEquals(response.status, 200);
    assertEquals(
      response.headers.get("content-type"),
      "text/plain; version=0.0.4; charset=utf-8",
    );
    const families = parsePrometheus(await response.text());
    assertEquals(families.get("eplb_committed_layers_total")!.samples, [
      {
        name: "eplb_committed_layers_total",
        labels: { model: "main" },
        value: layers,
      },
    ]);
  }
});

Deno.test("serveMetrics() answers HEAD with the head only", async () => {
  await using server = serveMetrics(new EplbMetrics(), { port: 0 });
  const response = await fetch(url(server), { method: "HEAD" });
  assertEquals(response.status, 200);
  assertEquals(
    response.headers.get("content-type"),
    "text/plain; version=0.0.4; charset=utf-8",
  );
  assertEquals(await response.text(), "");
});

Deno.test("serveMetrics() refuses other paths and other methods", async () => {
  await using server = serveMetrics(new EplbMetrics(), { port: 0 });
  for (const path of ["/", "/metrics/", "/metrics/x", "/METRICS"]) {
    const response = await fetch(url(server, path));
    assertEquals(response.status, 404, path);
    assertEquals(
      await response.text(),
      "Not found: metrics are at /metrics\n",
    );
  }
  for (const method of ["POST", "PUT", "DELETE", "OPTIONS"]) {
    const response = await fetch(url(server), { method });
    assertEquals(response.status, 405, method);
    assertEquals(response.headers.get("allow"), "GET, HEAD");
    await response.body?.cancel();
  }
});

Deno.test("serveMetrics() says which port is taken", async () => {
  await using server = serveMetrics(new EplbMetrics(), { port: 0 });
  const { port } = server.address;
  assertThrows(
    () => serveMetrics(new EplbMetrics(), { port }),
    Deno.errors.AddrInUse,
    `Cannot serve metrics: port ${port} of 127.0.0.1 is taken`,
  );
});

Deno.test("serveMetrics() refuses ports that do not exist", () => {
  for (const port of [-1, 65536, 1.5, NaN]) {
    assertThrows(
      () => serveMetrics(new EplbMetrics(), { port }),
      RangeError,
      `Cannot serve metrics: port must be an integer from 0 to 65535, got ${port}`,
    );
  }
});

Deno.test("serveMetrics() calls onListen with its address, and nothing without a server", async () => {
  const addresses: Deno.NetAddr[] = [];
  const onListen = (address: Deno.NetAddr): void =>
    void addresses.push(address);
  await using server = serveMetrics(new EplbMetrics(), { port: 0, onListen });
  assertEquals(addresses.map(({ port }) => port), [server.address.port]);
  const reason = new Error("too late");
  const signal = AbortSignal.abort(reason);
  assertThrows(
    () => serveMetrics(new EplbMetrics(), { port: 0, onListen, signal }),
    Error,
    "too late",
  );
  assertEquals(addresses.length, 1);
});

Deno.test("serveMetrics() ends with its signal, and frees the port", async () => {
  const stop = new AbortController();
  const { signal } = stop;
  const server = serveMetrics(new EplbMetrics(), { port: 0, signal });
  await (await fetch(url(server))).text();
  stop.abort();
  await server.finished;
  await using again = serveMetrics(new EplbMetrics(), {
    port: server.address.port,
  });
  assertEquals(again.address.port, server.address.port);
  await server[Symbol.asyncDispose]();
});

Deno.test("serveMetrics() ends while a scraper keeps its connection open", async () => {
  const server = serveMetrics(new EplbMetrics(), { port: 0 });
  const { hostname, port } = server.address;
  using connection = await Deno.connect({ hostname, port });
  const request = "GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n";
  await connection.write(new TextEncoder().encode(request));
  const head = new Uint8Array(15);
  await connection.read(head);
  assertEquals(new TextDecoder().decode(head), "HTTP/1.1 200 OK");
  await server[Symbol.asyncDispose]();
  await server[Symbol.asyncDispose]();
  await server.finished;
  await assertRejects(() => fetch(url(server)), TypeError);
});
