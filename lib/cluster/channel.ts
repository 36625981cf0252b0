// SPDX-License-Identifier: Apache-2.0

/**
 * One end of a connection between a rank and its store.
 *
 * @module
 */

import {
  encodeFrame,
  type Frame,
  FrameError,
  type FrameLimits,
  type FrameSource,
  readFrame,
} from "./frames.ts";
import { HELLO_LIMITS } from "./protocol.ts";
import { settledWithin } from "./wait.ts";

/** How often the two ends speak, and how long either may be silent. */
export interface Heartbeat {
  /** Milliseconds between two heartbeats. */
  readonly interval: number;
  /** Milliseconds after which a silent peer counts as lost. */
  readonly silence: number;
}

/**
 * Frames over one TCP connection, with heartbeats.
 *
 * Writes are queued and never throw: that a connection is lost is seen by the
 * reader, after everything that arrived before.
 */
export class Channel {
  readonly #conn: Deno.TcpConn;
  readonly #source: FrameSource;
  readonly #ended = Promise.withResolvers<void>();
  #limits = HELLO_LIMITS;
  #writes: Promise<void> = Promise.resolve();
  #heard = performance.now();
  #timer: ReturnType<typeof setInterval> | undefined;
  #closed = false;

  /**
   * Takes over a connection.
   *
   * @param conn The connection; it is closed with the channel.
   */
  constructor(conn: Deno.TcpConn) {
    conn.setNoDelay(true);
    this.#conn = conn;
    this.#source = { read: (view) => this.#read(view) };
  }

  /** Resolves when nothing more can be received. */
  get ended(): Promise<void> {
    return this.#ended.promise;
  }

  /**
   * Trusts the peer with larger frames and minds its heartbeat from now on.
   *
   * The time during which this process itself did not run (stopped, or its
   * event loop blocked) is not held against the peer: what it sent meanwhile
   * has not been read yet.
   *
   * @param limits The largest frames that are accepted from now on.
   * @param options Heartbeat, and what to do once when the peer is silent.
   */
  trust(
    limits: FrameLimits,
    options: Heartbeat & { readonly onSilent: (silence: number) => void },
  ): void {
    const { interval, silence, onSilent } = options;
    this.#limits = limits;
    let expected = performance.now() + interval;
    this.#heard = performance.now();
    this.#timer = setInterval(() => {
      const now = performance.now();
      const late = now - expected;
      expected = now + interval;
      if (late > interval) this.#heard = Math.min(now, this.#heard + late);
      if (now - this.#heard < silence) return this.send({ type: "beat" });
      clearInterval(this.#timer);
      onSilent(now - this.#heard);
    }, interval);
  }

  /**
   * Queues one frame.
   *
   * @param header The message.
   * @param payload Bytes to attach, copied.
   */
  send(header: object, payload?: Uint8Array): void {
    if (this.#closed) return;
    const frame = encodeFrame(header, payload);
    // The reader finds out why a write failed: see the class comment.
    this.#writes = this.#writes.then(() => this.#write(frame)).catch(() => {});
  }

  /**
   * Receives the next frame.
   *
   * @returns The frame, or `undefined` once the connection is lost or closed.
   * @throws {FrameError} If the peer sent something else.
   */
  async receive(): Promise<Frame | undefined> {
    try {
      const frame = await readFrame(this.#source, this.#limits);
      if (frame !== undefined) return frame;
    } catch (error) {
      if (error instanceof FrameError && !this.#closed) {
        this.#ended.resolve();
        throw error;
      }
    }
    this.#ended.resolve();
    return undefined;
  }

  /**
   * Sends a last frame, waits for the peer to hang up, and closes.
   *
   * Someone must be receiving meanwhile. Nothing that was sent before is lost.
   *
   * @param header The last message.
   * @param patience Milliseconds to wait for the peer.
   */
  async finish(header: object, patience: number): Promise<void> {
    this.send(header);
    await settledWithin(this.ended, patience);
    this.close();
  }

  /** Closes the connection at once. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    clearInterval(this.#timer);
    this.#conn.close();
    this.#ended.resolve();
  }

  async #read(view: Uint8Array): Promise<number | null> {
    const bytes = await this.#conn.read(view);
    this.#heard = performance.now();
    return bytes;
  }

  async #write(frame: Uint8Array): Promise<void> {
    for (let written = 0; written < frame.length;) {
      written += await this.#conn.write(frame.subarray(written));
    }
  }
}
