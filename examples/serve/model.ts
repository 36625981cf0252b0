// SPDX-License-Identifier: Apache-2.0
// What of a checkpoint the MoE layers consist of, but for the routed experts.

import type { CheckpointModel, ExpertCheckpoint } from "@eplb/eplb";
import { join } from "@std/path";
import { Tensors } from "./tensors.ts";

/** A SwiGLU network: one expert. */
export interface Expert {
  /** Gate projection, then up projection, [2 × intermediate, hidden]. */
  readonly w13: Float32Array;
  /** Down projection, [hidden, intermediate]. */
  readonly w2: Float32Array;
}

/** One MoE layer, without its routed experts. */
export interface MoeLayer {
  /** Scale of the norm in front of it, [hidden]. */
  readonly norm: Float32Array;
  /** The router, [experts, hidden]. */
  readonly router: Float32Array;
  /** What the model itself adds to the scores when it chooses, [experts]. */
  readonly correction: Float32Array;
  /** The expert that every token goes to, if there is one. */
  readonly shared: Expert | undefined;
}

/** How a model makes scores and weights of its router's logits. */
export interface RoutingRule {
  /** What becomes of the logits. */
  readonly score: "softmax" | "sigmoid";
  /** Whether the weights of a token's experts are made to add up to 1. */
  readonly normalize: boolean;
  /** What the weights are multiplied by. */
  readonly scale: number;
  /** Groups that the experts form. */
  readonly groups: number;
  /** Groups that a token may use. */
  readonly groupsPerToken: number;
}

/** The MoE layers of a model. */
export interface MoeModel {
  /** The family. */
  readonly name: CheckpointModel;
  /** Width of the hidden state. */
  readonly hidden: number;
  /** Logical experts per layer. */
  readonly experts: number;
  /** Experts of each token. */
  readonly topK: number;
  /** What the norms add to the mean square. */
  readonly epsilon: number;
  /** How tokens choose experts. */
  readonly rule: RoutingRule;
  /** The MoE layers, in order. */
  readonly layers: readonly MoeLayer[];
  /** Hidden states of the words, [words, hidden]. */
  readonly embeddings: Float32Array;
}

type Config = Readonly<Record<string, unknown>>;

/** Reads routers, norms, shared experts and embeddings. */
export async function readModel(
  checkpoint: ExpertCheckpoint,
): Promise<MoeModel> {
  const { dir, model: name, experts, layout } = checkpoint;
  const config: Config = JSON.parse(
    await Deno.readTextFile(join(dir, "config.json")),
  );
  using tensors = await Tensors.open(dir);
  const layers: MoeLayer[] = [];
  for (const layer of checkpoint.modelLayers) {
    layers.push(await readLayer(tensors, { name, layer, experts }));
  }
  return {
    name,
    hidden: layout.tensors[0]!.shape[1]!,
    experts,
    topK: numberOf(config, "num_experts_per_tok"),
    epsilon: numberOf(config, "rms_norm_eps"),
    rule: ruleOf(name, config),
    layers,
    embeddings: await tensors.read("model.embed_tokens.weight"),
  };
}

async function readLayer(
  tensors: Tensors,
  { name, layer, experts }: {
    readonly name: CheckpointModel;
    readonly layer: number;
    readonly experts: number;
  },
): Promise<MoeLayer> {
  const prefix = `model.layers.${layer}`;
  const moe = `${prefix}.${name === "mixtral" ? "block_sparse_moe" : "mlp"}`;
  return {
    norm: await tensors.read(`${prefix}.post_attention_layernorm.weight`),
    router: await tensors.read(`${moe}.gate.weight`),
    correction: await tensors.find(`${moe}.gate.e_score_correction_bias`) ??
      new Float32Array(experts),
    shared: await readShared(tensors, `${moe}.shared_experts`),
  };
}

async function readShared(
  tensors: Tensors,
  prefix: string,
): Promise<Expert | undefined> {
  const gate = await tensors.find(`${prefix}.gate_proj.weight`);
  if (gate === undefined) return undefined;
  const up = await tensors.read(`${prefix}.up_proj.weight`);
  const w13 = new Float32Array(gate.length + up.length);
  w13.set(gate);
  w13.set(up, gate.length);
  return { w13, w2: await tensors.read(`${prefix}.down_proj.weight`) };
}

function ruleOf(name: CheckpointModel, config: Config): RoutingRule {
  if (name === "deepseek-v3") {
    return {
      score: "sigmoid",
      normalize: config.norm_topk_prob === true,
      scale: numberOf(config, "routed_scaling_factor"),
      groups: numberOf(config, "n_group"),
      groupsPerToken: numberOf(config, "topk_group"),
    };
  }
  return {
    score: "softmax",
    normalize: name === "mixtral" || config.norm_topk_prob === true,
    scale: 1,
    groups: 1,
    groupsPerToken: 1,
  };
}

function numberOf(config: Config, key: string): number {
  const value = config[key];
  if (typeof value === "number") return value;
  throw new TypeError(
    `Cannot read model: "${key}" in config.json must be a number, it is ${value}`,
  );
}
