// SPDX-License-Identifier: Apache-2.0
// The header of a safetensors file, without the file: JSON text to and from a checked table of
// tensors. Rules as in the format's reference implementation: offsets count from the end of the
// header, and the tensors cover the data without overlap and without holes.
import { dtypeBits, isDtype, tensorBytes } from "./dtype.ts";
import type { SafetensorsInfo, SafetensorsSpec } from "./safetensors.ts";

/** Longest header that is read, the reference implementation's limit. */
export const MAX_HEADER_BYTES = 100_000_000;

const METADATA = "__metadata__";

/** What a header says. */
export interface Header {
  /** Tensors by name, in the order of their bytes. */
  readonly tensors: ReadonlyMap<string, SafetensorsInfo>;
  /** The file's free-form texts. */
  readonly metadata: Readonly<Record<string, string>>;
}

/**
 * Reads and checks a header.
 *
 * @param bytes The header's bytes, padding included.
 * @param options The file's name for errors, and the bytes behind the header.
 * @throws {SyntaxError} If the header is malformed or does not fit the data.
 */
export function parseHeader(
  bytes: Uint8Array,
  options: { readonly path: string; readonly dataBytes: number },
): Header {
  const { path, dataBytes } = options;
  const entries = parseObject(decode(bytes, path), path);
  let metadata: Readonly<Record<string, string>> = {};
  const infos: SafetensorsInfo[] = [];
  for (const [name, value] of entries) {
    if (name === METADATA) metadata = checkMetadata(value, path);
    else infos.push(checkTensor(name, value, path));
  }
  infos.sort((a, b) => a.begin - b.begin || a.end - b.end);
  checkCoverage(infos, { path, dataBytes });
  return { tensors: new Map(infos.map((info) => [info.name, info])), metadata };
}

/**
 * Lays tensors out in a file and formats its first bytes: length, JSON, padding.
 *
 * Wide elements come first, so that every tensor is aligned to its element.
 *
 * @throws {TypeError} If a dtype is not known.
 * @throws {RangeError} If a name is used twice or reserved, or a size is bad.
 */
export function formatHeader(
  specs: readonly SafetensorsSpec[],
  metadata: Readonly<Record<string, string>>,
): { readonly prefix: Uint8Array; readonly tensors: SafetensorsInfo[] } {
  const ordered = [...specs].sort((a, b) =>
    dtypeBits(b.dtype) - dtypeBits(a.dtype)
  );
  const names = new Set([METADATA]);
  const tensors: SafetensorsInfo[] = [];
  let begin = 0;
  for (const { name, dtype, shape } of ordered) {
    if (names.has(name)) {
      throw new RangeError(
        `Cannot write tensor "${name}": the name is ${
          name === METADATA ? "reserved" : "used twice"
        }`,
      );
    }
    names.add(name);
    const bytes = tensorBytes(dtype, shape);
    const end = begin + bytes;
    tensors.push({ name, dtype, shape: [...shape], bytes, begin, end });
    begin = end;
  }
  return { prefix: encode(tensors, metadata), tensors };
}

/** Written by hand because an object would move names like "0" to its front. */
function encode(
  tensors: readonly SafetensorsInfo[],
  metadata: Readonly<Record<string, string>>,
): Uint8Array {
  const fields = tensors.map(({ name, dtype, shape, begin, end }) =>
    JSON.stringify(name) + ":" +
    JSON.stringify({ dtype, shape, data_offsets: [begin, end] })
  );
  if (Object.keys(metadata).length > 0) {
    fields.unshift(`"${METADATA}":${JSON.stringify(metadata)}`);
  }
  const json = new TextEncoder().encode(`{${fields.join(",")}}`);
  const length = Math.ceil(json.length / 8) * 8;
  if (length > MAX_HEADER_BYTES) {
    throw new RangeError(
      `Cannot write ${tensors.length} tensors: their header has ${length} bytes, at most ${MAX_HEADER_BYTES} can be read`,
    );
  }
  const prefix = new Uint8Array(8 + length).fill(0x20);
  new DataView(prefix.buffer).setBigUint64(0, BigInt(length), true);
  prefix.set(json, 8);
  return prefix;
}

function malformed(path: string, state: string, cause?: unknown): SyntaxError {
  return new SyntaxError(`Cannot read "${path}": ${state}`, { cause });
}

function decode(bytes: Uint8Array, path: string): string {
  if (bytes[0] !== 0x7b) {
    throw malformed(path, `header does not begin with "{"`);
  }
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch (cause) {
    throw malformed(path, "header is not UTF-8", cause);
  }
}

