// SPDX-License-Identifier: Apache-2.0

/**
 * Reading and writing safetensors files, one tensor at a time.
 *
 * @module
 */
import { basename, dirname, join } from "@std/path";
import {
  formatHeader,
  type Header,
  MAX_HEADER_BYTES,
  parseHeader,
} from "./_safetensors_header.ts";
import type { Dtype } from "./dtype.ts";

/** One tensor to write. */
export interface SafetensorsSpec {
  /** Name, unique in its file. */
  readonly name: string;
  /** Element type. */
  readonly dtype: Dtype;
  /** Elements per dimension. */
  readonly shape: readonly number[];
}

/** One tensor of a file. */
export interface SafetensorsInfo extends SafetensorsSpec {
  /** Size in bytes. */
  readonly bytes: number;
  /** First byte, counted from the end of the header. */
  readonly begin: number;
  /** One past the last byte, counted from the end of the header. */
  readonly end: number;
}

/** Options of {@linkcode SafetensorsReader.readInto}. */
export interface ReadIntoOptions {
  /**
   * First byte to read, counted from the beginning of the tensor.
   *
   * @default {0}
   */
  readonly offset?: number;
}

/**
 * An open safetensors file whose header has been checked.
 *
 * Reads may be started side by side; they are served one after the other.
 */
export interface SafetensorsReader extends Disposable {
  /** Path of the file. */
  readonly path: string;
  /** Names of the tensors, in the order of their bytes. */
  readonly names: readonly string[];
  /** The file's free-form texts. */
  readonly metadata: Readonly<Record<string, string>>;
  /**
   * Tells whether the file has a tensor.
   *
   * @param name Name of the tensor.
   * @returns `true` if it has.
   */
  has(name: string): boolean;
  /**
   * Type, shape and place of a tensor.
   *
   * @param name Name of the tensor.
   * @returns What the header says about it.
   * @throws {RangeError} If the file has no such tensor.
   */
  info(name: string): SafetensorsInfo;
  /**
   * Reads a whole tensor into new memory.
   *
   * @param name Name of the tensor.
   * @returns Its bytes, little-endian and row-major.
   * @throws {RangeError} If the file has no such tensor.
   * @throws {TypeError} If the reader is closed.
   */
  read(name: string): Promise<Uint8Array<ArrayBuffer>>;
  /**
   * Fills `target` with bytes of a tensor.
   *
   * @param name Name of the tensor.
   * @param target Memory to fill, all of it.
   * @param options Where in the tensor to begin.
   * @returns Resolves when `target` is filled.
   * @throws {RangeError} If the file has no such tensor, or the tensor has
   * fewer bytes behind `offset`.
   * @throws {TypeError} If the reader is closed.
   */
  readInto(
    name: string,
    target: Uint8Array,
    options?: ReadIntoOptions,
  ): Promise<void>;
  /** Closes the file; closing again does nothing. */
  close(): void;
}

/** Options of {@linkcode writeSafetensors}. */
export interface WriteSafetensorsOptions {
  /**
   * Gives the bytes of a tensor in chunks of any size. A chunk's memory may be
   * used again once the next chunk is asked for.
   *
   * @param tensor The tensor whose bytes are wanted.
   * @returns Its bytes, little-endian and row-major.
   */
  readonly data: (
    tensor: SafetensorsSpec,
  ) => Iterable<Uint8Array> | AsyncIterable<Uint8Array>;
  /**
   * Free-form texts to keep in the file.
   *
   * @default {{}}
   */
  readonly metadata?: Readonly<Record<string, string>>;
}

