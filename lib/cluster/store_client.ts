// SPDX-License-Identifier: Apache-2.0

/**
 * The store's end in every rank.
 *
 * @module
 */

import type { Channel } from "./channel.ts";
import type { Cluster } from "./cluster.ts";
import {
  describeSeconds,
  GatherTimeoutError,
  type RankFailure,
  RankFailureError,
} from "./failure.ts";
import { type Frame, FrameError } from "./frames.ts";
import {
  type Joined,
  joinStore,
  type StoreClientOptions,
  type Welcome,
} from "./handshake.ts";
import {
  clipText,
  FROM_STORE,
  type GatherMode,
  HEADER_LIMIT,
  LONGEST_TEXT,
  parseMessage,
  type StoreMessage,
} from "./protocol.ts";
import { openWait, type WaitOptions } from "./wait.ts";

type Payloads = Map<number, Uint8Array>;

/** What the store says about one post. */
type Answer = Extract<StoreMessage, { readonly id: number }>;

/** A gather that this rank has posted to and that has not completed. */
interface Pending extends PromiseWithResolvers<Payloads> {
  readonly mode: GatherMode;
  readonly name: string;
  /** How long it waits, in milliseconds. */
  timeout: number;
}

/**
 * One rank's connection to the store.
 *
 * The one thing that ranks do together is to gather: everyone posts some bytes
 * under a name, and everyone gets all of them. A barrier is a gather of
 * nothing, a vote is a gather of one byte, a broadcast is a gather to which
 * one rank posts something. As soon as a rank is lost, every gather of every
 * rank is rejected with an error that names it.
 *
 * @example Two ranks
 * ```ts
 * import { StoreClient, StoreServer } from "@eplb/eplb";
 * import { assertEquals } from "@std/assert";
 *
 * await using server = StoreServer.listen({ worldSize: 2, token: "secret" });
 * const ranks = await Promise.all([0, 1].map((rank) => {
 *   const { host, port, token } = server;
 *   return StoreClient.connect({ host, port, token, rank });
 * }));
 * const seen = await Promise.all(ranks.map((client) => {
 *   return client.gather("hello", new Uint8Array([client.rank + 10]));
 * }));
 * const all = [new Uint8Array([10]), new Uint8Array([11])];
 * assertEquals(seen, [all, all]);
 * for (const client of ranks) await client.close();
 * ```
 */
export class StoreClient implements Cluster, AsyncDisposable {
  /** This rank. */
  readonly rank: number;
  /** Number of ranks of the store. */
  readonly worldSize: number;

  readonly #channel: Channel;
  readonly #welcome: Welcome;
  readonly #address: string;
  readonly #pending = new Map<number, Pending>();
  readonly #failed = Promise.withResolvers<RankFailure>();
  readonly #subscriptions = new Set<(failure: RankFailure) => void>();
  readonly #listening: Promise<void>;
  /** The first failure: it ends the gathers of all ranks. */
  #failure: RankFailure | undefined;
  /** How the store was lost: it ends every gather. */
  #gone: RankFailure | undefined;
  #posts = 0;
  #closing: Promise<void> | undefined;

  private constructor(options: StoreClientOptions, joined: Joined) {
    const { host, port, rank } = options;
    const { channel, welcome } = joined;
    this.rank = rank;
    this.worldSize = welcome.worldSize;
    this.#channel = channel;
    this.#welcome = welcome;
    this.#address = `${host}:${port}`;
    const { interval, silence, maxPayload } = welcome;
    channel.trust({ header: HEADER_LIMIT, payload: maxPayload }, {
      interval,
      silence,
      onSilent: (quiet) => {
        this.#lose(`was silent for ${describeSeconds(quiet)}`);
      },
    });
    this.#listening = this.#listen();
  }

  /**
   * Joins a store, waiting for it to come up.
   *
   * A rank joins once: who has left, or is counted as lost, stays away.
   *
   * @param options Where the store is, who joins, the token, how long to try.
   * @returns The connection.
   * @throws {Error} If the store refuses this rank, or does not answer in time.
   */
  static async connect(options: StoreClientOptions): Promise<StoreClient> {
    return new StoreClient(options, await joinStore(options));
  }

