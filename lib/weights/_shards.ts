// SPDX-License-Identifier: Apache-2.0
// The files of a checkpoint: which tensor is in which shard, and the open shards.
import {
  basename,
  dirname,
  isAbsolute,
  join,
  normalize,
  relative,
} from "@std/path";
import { refuse } from "./_expert_names.ts";
import {
  openSafetensors,
  type SafetensorsInfo,
  type SafetensorsReader,
} from "./safetensors.ts";

const INDEX = "model.safetensors.index.json";
const SINGLE = "model.safetensors";

/** A tensor, and the open file that holds it. */
export interface Piece {
  readonly file: SafetensorsReader;
  readonly info: SafetensorsInfo;
}

/** The shards of a checkpoint, opened when a tensor of theirs is first asked for. */
export class Shards implements Disposable {
  readonly dir: string;
  /** File name of each tensor's shard. */
  readonly #index: ReadonlyMap<string, string>;
  readonly #open: Map<string, SafetensorsReader>;

  private constructor(
    dir: string,
    options: {
      readonly index: ReadonlyMap<string, string>;
      readonly open?: Map<string, SafetensorsReader>;
    },
  ) {
    this.dir = dir;
    this.#index = options.index;
    this.#open = options.open ?? new Map();
  }

  /** Reads the index, or the header of the only file. */
  static async find(dir: string): Promise<Shards> {
    const path = join(dir, INDEX);
    const json = await readJson(path);
    if (json !== undefined) {
      return new Shards(dir, { index: weightMap(json.weight_map, path) });
    }
    const file = await openShard(dir, SINGLE);
    return new Shards(dir, {
      index: new Map(file.names.map((name) => [name, SINGLE])),
      open: new Map([[SINGLE, file]]),
    });
  }

  /** Names of all tensors. */
  names(): Iterable<string> {
    return this.#index.keys();
  }

  /** Finds a tensor that the index has. */
  async locate(name: string): Promise<Piece> {
    const shard = this.#index.get(name)!;
    let file = this.#open.get(shard);
    if (file === undefined) {
      file = await openShard(this.dir, shard);
      this.#open.set(shard, file);
    }
    if (!file.has(name)) {
      throw refuse(
        this.dir,
        `the index places tensor "${name}" in shard "${shard}", which does not have it`,
      );
    }
    return { file, info: file.info(name) };
  }

  close(): void {
    for (const file of this.#open.values()) file.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }
}

/** An object from a JSON file; undefined if there is no such file. */
export async function readJson(
  path: string,
): Promise<Record<string, unknown> | undefined> {
  let text: string;
  try {
    text = await Deno.readTextFile(path);
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return undefined;
    throw error;
  }
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (cause) {
    throw new SyntaxError(`Cannot read "${path}": it is not JSON`, { cause });
  }
  if (typeof value !== "object" || value === null || Array.isArray(value)) {
    throw new SyntaxError(`Cannot read "${path}": it is not a JSON object`);
  }
  return value as Record<string, unknown>;
}

function weightMap(value: unknown, path: string): Map<string, string> {
  if (typeof value !== "object" || value === null || Array.isArray(value)) {
    throw new SyntaxError(`Cannot read "${path}": it has no "weight_map"`);
  }
  const index = new Map<string, string>();
  for (const [name, shard] of Object.entries(value)) {
    if (typeof shard !== "string") {
      throw new SyntaxError(
        `Cannot read "${path}": the shard of tensor "${name}" is not a string`,
      );
    }
    index.set(name, shard);
  }
  return index;
}

async function openShard(
  dir: string,
  shard: string,
): Promise<SafetensorsReader> {
  if (isAbsolute(shard) || /^\.\.(?:[\\/]|$)/.test(normalize(shard))) {
    throw refuse(dir, `shard "${shard}" lies outside of the folder`);
  }
  let root: string;
  let path: string;
  try {
    root = await Deno.realPath(dir);
    path = await Deno.realPath(join(dir, shard));
  } catch (cause) {
    if (!(cause instanceof Deno.errors.NotFound)) throw cause;
    throw new Deno.errors.NotFound(
      `Cannot open checkpoint "${dir}": there is no file "${shard}"`,
      { cause },
    );
  }
  if (!allowedRoots(root).some((folder) => isInside(folder, path))) {
    throw refuse(dir, `shard "${shard}" is a link to "${path}"`);
  }
  return await openSafetensors(path);
}

/**
 * Folders in which shards may really lie: the checkpoint's own and, if it is a snapshot in a
 * Hugging Face cache (models--…/snapshots/REVISION), the blobs that such snapshots link to.
 */
function allowedRoots(root: string): string[] {
  const snapshots = dirname(root);
  return basename(snapshots) === "snapshots"
    ? [root, join(dirname(snapshots), "blobs")]
    : [root];
}

function isInside(folder: string, path: string): boolean {
  const way = relative(folder, path);
  return !isAbsolute(way) && !/^\.\.(?:[\\/]|$)/.test(way);
}