/**
 * Opens a safetensors file and checks its header.
 *
 * The header is believed only where it fits the file: known dtypes, sizes that
 * follow from the shapes, tensors that cover the data without overlap or hole.
 *
 * @param path Path of the file.
 * @returns A reader, to be closed by the caller.
 * @throws {SyntaxError} If the header is malformed or does not fit the file.
 *
 * @example
 * ```ts
 * import { openSafetensors, writeSafetensors } from "@eplb/eplb";
 * import { assertEquals } from "@std/assert";
 *
 * const path = await Deno.makeTempFile({ suffix: ".safetensors" });
 * await writeSafetensors(path, [{ name: "w", dtype: "U8", shape: [2, 2] }], {
 *   data: () => [new Uint8Array([1, 2, 3, 4])],
 * });
 * using file = await openSafetensors(path);
 * assertEquals(file.info("w").shape, [2, 2]);
 * assertEquals(await file.read("w"), new Uint8Array([1, 2, 3, 4]));
 * await Deno.remove(path);
 * ```
 */
export async function openSafetensors(
  path: string,
): Promise<SafetensorsReader> {
  const file = await Deno.open(path);
  try {
    const { header, dataBegin } = await readHeader(file, path);
    return new Reader(file, { path, header, dataBegin });
  } catch (error) {
    file.close();
    throw error;
  }
}

/**
 * Writes a safetensors file.
 *
 * The bytes stream through: no tensor is held whole. They go to a temporary
 * file in the same folder, which takes the path's place when it is complete;
 * if anything fails before that, what was at the path is untouched.
 *
 * @param path Path of the file.
 * @param tensors Tensors to write; those of wide elements are asked for and
 * written first, else their order is kept.
 * @param options The tensors' bytes, and free-form texts.
 * @returns Resolves when the file is in its place.
 * @throws {TypeError} If a dtype is not known.
 * @throws {RangeError} If a name is used twice or is `__metadata__`, if a size
 * is bad, or if `data` gives more or fewer bytes than a tensor has.
 *
 * @example
 * ```ts
 * import { openSafetensors, writeSafetensors } from "@eplb/eplb";
 * import { assertEquals } from "@std/assert";
 *
 * const path = await Deno.makeTempFile({ suffix: ".safetensors" });
 * await writeSafetensors(path, [{ name: "zeros", dtype: "F32", shape: [8] }], {
 *   *data() {
 *     const chunk = new Uint8Array(16);
 *     yield chunk;
 *     yield chunk;
 *   },
 *   metadata: { format: "pt" },
 * });
 * using file = await openSafetensors(path);
 * assertEquals(file.info("zeros").bytes, 32);
 * assertEquals(file.metadata, { format: "pt" });
 * await Deno.remove(path);
 * ```
 */
export async function writeSafetensors(
  path: string,
  tensors: readonly SafetensorsSpec[],
  options: WriteSafetensorsOptions,
): Promise<void> {
  const { prefix, tensors: infos } = formatHeader(
    tensors,
    options.metadata ?? {},
  );
  const name = `.${basename(path)}.${crypto.randomUUID()}.tmp`;
  const temporary = join(dirname(path), name);
  {
    using file = await Deno.open(temporary, { write: true, createNew: true });
    try {
      await writeAll(file, prefix);
      for (const info of infos) await writeTensor(file, info, options);
      await file.sync();
      await Deno.rename(temporary, path);
    } catch (error) {
      await Deno.remove(temporary);
      throw error;
    }
  }
}

class Reader implements SafetensorsReader {
  readonly path: string;
  readonly names: readonly string[];
  readonly metadata: Readonly<Record<string, string>>;
  readonly #tensors: Header["tensors"];
  readonly #dataBegin: number;
  #file: Deno.FsFile | null;
  /** The file has one position, so each read waits for the one before it. */
  #last: Promise<void> = Promise.resolve();

  constructor(
    file: Deno.FsFile,
    options: {
      readonly path: string;
      readonly header: Header;
      readonly dataBegin: number;
    },
  ) {
    this.path = options.path;
    this.metadata = options.header.metadata;
    this.names = [...options.header.tensors.keys()];
    this.#tensors = options.header.tensors;
    this.#dataBegin = options.dataBegin;
    this.#file = file;
  }