  /**
   * Resolves with the first failure among the ranks, or of the store; never
   * rejects.
   *
   * Waits outside the store (a collective, say) are to be ended then.
   */
  get failure(): Promise<RankFailure> {
    return this.#failed.promise;
  }

  /**
   * Calls back once with the first failure, at once if there is one already.
   *
   * @param callback What to call; it should not throw.
   * @returns Ends the subscription.
   */
  onFailure(callback: (failure: RankFailure) => void): () => void {
    if (this.#failure !== undefined) {
      callback(this.#failure);
      return () => {};
    }
    const subscription = (failure: RankFailure): void => callback(failure);
    this.#subscriptions.add(subscription);
    return () => this.#subscriptions.delete(subscription);
  }

  /**
   * Posts some bytes under a name and gets the bytes of all ranks.
   *
   * A name may be used again, also before its last gather has completed: the
   * k-th gather of every rank under a name is one gather. That holds for a
   * gather that was given up as well: its post stays.
   *
   * @param name Name of the gather.
   * @param payload Bytes to post, copied. @default {none}
   * @param options Timeout and signal.
   * @returns The payloads of all ranks, in rank order.
   * @throws {RankFailureError} If a rank or the store is lost, before or
   * meanwhile.
   * @throws {GatherTimeoutError} If some ranks have not posted in time.
   * @throws {RangeError} If the payloads are larger than the store allows.
   */
  async gather(
    name: string,
    payload: Uint8Array = new Uint8Array(),
    options: WaitOptions = {},
  ): Promise<Uint8Array[]> {
    if (this.#failure) throw failureError(name, this.#failure);
    const payloads = await this.#post({ mode: "all", name, payload }, options);
    return [...payloads.values()];
  }

  /**
   * Gathers among the ranks that are still alive, to agree after a failure.
   *
   * Every survivor gets the same answer. Alive is who is connected, a rank that
   * gave up included; who is lost while the others wait is waited for no longer.
   *
   * @param name Name of the gather, apart from those of {@linkcode gather}.
   * @param payload Bytes to post, copied. @default {none}
   * @param options Timeout and signal.
   * @returns The payloads by rank, in rank order.
   * @throws {RankFailureError} If the store is lost, before or meanwhile.
   * @throws {GatherTimeoutError} If some ranks have not posted in time.
   * @throws {RangeError} If the payloads are larger than the store allows.
   */
  async gatherSurvivors(
    name: string,
    payload: Uint8Array = new Uint8Array(),
    options: WaitOptions = {},
  ): Promise<Map<number, Uint8Array>> {
    return await this.#post({ mode: "survivors", name, payload }, options);
  }

  /**
   * Gives up: every rank, this one too, is told that this rank failed.
   *
   * The rank stays connected and can take part in
   * {@linkcode gatherSurvivors}. If another rank has failed before, that one
   * remains the failure that everyone is told.
   *
   * @param reason What went wrong; its beginning is told: 4,096 characters.
   * @returns When the store knows, or is lost; it never rejects. After
   * {@linkcode close} there is nobody to tell.
   */
  async fail(reason: string): Promise<void> {
    this.#channel.send({ type: "fail", reason: clipText(reason) });
    await Promise.race([this.failure, this.#channel.ended]);
  }

  /**
   * Says goodbye and closes; gathers that are pending here are rejected.
   *
   * That is no failure, unless another rank waits for this one in a gather.
   *
   * @returns When the store knows, or is lost; a second call waits for the same.
   */
  close(): Promise<void> {
    this.#closing ??= this.#leave();
    return this.#closing;
  }

  /** Says goodbye and closes. */
  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  async #leave(): Promise<void> {
    for (const { name, reject } of this.#pending.values()) {
      reject(new Error(`Cannot gather "${name}": client is closed`));
    }
    await this.#channel.finish({ type: "bye" }, this.#welcome.silence);
    await this.#listening;
  }

  async #post(
    post: { mode: GatherMode; name: string; payload: Uint8Array },
    options: WaitOptions,
  ): Promise<Payloads> {
    const { mode, name, payload } = post;
    this.#checkPost(name, payload);
    const id = this.#posts++;
    // Who is missing is known to the store; if it does not answer, it is lost.
    const wait = openWait<Payloads>(options, (timeout) => {
      pending.timeout = timeout;
      this.#channel.send({ type: "missing", id });
    });
    const pending: Pending = { mode, name, timeout: 0, ...wait };
    this.#pending.set(id, pending);
    this.#channel.send({ type: "post", id, mode, name }, payload);
    try {
      return await wait.promise;
    } finally {
      this.#pending.delete(id);
    }
  }

  #checkPost(name: string, payload: Uint8Array): void {
    if (this.#closing) {
      throw new Error(`Cannot gather "${name}": client is closed`);
    }
    if (this.#gone) throw failureError(name, this.#gone);
    if (name.length > LONGEST_TEXT) {
      throw new RangeError(
        `Cannot gather: name of ${name.length} characters is above the ` +
          `limit of ${LONGEST_TEXT}`,
      );
    }
    const bytes = payload.length;
    if (bytes > this.#welcome.maxPayload) throw this.#sizeError(name, bytes);
  }

  async #listen(): Promise<void> {
    let reason = "is gone: connection lost";
    try {
      for (;;) {
        const frame = await this.#channel.receive();
        if (frame === undefined) break;
        const message = parseMessage(frame, FROM_STORE);
        if (message.type === "closing") {
          reason = "was closed";
          break;
        }
        this.#handle(message, frame);
      }
    } catch (error) {
      if (!(error instanceof FrameError)) throw error;
      reason = `is gone: ${error.message}`;
    }
    this.#lose(reason);
  }

  #handle(message: StoreMessage, frame: Frame): void {
    if (message.type === "failure") {
      const { kind, ranks, reason } = message;
      this.#fail({ kind, ranks, reason });
    } else if ("id" in message) {
      // A gather that was given up here is nobody's anymore.
      const pending = this.#pending.get(message.id);
      if (pending) this.#answer(pending, message, frame);
    }
  }

  #answer(pending: Pending, answer: Answer, frame: Frame): void {
    const { name, timeout, resolve, reject } = pending;
    if (answer.type === "gathered") resolve(split(answer, frame.payload));
    else if (answer.type === "missing") {
      reject(new GatherTimeoutError(name, answer.ranks, timeout));
    } else reject(this.#sizeError(name, answer.bytes));
  }

  #sizeError(name: string, bytes: number): RangeError {
    return new RangeError(
      `Cannot gather "${name}": ${bytes} bytes are above the limit of ` +
        `${this.#welcome.maxPayload}`,
    );
  }

