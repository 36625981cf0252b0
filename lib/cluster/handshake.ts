// SPDX-License-Identifier: Apache-2.0

/**
 * How a rank joins its store.
 *
 * @module
 */

import { Channel } from "./channel.ts";
import { describeSeconds } from "./failure.ts";
import {
  FROM_STORE,
  parseMessage,
  PROTOCOL,
  type StoreMessage,
} from "./protocol.ts";
import {
  checkDuration,
  DEFAULT_TIMEOUT,
  pause,
  type WaitOptions,
} from "./wait.ts";

/** Options of {@linkcode StoreClient.connect}. */
export interface StoreClientOptions extends WaitOptions {
  /** Host on which the store listens. */
  readonly host: string;
  /** Port on which the store listens. */
  readonly port: number;
  /** This rank. */
  readonly rank: number;
  /** The secret that the store expects. */
  readonly token: string;
}

/** What the store tells a rank that it lets in. */
export type Welcome = Extract<StoreMessage, { type: "welcome" }>;

/** A connection on which the store has said welcome. */
export interface Joined {
  /** The connection; its heartbeat has not started. */
  readonly channel: Channel;
  /** What the store said. */
  readonly welcome: Welcome;
}

/** Pauses between two attempts grow from the first to the second, in ms. */
const FIRST_PAUSE = 20;
const LONGEST_PAUSE = 500;

/** The store said no: there is no use in asking again. */
class Refusal extends Error {}

/**
 * Knocks until the store answers.
 *
 * @param options Where, who, and how long.
 * @returns The connection.
 * @throws {Error} If the store refuses the rank, or does not answer in time.
 */
export async function joinStore(options: StoreClientOptions): Promise<Joined> {
  const { rank, timeout = DEFAULT_TIMEOUT, signal } = options;
  if (!Number.isSafeInteger(rank) || rank < 0) {
    throw new RangeError(
      `Cannot join store: "rank" must be an integer >= 0: ` +
        `current value is ${rank}`,
    );
  }
  checkDuration("timeout", timeout);
  signal?.throwIfAborted();
  const stop = new AbortController();
  const end = (): void => stop.abort();
  const timer = setTimeout(end, timeout);
  signal?.addEventListener("abort", end);
  try {
    return await knockUntil(stop.signal, options);
  } finally {
    clearTimeout(timer);
    signal?.removeEventListener("abort", end);
  }
}

async function knockUntil(
  stop: AbortSignal,
  options: StoreClientOptions,
): Promise<Joined> {
  const { host, port, rank, timeout = DEFAULT_TIMEOUT, signal } = options;
  const action = `Cannot join store at ${host}:${port} as rank ${rank}`;
  let cause: unknown;
  for (let wait = FIRST_PAUSE; !stop.aborted; wait *= 2) {
    try {
      return await knock(stop, options);
    } catch (error) {
      if (error instanceof Deno.errors.NotCapable) throw error;
      if (error instanceof Refusal) {
        throw new Error(`${action}: ${error.message}`);
      }
      // What the end of the wait itself breaks says nothing about the store.
      if (!stop.aborted) cause = error;
    }
    await pause(Math.min(wait, LONGEST_PAUSE), stop);
  }
  signal?.throwIfAborted();
  const waited = describeSeconds(timeout);
  const detail = cause instanceof Error ? ` (${cause.message})` : "";
  throw new Error(`${action}: no answer within ${waited}${detail}`, { cause });
}

/** Knocks once. */
async function knock(
  stop: AbortSignal,
  options: StoreClientOptions,
): Promise<Joined> {
  const { host: hostname, port, rank, token } = options;
  const channel = new Channel(
    await Deno.connect({ hostname, port, signal: stop }),
  );
  const hangUp = (): void => channel.close();
  stop.addEventListener("abort", hangUp);
  try {
    channel.send({ type: "hello", protocol: PROTOCOL, token, rank });
    const frame = await channel.receive();
    if (frame === undefined) throw new Error("connection closed unanswered");
    const answer = parseMessage(frame, FROM_STORE);
    if (answer.type === "refused") throw new Refusal(answer.reason);
    if (answer.type === "welcome") return { channel, welcome: answer };
    throw new Error(`answered "${answer.type}"`);
  } catch (error) {
    channel.close();
    throw error;
  } finally {
    stop.removeEventListener("abort", hangUp);
  }
}
