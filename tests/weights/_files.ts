import { assert } from "@std/assert";
import { join } from "@std/path";
import { dtypeBits } from "../../lib/weights/dtype.ts";
import type { SafetensorsSpec } from "../../lib/weights/safetensors.ts";

/** A folder that is removed at the end of the scope. */
export class TemporaryFolder implements AsyncDisposable {
  readonly path = Deno.makeTempDirSync({ prefix: "eplb-test-" });

  file(name = "x.safetensors"): string {
    return join(this.path, name);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Deno.remove(this.path, { recursive: true });
  }
}

export function bytesOf(text: string): Uint8Array<ArrayBuffer> {
  return Uint8Array.from(text, (char) => char.charCodeAt(0));
}

/** The bytes of a file with the given header and data; `length` may lie. */
export function fileOf(
  header: string | object,
  data: number | Uint8Array = 0,
  length?: bigint,
): Uint8Array {
  const text = typeof header === "string" ? header : JSON.stringify(header);
  const json = new TextEncoder().encode(text);
  const body = typeof data === "number" ? new Uint8Array(data) : data;
  const bytes = new Uint8Array(8 + json.length + body.length);
  new DataView(bytes.buffer)
    .setBigUint64(0, length ?? BigInt(json.length), true);
  bytes.set(json, 8);
  bytes.set(body, 8 + json.length);
  return bytes;
}

export async function sha256(bytes: Uint8Array<ArrayBuffer>): Promise<string> {
  return new Uint8Array(await crypto.subtle.digest("SHA-256", bytes)).toHex();
}

/** Bytes that depend on a tensor's name and size. */
export function contentOf(tensor: SafetensorsSpec): Uint8Array<ArrayBuffer> {
  const elements = tensor.shape.reduce((a, b) => a * b, 1);
  const seed = [...tensor.name].reduce(
    (hash, char) => (hash * 31 + char.codePointAt(0)!) % 65_521,
    elements,
  );
  return Uint8Array.from(
    { length: elements * dtypeBits(tensor.dtype) / 8 },
    (_, index) => (seed + index * 7) % 251,
  );
}

/** What an unchecked reader finds: the slices that the header names. */
export function naiveRead(bytes: Uint8Array): Map<string, Uint8Array> {
  const length = Number(new DataView(bytes.buffer).getBigUint64(0, true));
  const text = new TextDecoder().decode(bytes.subarray(8, 8 + length));
  const tensors = Object.entries(JSON.parse(text) as Record<string, {
    readonly data_offsets: [number, number];
  }>).filter(([name]) => name !== "__metadata__");
  return new Map(
    tensors.map(([name, { data_offsets: [begin, end] }]) => {
      assert(begin <= end && 8 + length + end <= bytes.length);
      return [name, bytes.subarray(8 + length + begin, 8 + length + end)];
    }),
  );
}
