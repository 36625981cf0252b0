// SPDX-License-Identifier: Apache-2.0

/**
 * What can be chosen about a store.
 *
 * @module
 */

import type { Heartbeat } from "./channel.ts";
import { LONGEST_TEXT } from "./protocol.ts";
import { checkDuration, DEFAULT_TIMEOUT } from "./wait.ts";

/** Options of {@linkcode StoreServer.listen}. */
export interface StoreServerOptions {
  /** Number of ranks that will join. */
  readonly worldSize: number;
  /** The secret that every rank must show; not empty. */
  readonly token: string;
  /**
   * Address to listen on; "0.0.0.0" to be reached from other machines.
   *
   * @default {"127.0.0.1"}
   */
  readonly host?: string | undefined;
  /** Port to listen on; 0 takes a free one. @default {0} */
  readonly port?: number | undefined;
  /**
   * How often ranks and store speak, and how long either may be silent, in
   * milliseconds. The ranks learn it from the store.
   *
   * @default {{ interval: 1000, silence: 5000 }}
   */
  readonly heartbeat?: Partial<Heartbeat> | undefined;
  /**
   * Milliseconds until ranks that have not joined count as lost.
   *
   * @default {60_000}
   */
  readonly joinTimeout?: number | undefined;
  /**
   * Most bytes that one rank may post, and that one gather may hold.
   *
   * @default {67_108_864}
   */
  readonly maxPayload?: number | undefined;
}

/** The options of a store, complete. */
export interface Settings {
  /** Number of ranks that will join. */
  readonly worldSize: number;
  /** The secret that every rank must show. */
  readonly token: string;
  /** Address to listen on. */
  readonly host: string;
  /** Port to listen on, or 0. */
  readonly port: number;
  /** How often both sides speak, and how long either may be silent. */
  readonly heartbeat: Heartbeat;
  /** Milliseconds until ranks that have not joined count as lost. */
  readonly joinTimeout: number;
  /** Most bytes of a post, and of a gather. */
  readonly maxPayload: number;
}

/**
 * Fills in the defaults and refuses what cannot work.
 *
 * @param options What the caller gave.
 * @returns The options, complete.
 * @throws {RangeError} If an option is out of range.
 */
export function completeOptions(options: StoreServerOptions): Settings {
  const settings: Settings = {
    worldSize: options.worldSize,
    token: options.token,
    host: options.host ?? "127.0.0.1",
    port: options.port ?? 0,
    heartbeat: {
      interval: options.heartbeat?.interval ?? 1000,
      silence: options.heartbeat?.silence ?? 5000,
    },
    joinTimeout: options.joinTimeout ?? DEFAULT_TIMEOUT,
    maxPayload: options.maxPayload ?? 64 << 20,
  };
  const { worldSize, heartbeat, maxPayload } = settings;
  const { interval, silence } = heartbeat;
  checkInteger("worldSize", worldSize, 1);
  checkInteger("maxPayload", maxPayload, 0);
  checkInteger("interval", interval, 1);
  checkInteger("silence", silence, interval + 1);
  checkDuration("silence", silence);
  checkDuration("joinTimeout", settings.joinTimeout);
  checkInteger("token.length", settings.token.length, 1, LONGEST_TEXT);
  return settings;
}

function checkInteger(
  name: string,
  value: number,
  least: number,
  most = 2 ** 32 - 1,
): void {
  if (Number.isInteger(value) && value >= least && value <= most) return;
  throw new RangeError(
    `Cannot start store: "${name}" must be an integer from ${least} to ` +
      `${most}: current value is ${value}`,
  );
}
