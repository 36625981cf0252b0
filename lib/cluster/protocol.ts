// SPDX-License-Identifier: Apache-2.0

/**
 * What ranks and their store say to each other.
 *
 * The tables are the protocol: the message types are derived from them, and
 * whatever arrives is checked against them.
 *
 * ```text
 * rank                                store
 *  │ hello (token, rank) ───────────▶ │  welcome, or refused and closed
 *  │ post (id, name) + payload ─────▶ │  gathered (id) + payloads, once all have posted
 *  │ missing (id) ──────────────────▶ │  missing (id, ranks)
 *  │ fail (reason) ─────────────────▶ │  failure, to every rank
 *  │ bye ───────────────────────────▶ │  closes the connection
 *  │ ◀─────────────── beat ─────────▶ │
 *  │ ◀──────────────────────────────  │  closing
 * ```
 *
 * @module
 */

import type { RankFailureKind } from "./failure.ts";
import { type Frame, FrameError, type FrameLimits } from "./frames.ts";

/** Version of the protocol; a store admits only its own. */
export const PROTOCOL = 1;

/** Frames of a peer that has not shown the token yet: one small hello. */
export const HELLO_LIMITS: FrameLimits = { header: 16384, payload: 0 };

/** Bytes of a header once a rank is known: rank lists of large worlds fit. */
export const HEADER_LIMIT = 1 << 20;

/** Whom a gather waits for: every rank, or the ranks that are still alive. */
export type GatherMode = "all" | "survivors";

type Guard<T> = (value: unknown) => value is T;
type Shapes = Readonly<
  Record<string, Readonly<Record<string, Guard<unknown>>>>
>;
type MessageOf<S extends Shapes> = {
  [K in keyof S & string]:
    & { readonly type: K }
    & {
      readonly [F in keyof S[K]]: S[K][F] extends Guard<infer T> ? T : never;
    };
}[keyof S & string];

/** Most UTF-16 units of a text in a message. */
export const LONGEST_TEXT = 4096;

function isCount(value: unknown): value is number {
  return Number.isSafeInteger(value) && (value as number) >= 0;
}

function isText(value: unknown): value is string {
  return typeof value === "string" && value.length <= LONGEST_TEXT;
}

function isCounts(value: unknown): value is readonly number[] {
  return Array.isArray(value) && value.every(isCount);
}

function isMode(value: unknown): value is GatherMode {
  return value === "all" || value === "survivors";
}

const KINDS: Readonly<Record<RankFailureKind, true>> = {
  died: true,
  silent: true,
  "gave-up": true,
  absent: true,
  left: true,
  store: true,
};

function isKind(value: unknown): value is RankFailureKind {
  return typeof value === "string" && Object.hasOwn(KINDS, value);
}

/** What a rank says. */
export const FROM_RANK = {
  hello: { protocol: isCount, token: isText, rank: isCount },
  post: { id: isCount, mode: isMode, name: isText },
  missing: { id: isCount },
  fail: { reason: isText },
  bye: {},
  beat: {},
} satisfies Shapes;

/** What the store says. */
export const FROM_STORE = {
  welcome: {
    worldSize: isCount,
    interval: isCount,
    silence: isCount,
    maxPayload: isCount,
  },
  refused: { reason: isText },
  gathered: { id: isCount, ranks: isCounts, sizes: isCounts },
  missing: { id: isCount, ranks: isCounts },
  oversized: { id: isCount, bytes: isCount },
  failure: { kind: isKind, ranks: isCounts, reason: isText },
  closing: {},
  beat: {},
} satisfies Shapes;

/** A message from a rank. */
export type RankMessage = MessageOf<typeof FROM_RANK>;

/** A message from the store. */
export type StoreMessage = MessageOf<typeof FROM_STORE>;

/**
 * Checks that a frame is a message of one side.
 *
 * @param frame What arrived.
 * @param shapes {@linkcode FROM_RANK} or {@linkcode FROM_STORE}.
 * @returns The message; its fields have their types.
 * @throws {FrameError} If it is not one.
 */
export function parseMessage<S extends Shapes>(
  frame: Frame,
  shapes: S,
): MessageOf<S> {
  const { header } = frame;
  const { type } = header;
  if (typeof type !== "string" || !Object.hasOwn(shapes, type)) {
    throw new FrameError("Cannot read message: its type is not known here");
  }
  for (const [field, guard] of Object.entries(shapes[type]!)) {
    if (!Object.hasOwn(header, field) || !guard(header[field])) {
      throw new FrameError(
        `Cannot read message: "${field}" of "${type}" is not valid`,
      );
    }
  }
  return header as MessageOf<S>;
}

/**
 * Cuts a text to what a message may carry.
 *
 * @param text Any text.
 * @returns Its beginning.
 */
export function clipText(text: string): string {
  return text.slice(0, LONGEST_TEXT);
}
