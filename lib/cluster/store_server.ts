// SPDX-License-Identifier: Apache-2.0

/**
 * The store's serving end.
 *
 * @module
 */

import { Channel } from "./channel.ts";
import { describeSeconds, type RankFailure } from "./failure.ts";
import { FrameError } from "./frames.ts";
import { type Gather, GatherTable } from "./gathers.ts";
import { Observers } from "./observers.ts";
import {
  clipText,
  FROM_RANK,
  HEADER_LIMIT,
  parseMessage,
  PROTOCOL,
  type RankMessage,
} from "./protocol.ts";
import {
  completeOptions,
  type Settings,
  type StoreServerOptions,
} from "./store_options.ts";
import { sameToken } from "./token.ts";
import { pause, type WaitOptions } from "./wait.ts";

export type { StoreServerOptions } from "./store_options.ts";

type Standing = "absent" | "joined" | "left" | "lost";

/** Why a rank that stands so may not join. */
const REFUSALS: Readonly<Record<Exclude<Standing, "absent">, string>> = {
  joined: "has already joined",
  left: "has left before",
  lost: "is counted as lost",
};

/** How this machine reaches a store that listens on every address. */
const LOOPBACK = new Map([["0.0.0.0", "127.0.0.1"], ["::", "::1"]]);

/** Pause after a failed accept (out of file descriptors), in milliseconds. */
const ACCEPT_PAUSE = 50;

/** Connections beside one per rank that may be open without a token. */
const SPARE_CONNECTIONS = 64;

/**
 * A small store that carries bootstrap blobs, votes and liveness among ranks.
 *
 * It runs in a launcher or in the process of rank 0. Nothing that arrives is
 * trusted: a connection shows the token before anything else is looked at, and
 * whatever is not a message of the protocol closes its connection only. Token
 * and payloads travel in the clear: the token keeps other jobs out, not someone
 * who reads the network.
 *
 * A rank that is alive but does not run its event loop (stopped, or in a long
 * synchronous call) cannot be told from one that is cut off: both are silent.
 * Make waits nonblocking, or allow for a longer silence.
 *
 * @example One rank
 * ```ts
 * import { StoreClient, StoreServer } from "@eplb/eplb";
 * import { assertEquals } from "@std/assert";
 *
 * await using server = StoreServer.listen({ worldSize: 1, token: "secret" });
 * const { host, port, token } = server;
 * await using client = await StoreClient.connect({ host, port, token, rank: 0 });
 * const seen = server.gathered("hello");
 * await client.gather("hello", new Uint8Array([7]));
 * assertEquals(await seen, [new Uint8Array([7])]);
 * ```
 */
export class StoreServer implements AsyncDisposable {
  /** Number of ranks that the store is for. */
  readonly worldSize: number;
  /** The secret that every rank must show. */
  readonly token: string;
  /** Host by which this machine reaches the store. */
  readonly host: string;
  /** Port on which the store listens. */
  readonly port: number;

  readonly #settings: Settings;
  readonly #listener: Deno.TcpListener;
  readonly #standing: Standing[];
  /** Connections of the ranks that are alive, as far as is known. */
  readonly #members = new Map<number, Channel>();
  readonly #served = new Map<Channel, Promise<void>>();
  readonly #gathers = new GatherTable();
  readonly #observers = new Observers();
  readonly #failed = Promise.withResolvers<RankFailure>();
  readonly #stop = new AbortController();
  readonly #accepting: Promise<void>;
  readonly #joinTimer: ReturnType<typeof setTimeout>;
  #failure: RankFailure | undefined;
  #closing: Promise<void> | undefined;

