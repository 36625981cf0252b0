// SPDX-License-Identifier: Apache-2.0

/**
 * The store's frames: length-prefixed JSON with bytes attached.
 *
 * ```text
 * u32 header bytes | u32 payload bytes | header (UTF-8 JSON object) | payload
 * ```
 *
 * Both lengths are big endian. A reader states its limits and refuses a frame
 * above them from its first eight bytes, before any memory is allocated.
 *
 * @module
 */

const PREFIX_BYTES = 8;

/** One message: a JSON object and the bytes that belong to it. */
export interface Frame {
  /** The decoded JSON object; nothing about its fields is known yet. */
  readonly header: Readonly<Record<string, unknown>>;
  /** The attached bytes, possibly none; memory of their own. */
  readonly payload: Uint8Array<ArrayBuffer>;
}

/** The largest frame that a reader accepts, in bytes. */
export interface FrameLimits {
  /** Bytes of the JSON header. */
  readonly header: number;
  /** Bytes of the payload. */
  readonly payload: number;
}

/** Where frames are read from; {@linkcode Deno.Conn} is one. */
export interface FrameSource {
  /** Reads some bytes into the view, or returns `null` at the end. */
  read(view: Uint8Array): Promise<number | null>;
}

/** The peer sent something that is not a frame of the store. */
export class FrameError extends Error {
  /**
   * Makes the error.
   *
   * @param message What was wrong.
   * @param options The cause, if another error found it.
   */
  constructor(message: string, options?: ErrorOptions) {
    super(message, options);
    this.name = "FrameError";
  }
}

/**
 * Encodes one frame.
 *
 * @param header A JSON object.
 * @param payload Bytes to attach, copied. @default {none}
 * @returns The frame as it goes over the wire.
 */
export function encodeFrame(
  header: object,
  payload: Uint8Array = new Uint8Array(),
): Uint8Array<ArrayBuffer> {
  const json = new TextEncoder().encode(JSON.stringify(header));
  const frame = new Uint8Array(PREFIX_BYTES + json.length + payload.length);
  const prefix = new DataView(frame.buffer);
  prefix.setUint32(0, json.length);
  prefix.setUint32(4, payload.length);
  frame.set(json, PREFIX_BYTES);
  frame.set(payload, PREFIX_BYTES + json.length);
  return frame;
}

/**
 * Reads the next frame.
 *
 * @param source Where the bytes come from, in pieces of any size.
 * @param limits The largest frame that is accepted.
 * @returns The frame, or `undefined` where the source ends between frames.
 * @throws {FrameError} If the frame is above the limits, cut off, or its header
 * is not a JSON object. The source is then of no further use.
 */
export async function readFrame(
  source: FrameSource,
  limits: FrameLimits,
): Promise<Frame | undefined> {
  const prefix = new Uint8Array(PREFIX_BYTES);
  if (!await fill(source, prefix)) return undefined;
  const lengths = new DataView(prefix.buffer);
  const headerBytes = checkLength("header", lengths.getUint32(0), limits);
  const payloadBytes = checkLength("payload", lengths.getUint32(4), limits);
  const json = new Uint8Array(headerBytes);
  const payload = new Uint8Array(payloadBytes);
  if (!await fill(source, json) || !await fill(source, payload)) {
    throw new FrameError("Cannot read frame: source ended after its lengths");
  }
  return { header: parseHeader(json), payload };
}

function checkLength(
  part: "header" | "payload",
  bytes: number,
  limits: FrameLimits,
): number {
  if (bytes <= limits[part]) return bytes;
  throw new FrameError(
    `Cannot read frame: ${part} of ${bytes} bytes is above the limit of ` +
      `${limits[part]}`,
  );
}

/** Fills the view; false where the source ends before its first byte. */
async function fill(source: FrameSource, view: Uint8Array): Promise<boolean> {
  for (let filled = 0; filled < view.length;) {
    const bytes = await source.read(view.subarray(filled));
    if (bytes === null && filled === 0) return false;
    if (bytes === null) {
      throw new FrameError(
        `Cannot read frame: source ended after ${filled} of ${view.length} bytes`,
      );
    }
    filled += bytes;
  }
  return true;
}

function parseHeader(json: Uint8Array): Readonly<Record<string, unknown>> {
  let header: unknown;
  try {
    header = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(json));
  } catch (cause) {
    throw new FrameError("Cannot read frame: header is not JSON", { cause });
  }
  if (typeof header === "object" && header !== null && !Array.isArray(header)) {
    return header as Readonly<Record<string, unknown>>;
  }
  throw new FrameError("Cannot read frame: header is not a JSON object");
}