function parseObject(text: string, path: string): [string, unknown][] {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (cause) {
    throw malformed(path, "header is not JSON", cause);
  }
  const twice = findDuplicateKey(text);
  if (twice !== undefined) {
    throw malformed(path, `header names ${twice} twice`);
  }
  return Object.entries(value as object);
}

/**
 * Key that some object of a valid JSON text has twice, which JSON.parse does not tell: it keeps
 * the last one, other readers the first.
 */
function findDuplicateKey(json: string): string | undefined {
  const open: Set<string>[] = [];
  for (let at = 0; at < json.length; at++) {
    const char = json[at];
    if (char === "{") {
      open.push(new Set());
    } else if (char === "}") {
      open.pop();
    } else if (char === '"') {
      const begin = at++;
      while (json[at] !== '"') at += json[at] === "\\" ? 2 : 1;
      let next = at + 1;
      while (" \t\r\n".includes(json[next]!)) next++;
      if (json[next] !== ":") continue;
      const key: string = JSON.parse(json.slice(begin, at + 1));
      const keys = open.at(-1)!;
      if (keys.has(key)) return JSON.stringify(key);
      keys.add(key);
    }
  }
  return undefined;
}

function checkMetadata(
  value: unknown,
  path: string,
): Readonly<Record<string, string>> {
  if (!isObject(value)) {
    throw malformed(path, `"${METADATA}" is not an object`);
  }
  for (const [key, text] of Object.entries(value)) {
    if (typeof text !== "string") {
      throw malformed(path, `"${METADATA}" entry "${key}" is not a string`);
    }
  }
  return value as Readonly<Record<string, string>>;
}

function checkTensor(
  name: string,
  value: unknown,
  path: string,
): SafetensorsInfo {
  const fault = (state: string): SyntaxError =>
    malformed(path, `tensor "${name}" ${state}`);
  if (!isObject(value)) throw fault("is not described by an object");
  const { dtype, shape, data_offsets: offsets } = value;
  if (typeof dtype !== "string" || !isDtype(dtype)) {
    throw fault(`has dtype ${show(dtype)}, which is not known`);
  }
  if (!isSizes(shape)) {
    throw fault(
      `has shape ${show(shape)}, not a list of non-negative integers`,
    );
  }
  if (!isSizes(offsets) || offsets.length !== 2) {
    throw fault(
      `has data_offsets ${show(offsets)}, not [begin, end]`,
    );
  }
  const [begin, end] = offsets as [number, number];
  let bytes: number;
  try {
    bytes = tensorBytes(dtype, shape);
  } catch (cause) {
    throw malformed(path, `tensor "${name}" has an impossible size`, cause);
  }
  if (end - begin !== bytes) {
    throw fault(
      `of dtype ${dtype} and shape [${
        shape.join(", ")
      }] needs ${bytes} bytes, data_offsets [${begin}, ${end}] hold ${
        end - begin
      }`,
    );
  }
  return { name, dtype, shape, bytes, begin, end };
}

function checkCoverage(
  infos: readonly SafetensorsInfo[],
  options: { readonly path: string; readonly dataBytes: number },
): void {
  const { path, dataBytes } = options;
  let covered = 0;
  for (const { name, begin, end } of infos) {
    if (end > dataBytes) {
      throw malformed(
        path,
        `tensor "${name}" ends at byte ${end}, the data at byte ${dataBytes}`,
      );
    }
    if (begin !== covered) {
      throw malformed(
        path,
        `tensor "${name}" begins at byte ${begin}, the tensor before it ends at byte ${covered}`,
      );
    }
    covered = end;
  }
  if (covered !== dataBytes) {
    throw malformed(
      path,
      `tensors end at byte ${covered}, the data at byte ${dataBytes}`,
    );
  }
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function isSizes(value: unknown): value is number[] {
  return Array.isArray(value) &&
    value.every((size) => Number.isSafeInteger(size) && size >= 0);
}

/** A value for an error message: hostile ones may be too long or too deep to print whole. */
function show(value: unknown): string {
  if (Array.isArray(value)) {
    const shown = value.slice(0, 8).map((item) =>
      typeof item === "number" ? `${item}` : typeof item
    );
    return `[${shown.join(", ")}${value.length > 8 ? ", …" : ""}]`;
  }
  return typeof value === "object" ? "{…}" : JSON.stringify(value);
}