  private constructor(settings: Settings) {
    this.#settings = settings;
    this.worldSize = settings.worldSize;
    this.token = settings.token;
    const { host: hostname, port } = settings;
    this.#listener = Deno.listen({ hostname, port });
    const bound = this.#listener.addr;
    this.host = LOOPBACK.get(bound.hostname) ?? bound.hostname;
    this.port = bound.port;
    this.#standing = new Array<Standing>(this.worldSize).fill("absent");
    this.#joinTimer = setTimeout(
      () => this.#loseAbsent(),
      settings.joinTimeout,
    );
    this.#accepting = this.#accept();
  }

  /**
   * Starts a store.
   *
   * @param options World size, token, and what differs from the defaults.
   * @returns The store, listening.
   * @throws {RangeError} If an option is out of range.
   * @throws {Deno.errors.AddrInUse} If the port is taken.
   *
   * @example A free port of this machine
   * ```ts
   * import { StoreServer } from "@eplb/eplb";
   * import { assertEquals } from "@std/assert";
   *
   * await using server = StoreServer.listen({ worldSize: 4, token: "secret" });
   * assertEquals(server.address, `127.0.0.1:${server.port}`);
   * ```
   */
  static listen(options: StoreServerOptions): StoreServer {
    return new StoreServer(completeOptions(options));
  }

  /** Host and port as `EPLB_STORE` carries them: "127.0.0.1:29501". */
  get address(): string {
    const host = this.host.includes(":") ? `[${this.host}]` : this.host;
    return `${host}:${this.port}`;
  }

  /** Resolves with the first failure among the ranks; never rejects. */
  get failure(): Promise<RankFailure> {
    return this.#failed.promise;
  }

  /**
   * Observes the next gather of a name that completes.
   *
   * Ask before the ranks can have posted: a gather that has completed is not
   * kept. An observer does not take part, and need not be awaited.
   *
   * @param name Name of a gather of all ranks.
   * @param options Timeout and signal.
   * @returns The payloads of all ranks, in rank order.
   * @throws {RankFailureError} If a rank is lost first.
   * @throws {GatherTimeoutError} If some ranks have not posted in time.
   */
  gathered(name: string, options: WaitOptions = {}): Promise<Uint8Array[]> {
    const missing = (): number[] =>
      this.#missing(this.#gathers.oldest("all", name));
    const seen = this.#observers.add({ name, missing }, options);
    if (this.#failure !== undefined) this.#observers.dismiss(this.#failure);
    if (this.#closing !== undefined) this.#observers.dismiss();
    return seen;
  }

  /**
   * Tells every rank that the store closes, and closes.
   *
   * @returns When every connection is closed; a second call waits for the same.
   */
  close(): Promise<void> {
    this.#closing ??= this.#shutDown();
    return this.#closing;
  }

  /** Closes the store. */
  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  async #shutDown(): Promise<void> {
    clearTimeout(this.#joinTimer);
    this.#stop.abort();
    this.#listener.close();
    this.#observers.dismiss();
    const members = new Set(this.#members.values());
    const { silence } = this.#settings.heartbeat;
    const closed = [...this.#served].map(async ([channel, served]) => {
      if (members.has(channel)) {
        await channel.finish({ type: "closing" }, silence);
      }
      channel.close();
      await served;
    });
    await Promise.all([...closed, this.#accepting]);
  }

  async #accept(): Promise<void> {
    while (!this.#stop.signal.aborted) {
      try {
        const channel = new Channel(await this.#listener.accept());
        const strangers = this.#served.size - this.#members.size;
        if (strangers > this.worldSize + SPARE_CONNECTIONS) channel.close();
        else this.#served.set(channel, this.#serve(channel));
      } catch {
        await pause(ACCEPT_PAUSE, this.#stop.signal);
      }
    }
  }

  async #serve(channel: Channel): Promise<void> {
    let rank: number | undefined;
    let reason = "connection lost";
    try {
      rank = await this.#admit(channel);
      if (rank !== undefined) await this.#follow(rank, channel);
    } catch (error) {
      if (!(error instanceof FrameError)) throw error;
      reason = error.message;
    } finally {
      channel.close();
      this.#served.delete(channel);
    }
    if (rank === undefined || this.#members.get(rank) !== channel) return;
    this.#lose({ kind: "died", ranks: [rank], reason: `died: ${reason}` });
  }

  /** Reads the hello of a connection; returns its rank if it may join. */
  async #admit(channel: Channel): Promise<number | undefined> {
    const { heartbeat, maxPayload } = this.#settings;
    const timer = setTimeout(() => channel.close(), heartbeat.silence);
    try {
      const frame = await channel.receive();
      if (frame === undefined) return undefined;
      const hello = parseMessage(frame, FROM_RANK);
      const reason = this.#refusal(hello);
      if (hello.type !== "hello" || reason !== undefined) {
        channel.send({ type: "refused", reason });
        await channel.receive(); // the peer hangs up, or the timer does
        return undefined;
      }
      this.#join(hello.rank, channel);
      const { worldSize } = this;
      channel.send({ type: "welcome", worldSize, ...heartbeat, maxPayload });
      if (this.#failure) channel.send({ type: "failure", ...this.#failure });
      return hello.rank;
    } finally {
      clearTimeout(timer);
    }
  }

  /** Why a hello is not welcome: the token is looked at before the rest. */
  #refusal(hello: RankMessage): string | undefined {
    if (hello.type !== "hello" || !sameToken(this.token, hello.token)) {
      return "token does not match";
    }
    const { protocol, rank } = hello;
    if (protocol !== PROTOCOL) {
      return `store speaks protocol ${PROTOCOL}, rank speaks ${protocol}`;
    }
    const standing = this.#standing[rank];
    if (standing === undefined) {
      return `rank must be below the world size of ${this.worldSize}`;
    }
    if (standing !== "absent") return `rank ${rank} ${REFUSALS[standing]}`;
    return undefined;
  }

  #join(rank: number, channel: Channel): void {
    const { heartbeat, maxPayload } = this.#settings;
    this.#standing[rank] = "joined";
    this.#members.set(rank, channel);
    if (!this.#standing.includes("absent")) clearTimeout(this.#joinTimer);
    channel.trust({ header: HEADER_LIMIT, payload: maxPayload }, {
      ...heartbeat,
      onSilent: (silence) => {
        const reason = `was silent for ${describeSeconds(silence)}`;
        this.#lose({ kind: "silent", ranks: [rank], reason });
        // If the process wakes up, it finds out what happened to it.
        channel.finish({ type: "closing" }, heartbeat.silence);
      },
    });
  }

  /** Serves a rank until it says goodbye or its connection is lost. */
  async #follow(rank: number, channel: Channel): Promise<void> {
    for (;;) {
      const frame = await channel.receive();
      if (frame === undefined) return;
      const message = parseMessage(frame, FROM_RANK);
      // A rank that is counted as lost is no longer listened to.
      if (this.#members.get(rank) !== channel) continue;
      if (message.type === "post") {
        const { payload } = frame;
        this.#settle(this.#gathers.add(rank, { ...message, payload }));
      } else if (message.type === "missing") {
        this.#tellMissing(rank, message.id);
      } else if (message.type === "fail") {
        const reason = clipText(`gave up: ${message.reason}`);
        this.#lose({ kind: "gave-up", ranks: [rank], reason });
      } else if (message.type === "bye") {
        this.#standing[rank] = "left";
        this.#members.delete(rank);
        return this.#settleAll();
      }
    }
  }

  #tellMissing(rank: number, id: number): void {
    const gather = this.#gathers.find(rank, id);
    if (gather === undefined) return;
    const ranks = this.#missing(gather);
    this.#members.get(rank)?.send({ type: "missing", id, ranks });
  }

  #loseAbsent(): void {
    const ranks = [...this.#standing.keys()]
      .filter((rank) => this.#standing[rank] === "absent");
    const waited = describeSeconds(this.#settings.joinTimeout);
    const reason = `did not join within ${waited}`;
    this.#lose({ kind: "absent", ranks, reason });
  }

  /** Counts ranks as lost; the first failure ends every gather of all ranks. */
  #lose(failure: RankFailure): void {
    if (this.#closing !== undefined) return;
    if (this.#failure === undefined) {
      this.#failure = failure;
      this.#failed.resolve(failure);
      for (const channel of this.#members.values()) {
        channel.send({ type: "failure", ...failure });
      }
      for (const gather of this.#gathers.list()) {
        if (gather.mode === "all") this.#gathers.close(gather);
      }
      this.#observers.dismiss(failure);
    }
    // A rank that gave up is alive: it can still agree with the others.
    if (failure.kind !== "gave-up") {
      for (const rank of failure.ranks) {
        this.#standing[rank] = "lost";
        this.#members.delete(rank);
      }
    }
    this.#settleAll();
  }

  /** The ranks that a gather still waits for. */
  #missing(gather: Pick<Gather, "mode" | "posts"> = NOBODY): number[] {
    return [...this.#standing.keys()].filter((rank) => {
      const standing = this.#standing[rank];
      const alive = standing === "absent" || standing === "joined";
      return !gather.posts.has(rank) && (gather.mode === "all" || alive);
    });
  }

  #settleAll(): void {
    for (const gather of this.#gathers.list()) this.#settle(gather);
  }

  /** Completes a gather if it can be, or finds that it never can. */
  #settle(gather: Gather): void {
    const { mode, name } = gather;
    if (mode === "all" && this.#failure !== undefined) {
      return this.#gathers.close(gather);
    }
    const missing = this.#missing(gather);
    if (missing.length === 0) return this.#complete(gather);
    const ranks = missing.filter((rank) => this.#standing[rank] === "left");
    if (ranks.length === 0) return;
    const reason = clipText(`left while gather "${name}" waited`);
    this.#lose({ kind: "left", ranks, reason });
  }

  /** Sends what was posted to everyone who posted. */
  #complete(gather: Gather): void {
    const { mode, name, posts } = gather;
    this.#gathers.close(gather);
    const ranks = [...posts.keys()].sort((a, b) => a - b)
      .filter((rank) => mode === "all" || this.#members.has(rank));
    const payloads = ranks.map((rank) => posts.get(rank)!.payload);
    const sizes = payloads.map((payload) => payload.length);
    const bytes = sizes.reduce((sum, size) => sum + size, 0);
    const fits = bytes <= this.#settings.maxPayload;
    const result = fits
      ? { type: "gathered", ranks, sizes }
      : { type: "oversized", bytes };
    const joined = fits ? concatenate(payloads, bytes) : undefined;
    for (const [rank, { id }] of posts) {
      this.#members.get(rank)?.send({ ...result, id }, joined);
    }
    if (mode === "all") this.#observers.show(name, payloads);
  }
}

/** A gather to which nobody has posted. */
const NOBODY: Pick<Gather, "mode" | "posts"> = {
  mode: "all",
  posts: new Map(),
};

function concatenate(parts: readonly Uint8Array[], bytes: number): Uint8Array {
  const whole = new Uint8Array(bytes);
  let offset = 0;
  for (const part of parts) {
    whole.set(part, offset);
    offset += part.length;
  }
  return whole;
}
