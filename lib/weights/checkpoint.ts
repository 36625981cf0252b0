// SPDX-License-Identifier: Apache-2.0

/**
 * The experts of a Hugging Face checkpoint, whatever its shards and its names.
 *
 * @module
 */
import { join } from "@std/path";
import { checkInteger, show } from "../_check.ts";
import {
  catalogExperts,
  type CheckpointModel,
  DOWN,
  type ExpertCatalog,
  GATE,
  PARTS,
  refuse,
  SCALE,
  UP,
} from "./_expert_names.ts";
import { type Piece, readJson, Shards } from "./_shards.ts";
import { ExpertLayout, type ExpertTensorSpec } from "./layout.ts";
import type { SafetensorsInfo } from "./safetensors.ts";

export type { CheckpointModel } from "./_expert_names.ts";

/** Options of {@linkcode ExpertCheckpoint.readExpert}. */
export interface ReadExpertOptions {
  /** Index or name of the tensor in the checkpoint's layout. */
  readonly tensor: number | string;
  /** Memory to fill; it has exactly the tensor's bytes. */
  readonly target: Uint8Array;
}

/** The experts of an open checkpoint. */
export interface ExpertCheckpoint extends Disposable {
  /** Folder of the checkpoint. */
  readonly dir: string;
  /** The family whose tensor names the checkpoint uses. */
  readonly model: CheckpointModel;
  /** Model layer of each MoE layer, ascending. */
  readonly modelLayers: readonly number[];
  /** MoE layers. */
  readonly layers: number;
  /** Logical experts per layer. */
  readonly experts: number;
  /**
   * Tensors of one expert: `w13` [2 × intermediate, hidden], the gate projection
   * followed by the up projection, and `w2` [hidden, intermediate], the down
   * projection; where the weights have scales, `w13_scale` and `w2_scale`.
   */
  readonly layout: ExpertLayout;
  /**
   * Reads one tensor of one expert.
   *
   * @param layer MoE layer, 0 … layers-1; not the model layer.
   * @param expert Logical expert, 0 … experts-1.
   * @param options Which tensor, and where to.
   * @returns Resolves when the target is filled.
   * @throws {RangeError} If there is no such layer, expert or tensor, or if the
   * target has another size.
   * @throws {TypeError} If the checkpoint is closed.
   */
  readExpert(
    layer: number,
    expert: number,
    options: ReadExpertOptions,
  ): Promise<void>;
  /** Closes the files; closing again does nothing. */
  close(): void;
}

/**
 * Opens a checkpoint and checks that its experts are complete and alike.
 *
 * Read are `model.safetensors.index.json` and the shards it names, or a single
 * `model.safetensors`. Known are the names of DeepSeek-V3, Qwen3-MoE
 * (`model.layers.L.mlp.experts.E.gate_proj.weight`, `up_proj`, `down_proj`, each
 * with or without `weight_scale_inv`) and Mixtral
 * (`model.layers.L.block_sparse_moe.experts.E.w1.weight`, `w3`, `w2`). An expert
 * tensor of any other name is refused, so that a quantized checkpoint is never
 * read in part. If there is a `config.json`, model layers from its
 * `num_hidden_layers` on are left out: they predict further tokens.
 *
 * Shards must lie in the folder or, where the folder is a snapshot in a Hugging
 * Face cache, among that cache's blobs.
 *
 * @param dir Folder of the checkpoint.
 * @returns The experts, to be closed by the caller.
 * @throws {Deno.errors.NotFound} If the folder has no checkpoint, or no such shard.
 * @throws {SyntaxError} If a file is malformed.
 * @throws {RangeError} If a shard lies elsewhere, if there are no experts, or if
 * experts are missing or differ in shape or dtype.
 *
 * @example
 * ```ts
 * import { openCheckpoint, writeSafetensors } from "@eplb/eplb";
 * import { assertEquals } from "@std/assert";
 *
 * const dir = await Deno.makeTempDir();
 * const expert = "model.layers.0.mlp.experts.0";
 * await writeSafetensors(`${dir}/model.safetensors`, [
 *   { name: `${expert}.gate_proj.weight`, dtype: "U8", shape: [1, 2] },
 *   { name: `${expert}.up_proj.weight`, dtype: "U8", shape: [1, 2] },
 *   { name: `${expert}.down_proj.weight`, dtype: "U8", shape: [2, 1] },
 * ], {
 *   data: ({ name }) => [new Uint8Array(2).fill(name.includes("up") ? 2 : 1)],
 * });
 *
 * using checkpoint = await openCheckpoint(dir);
 * assertEquals(checkpoint.model, "qwen3-moe");
 * const target = new Uint8Array(4);
 * await checkpoint.readExpert(0, 0, { tensor: "w13", target });
 * assertEquals(target, new Uint8Array([1, 1, 2, 2]));
 * await Deno.remove(dir, { recursive: true });
 * ```
 */
export async function openCheckpoint(dir: string): Promise<ExpertCheckpoint> {
  const config = await readConfig(dir);
  const shards = await Shards.find(dir);
  try {
    const catalog = catalogExperts(shards.names(), { dir, ...config });
    if (config.experts !== undefined && config.experts !== catalog.experts) {
      throw refuse(
        dir,
        `"config.json" says ${config.experts} experts, the files have ${catalog.experts}`,
      );
    }
    const pieces: (Piece | undefined)[] = [];
    for (const name of catalog.names) {
      pieces.push(name === "" ? undefined : await shards.locate(name));
    }
    checkAlike(pieces, dir);
    const layout = layoutOf(pieces, dir);
    return new Checkpoint(shards, { catalog, pieces, layout });
  } catch (error) {
    shards.close();
    throw error;
  }
}

