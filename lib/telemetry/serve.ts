// SPDX-License-Identifier: Apache-2.0

/**
 * An HTTP endpoint for Prometheus.
 *
 * @module
 */
import { checkInteger } from "../_check.ts";
import type { EplbMetrics } from "./metrics.ts";
import { PROMETHEUS_CONTENT_TYPE } from "./prometheus.ts";

/** Options of {@linkcode serveMetrics}. */
export interface ServeMetricsOptions {
  /**
   * Port to listen on; 0 takes one that is free.
   *
   * @default {9464}
   */
  readonly port?: number;
  /**
   * Address to listen on; `"0.0.0.0"` lets other hosts in.
   *
   * @default {"127.0.0.1"}
   */
  readonly hostname?: string;
  /** Ends the endpoint when it aborts. */
  readonly signal?: AbortSignal;
  /** Called with the address once it listens. */
  readonly onListen?: (address: Deno.NetAddr) => void;
}

/** An endpoint that answers until it is disposed. */
export interface MetricsServer extends AsyncDisposable {
  /** Where it listens. */
  readonly address: Deno.NetAddr;
  /** Resolves when it has ended, for whatever cause. */
  readonly finished: Promise<void>;
}

const PATH = "/metrics";

/**
 * Serves metrics to Prometheus under `/metrics`, over HTTP.
 *
 * Needs `--allow-net` for the address. Anyone who reaches the address may read:
 * there is no authentication.
 *
 * @param metrics What is served.
 * @param options Where, and how long.
 * @returns The endpoint, listening already; disposing it lets requests in progress end.
 * @throws {RangeError} If the port is not an integer from 0 to 65535.
 * @throws {Deno.errors.AddrInUse} If the port is taken.
 *
 * @example
 * ```ts
 * import { EplbMetrics, serveMetrics } from "@eplb/eplb";
 * import { assertStringIncludes } from "@std/assert";
 *
 * const metrics = new EplbMetrics();
 * await using server = serveMetrics(metrics, { port: 0 });
 * const { hostname, port } = server.address;
 * const response = await fetch(`http://${hostname}:${port}/metrics`);
 * assertStringIncludes(await response.text(), "eplb_cycles_skipped_total 0\n");
 * ```
 */
export function serveMetrics(
  metrics: EplbMetrics,
  options: ServeMetricsOptions = {},
): MetricsServer {
  const { port = 9464, hostname = "127.0.0.1", signal } = options;
  checkInteger(port, {
    action: "serve metrics",
    name: "port",
    min: 0,
    max: 65535,
  });
  signal?.throwIfAborted();
  const server = listen(metrics, { ...options, port, hostname });
  return {
    address: server.addr,
    finished: server.finished,
    [Symbol.asyncDispose]: () => server.shutdown(),
  };
}

/** Starts the server, and says which address was taken if it was. */
function listen(
  metrics: EplbMetrics,
  options:
    & ServeMetricsOptions
    & Required<Pick<ServeMetricsOptions, "port" | "hostname">>,
): Deno.HttpServer<Deno.NetAddr> {
  const { port, hostname, signal, onListen } = options;
  try {
    return Deno.serve({
      port,
      hostname,
      ...(signal === undefined ? {} : { signal }),
      // Without a function of its own, Deno writes the address to stdout.
      onListen: (address) => onListen?.(address),
    }, (request) => answer(request, metrics));
  } catch (cause) {
    if (!(cause instanceof Deno.errors.AddrInUse)) throw cause;
    throw new Deno.errors.AddrInUse(
      `Cannot serve metrics: port ${port} of ${hostname} is taken`,
      { cause },
    );
  }
}

function answer(request: Request, metrics: EplbMetrics): Response {
  if (new URL(request.url).pathname !== PATH) {
    return new Response(`Not found: metrics are at ${PATH}\n`, { status: 404 });
  }
  if (request.method !== "GET" && request.method !== "HEAD") {
    const headers = { allow: "GET, HEAD" };
    return new Response("Method not allowed\n", { status: 405, headers });
  }
  const headers = { "content-type": PROMETHEUS_CONTENT_TYPE };
  const body = request.method === "HEAD" ? null : metrics.prometheus();
  return new Response(body, { headers });
}
