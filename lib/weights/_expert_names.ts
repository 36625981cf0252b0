// SPDX-License-Identifier: Apache-2.0
// How models name the tensors of their experts in checkpoints, and the check that a set of names is
// complete. No file is touched here.

/** Naming family of a checkpoint. */
export type CheckpointModel = "deepseek-v3" | "qwen3-moe" | "mixtral";

/** What one expert is stored as: the weights of its projections, then their scales. */
export const PARTS = 6;
export const GATE = 0;
export const UP = 1;
export const DOWN = 2;
export const SCALE = 3;

const PART_NAMES = [
  "gate weight",
  "up weight",
  "down weight",
  "gate scale",
  "up scale",
  "down scale",
] as const;

/** The error for a checkpoint whose files can be read and do not fit together. */
export function refuse(dir: string, state: string): RangeError {
  return new RangeError(`Cannot open checkpoint "${dir}": ${state}`);
}

/** Tensors of all experts of a model. */
export interface ExpertCatalog {
  readonly model: CheckpointModel;
  /** Model layer of each MoE layer, ascending. */
  readonly modelLayers: readonly number[];
  /** Logical experts per layer. */
  readonly experts: number;
  /** Whether the weights have scales. */
  readonly scaled: boolean;
  /** Tensor names, [layers, experts, PARTS]; the scales' are "" where there are none. */
  readonly names: readonly string[];
}

const EXPERT =
  /^model\.layers\.(0|[1-9]\d{0,5})\.(mlp|block_sparse_moe)\.experts\.(0|[1-9]\d{0,5})\.(.+)$/;

/** Parts by what stands around the expert's number. */
const PART_OF: ReadonlyMap<string, number> = new Map([
  ["mlp.gate_proj.weight", GATE],
  ["mlp.up_proj.weight", UP],
  ["mlp.down_proj.weight", DOWN],
  ["mlp.gate_proj.weight_scale_inv", SCALE + GATE],
  ["mlp.up_proj.weight_scale_inv", SCALE + UP],
  ["mlp.down_proj.weight_scale_inv", SCALE + DOWN],
  ["block_sparse_moe.w1.weight", GATE],
  ["block_sparse_moe.w3.weight", UP],
  ["block_sparse_moe.w2.weight", DOWN],
]);

/**
 * Finds the experts among a checkpoint's tensor names.
 *
 * @param names All tensor names.
 * @param options The folder's name for errors; model layers from `hiddenLayers` on are left out: they predict
 * further tokens and are balanced as a model of their own.
 * @throws {RangeError} If there are no experts, if some are missing, or if an
 * expert has a tensor that is not known.
 */
export function catalogExperts(
  names: Iterable<string>,
  options: { readonly dir: string; readonly hiddenLayers: number },
): ExpertCatalog {
  const { dir, hiddenLayers } = options;
  // model layer -> expert -> names of its parts
  const found = new Map<number, Map<number, string[]>>();
  const blocks = new Set<string>();
  let shared = false;
  for (const name of names) {
    shared ||= name.includes(".mlp.shared_experts.");
    const match = EXPERT.exec(name);
    if (match === null) continue;
    const [layer, expert] = [Number(match[1]), Number(match[3])];
    if (layer >= hiddenLayers) continue;
    const part = PART_OF.get(`${match[2]}.${match[4]}`);
    if (part === undefined) {
      throw refuse(dir, `expert tensor "${name}" is of no known kind`);
    }
    blocks.add(match[2]!);
    const experts = found.get(layer) ?? new Map<number, string[]>();
    const parts = experts.get(expert) ?? new Array<string>(PARTS).fill("");
    parts[part] = name;
    found.set(layer, experts.set(expert, parts));
  }
  if (found.size === 0) throw refuse(dir, "it has no expert tensors");
  if (blocks.size > 1) {
    throw refuse(dir, "it mixes the expert names of two models");
  }
  const mixtral = blocks.has("block_sparse_moe");
  return {
    model: mixtral ? "mixtral" : shared ? "deepseek-v3" : "qwen3-moe",
    ...flatten(found, dir),
  };
}

function flatten(
  found: ReadonlyMap<number, ReadonlyMap<number, readonly string[]>>,
  dir: string,
): Omit<ExpertCatalog, "model"> {
  const modelLayers = [...found.keys()].sort((a, b) => a - b);
  const experts = Math.max(...[...found.values()].map(({ size }) => size));
  const first = found.get(modelLayers[0]!)!.values().next().value!;
  const scaled = first.slice(SCALE).some((name) => name !== "");
  const names: string[] = [];
  for (const layer of modelLayers) {
    for (let expert = 0; expert < experts; expert++) {
      const parts = found.get(layer)!.get(expert);
      if (parts === undefined) {
        throw refuse(
          dir,
          `model layer ${layer} has no expert ${expert}, another layer has ${experts} experts`,
        );
      }
      checkParts(parts, { dir, layer, expert, scaled });
      names.push(...parts);
    }
  }
  return { modelLayers, experts, scaled, names };
}

function checkParts(
  parts: readonly string[],
  at: {
    readonly dir: string;
    readonly layer: number;
    readonly expert: number;
    readonly scaled: boolean;
  },
): void {
  for (const [part, name] of parts.entries()) {
    const wanted = part < SCALE || at.scaled;
    if (wanted !== (name !== "")) {
      throw refuse(
        at.dir,
        `expert ${at.expert} of model layer ${at.layer} has ${
          wanted ? "no" : "a"
        } ${PART_NAMES[part]}, unlike other experts`,
      );
    }
  }
}