/** The parts that each tensor of the layout is put together from. */
const TENSORS = [
  { name: "w13", parts: [GATE, UP] },
  { name: "w2", parts: [DOWN] },
  { name: "w13_scale", parts: [SCALE + GATE, SCALE + UP] },
  { name: "w2_scale", parts: [SCALE + DOWN] },
] as const;

class Checkpoint implements ExpertCheckpoint {
  readonly dir: string;
  readonly model: CheckpointModel;
  readonly modelLayers: readonly number[];
  readonly layers: number;
  readonly experts: number;
  readonly layout: ExpertLayout;
  readonly #shards: Shards;
  /** [layers, experts, PARTS] */
  readonly #pieces: readonly (Piece | undefined)[];

  constructor(
    shards: Shards,
    options: {
      readonly catalog: ExpertCatalog;
      readonly pieces: readonly (Piece | undefined)[];
      readonly layout: ExpertLayout;
    },
  ) {
    const { model, modelLayers, experts } = options.catalog;
    this.dir = shards.dir;
    this.model = model;
    this.modelLayers = modelLayers;
    this.layers = modelLayers.length;
    this.experts = experts;
    this.layout = options.layout;
    this.#shards = shards;
    this.#pieces = options.pieces;
  }

  async readExpert(
    layer: number,
    expert: number,
    options: ReadExpertOptions,
  ): Promise<void> {
    const action = "read expert";
    checkInteger(layer, {
      action,
      name: "layer",
      min: 0,
      max: this.layers - 1,
    });
    checkInteger(expert, {
      action,
      name: "expert",
      min: 0,
      max: this.experts - 1,
    });
    const index = this.#indexOf(options.tensor);
    const { name, bytes } = this.layout.tensors[index]!;
    const { target } = options;
    if (target.length !== bytes) {
      throw new RangeError(
        `Cannot read expert: tensor "${name}" has ${bytes} bytes, the target has ${target.length}`,
      );
    }
    const first = (layer * this.experts + expert) * PARTS;
    let begin = 0;
    for (const part of TENSORS[index]!.parts) {
      const { file, info } = this.#pieces[first + part]!;
      const end = begin + info.bytes;
      await file.readInto(info.name, target.subarray(begin, end));
      begin = end;
    }
  }

  #indexOf(tensor: number | string): number {
    const { tensors } = this.layout;
    const index = typeof tensor === "number"
      ? tensor
      : tensors.findIndex(({ name }) => name === tensor);
    if (tensors[index] === undefined) {
      throw new RangeError(
        `Cannot read expert: there is no tensor ${show(tensor)} among ${
          tensors.map(({ name }) => name).join(", ")
        }`,
      );
    }
    return index;
  }

  close(): void {
    this.#shards.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }
}

/** What of the model's configuration concerns its experts. */
async function readConfig(
  dir: string,
): Promise<{ readonly hiddenLayers: number; readonly experts?: number }> {
  const config = await readJson(join(dir, "config.json")) ?? {};
  const {
    num_hidden_layers: hiddenLayers,
    n_routed_experts: experts = config.num_experts ?? config.num_local_experts,
  } = config;
  return {
    hiddenLayers: typeof hiddenLayers === "number" ? hiddenLayers : Infinity,
    ...(typeof experts === "number" ? { experts } : {}),
  };
}

/** Refuses experts whose parts differ in dtype or shape from those of the first one. */
function checkAlike(pieces: readonly (Piece | undefined)[], dir: string): void {
  for (const [index, piece] of pieces.entries()) {
    const first = pieces[index % PARTS];
    if (piece === undefined || first === undefined) continue;
    if (!sameKind(piece.info, first.info)) {
      throw refuse(
        dir,
        `tensor ${describe(piece.info)} is unlike ${describe(first.info)}`,
      );
    }
  }
}

/** The layout that the parts of the first expert make; all others are like it. */
function layoutOf(
  pieces: readonly (Piece | undefined)[],
  dir: string,
): ExpertLayout {
  const specs: ExpertTensorSpec[] = [];
  for (const { name, parts } of TENSORS) {
    const infos = parts.map((part) => pieces[part]?.info);
    const first = infos[0];
    if (first === undefined) continue;
    const [rows, columns] = first.shape;
    if (first.shape.length !== 2) {
      throw refuse(dir, `tensor ${describe(first)} is not a matrix`);
    }
    if (!infos.every((info) => sameKind(info!, first))) {
      throw refuse(
        dir,
        `gate ${describe(first)} is unlike up ${describe(infos[1]!)}`,
      );
    }
    const shape = [parts.length * rows!, columns!];
    specs.push({ name, dtype: first.dtype, shape });
  }
  const [w13, w2] = specs as [ExpertTensorSpec, ExpertTensorSpec];
  if (w13.shape[0] !== 2 * w2.shape[1]! || w13.shape[1] !== w2.shape[0]) {
    throw refuse(
      dir,
      `gate ${describe(pieces[GATE]!.info)} does not fit down ${
        describe(pieces[DOWN]!.info)
      }`,
    );
  }
  return new ExpertLayout(specs);
}

function sameKind(a: SafetensorsInfo, b: SafetensorsInfo): boolean {
  return a.dtype === b.dtype && a.shape.length === b.shape.length &&
    a.shape.every((size, index) => size === b.shape[index]);
}

function describe({ name, dtype, shape }: SafetensorsInfo): string {
  return `"${name}" (${dtype} [${shape.join(", ")}])`;
}