  has(name: string): boolean {
    return this.#tensors.has(name);
  }

  info(name: string): SafetensorsInfo {
    const info = this.#tensors.get(name);
    if (info === undefined) {
      throw new RangeError(
        `Cannot find tensor "${name}" in "${this.path}": it has ${this.names.length} others`,
      );
    }
    return info;
  }

  async read(name: string): Promise<Uint8Array<ArrayBuffer>> {
    const target = new Uint8Array(this.info(name).bytes);
    await this.readInto(name, target);
    return target;
  }

  async readInto(
    name: string,
    target: Uint8Array,
    options: ReadIntoOptions = {},
  ): Promise<void> {
    const { begin, bytes } = this.info(name);
    const { offset = 0 } = options;
    if (
      !Number.isSafeInteger(offset) || offset < 0 ||
      offset + target.length > bytes
    ) {
      throw new RangeError(
        `Cannot read ${target.length} bytes at offset ${offset} of tensor "${name}" in "${this.path}": it has ${bytes} bytes`,
      );
    }
    const position = this.#dataBegin + begin + offset;
    const read = this.#last.then(async () => {
      if (this.#file === null) {
        throw new TypeError(
          `Cannot read tensor "${name}" in "${this.path}": the reader is closed`,
        );
      }
      await this.#file.seek(position, Deno.SeekMode.Start);
      await readAll(this.#file, target, this.path);
    });
    this.#last = read.catch(() => {});
    await read;
  }

  close(): void {
    this.#file?.close();
    this.#file = null;
  }

  [Symbol.dispose](): void {
    this.close();
  }
}

async function readHeader(
  file: Deno.FsFile,
  path: string,
): Promise<{ readonly header: Header; readonly dataBegin: number }> {
  const { size } = await file.stat();
  if (size < 8) {
    throw new SyntaxError(
      `Cannot read "${path}": ${size} bytes are too few for a header length`,
    );
  }
  const prefix = new Uint8Array(8);
  await readAll(file, prefix, path);
  const length = new DataView(prefix.buffer).getBigUint64(0, true);
  if (length > MAX_HEADER_BYTES || length > size - 8) {
    throw new SyntaxError(
      `Cannot read "${path}": a header of ${length} bytes does not fit a file of ${size} bytes (at most ${MAX_HEADER_BYTES} are read)`,
    );
  }
  const dataBegin = 8 + Number(length);
  const bytes = new Uint8Array(Number(length));
  await readAll(file, bytes, path);
  const header = parseHeader(bytes, { path, dataBytes: size - dataBegin });
  return { header, dataBegin };
}

async function readAll(
  file: Deno.FsFile,
  target: Uint8Array,
  path: string,
): Promise<void> {
  for (let filled = 0; filled < target.length;) {
    const count = await file.read(target.subarray(filled));
    if (count === null) {
      throw new Deno.errors.UnexpectedEof(
        `Cannot read "${path}": it ends ${
          target.length - filled
        } bytes early, it was cut after it was opened`,
      );
    }
    filled += count;
  }
}

async function writeTensor(
  file: Deno.FsFile,
  tensor: SafetensorsInfo,
  options: WriteSafetensorsOptions,
): Promise<void> {
  const { name, bytes } = tensor;
  let written = 0;
  for await (const chunk of options.data(tensor)) {
    written += chunk.length;
    if (written > bytes) break;
    await writeAll(file, chunk);
  }
  if (written !== bytes) {
    throw new RangeError(
      `Cannot write tensor "${name}": it has ${bytes} bytes, its data gives ${
        written > bytes ? `${written} or more` : written
      }`,
    );
  }
}

async function writeAll(file: Deno.FsFile, chunk: Uint8Array): Promise<void> {
  for (let written = 0; written < chunk.length;) {
    written += await file.write(chunk.subarray(written));
  }
}