  /** Takes note of a failure; the first one ends the gathers of all ranks. */
  #fail(failure: RankFailure): void {
    if (this.#failure === undefined) {
      this.#failure = failure;
      this.#failed.resolve(failure);
      for (const callback of this.#subscriptions) callback(failure);
      this.#subscriptions.clear();
    }
    for (const { mode, name, reject } of this.#pending.values()) {
      if (mode === "all") reject(failureError(name, this.#failure));
      else if (this.#gone) reject(failureError(name, this.#gone));
    }
  }

  /** Takes note that nothing more will come from the store. */
  #lose(what: string): void {
    this.#channel.close();
    if (this.#closing || this.#gone) return;
    const reason = `store at ${this.#address} ${what}`;
    this.#gone = { kind: "store", ranks: [], reason };
    this.#fail(this.#gone);
  }
}

function failureError(name: string, failure: RankFailure): RankFailureError {
  return new RankFailureError(`gather "${name}"`, failure);
}

/** Takes apart what the store put together. */
function split(
  gathered: Extract<Answer, { type: "gathered" }>,
  payload: Uint8Array,
): Payloads {
  const { ranks, sizes } = gathered;
  const payloads: Payloads = new Map();
  let offset = 0;
  for (const [i, rank] of ranks.entries()) {
    const end = offset + (sizes[i] ?? NaN);
    payloads.set(rank, payload.slice(offset, end));
    offset = end;
  }
  if (offset === payload.length && sizes.length === ranks.length) {
    return payloads;
  }
  throw new FrameError("Cannot read message: sizes do not fit the payload");
}
