// The MoE layers of the three families as their papers and Hugging Face's models
// define them, one number at a time: what the example's arithmetic must come to.

import { Tensors } from "../../examples/serve/tensors.ts";

type Vector = readonly number[];

/** What a family does its own way. */
interface Family {
  readonly moe: string;
  readonly weigh: (logits: Vector, config: Config) => Map<number, number>;
}

interface Config {
  readonly num_experts_per_tok: number;
  readonly rms_norm_eps: number;
  readonly norm_topk_prob: boolean;
  readonly n_group: number;
  readonly topk_group: number;
  readonly routed_scaling_factor: number;
}

const FAMILIES: Readonly<Record<string, Family>> = {
  qwen3_moe: {
    moe: "mlp",
    weigh: (logits, config) => {
      const chosen = top(softmax(logits), config.num_experts_per_tok);
      return config.norm_topk_prob ? normalized(chosen) : chosen;
    },
  },
  mixtral: {
    moe: "block_sparse_moe",
    weigh: (logits, config) =>
      normalized(top(softmax(logits), config.num_experts_per_tok)),
  },
  deepseek_v3: {
    moe: "mlp",
    weigh: (logits, config) => {
      // The correction of the tiny checkpoint is zero, so scores choose and weigh.
      const scores = logits.map((logit) => 1 / (1 + Math.exp(-logit)));
      const size = scores.length / config.n_group;
      const groups = Array.from({ length: config.n_group }, (_, group) => {
        const row = scores.slice(group * size, (group + 1) * size);
        return [...top(row, 2).values()].reduce((a, b) => a + b, 0);
      });
      const open = top(groups, config.topk_group);
      const masked = scores.map((score, expert) =>
        open.has(Math.floor(expert / size)) ? score : -Infinity
      );
      const chosen = normalized(top(masked, config.num_experts_per_tok));
      const factor = config.routed_scaling_factor;
      return new Map([...chosen].map(([e, weight]) => [e, weight * factor]));
    },
  },
};

/** Hidden states of one token after each of the model layers, from the one before the first. */
export async function naiveLayers(
  folder: string,
  input: Vector,
  modelLayers: readonly number[],
): Promise<Vector[]> {
  const config = JSON.parse(await Deno.readTextFile(`${folder}/config.json`));
  const { moe, weigh } = FAMILIES[config.model_type]!;
  using tensors = await Tensors.open(folder);
  const matrix = async (name: string): Promise<Vector[] | undefined> => {
    const values = await tensors.find(name);
    if (values === undefined) return undefined;
    const rows = values.length % 64 === 0 && name.includes("down_proj") ||
        name.endsWith("w2.weight")
      ? 64
      : values.length / 64;
    return Array.from({ length: rows }, (_, row) => {
      const width = values.length / rows;
      return [...values.slice(row * width, (row + 1) * width)];
    });
  };
  const network = async (
    names: Vector3,
  ): Promise<((x: Vector) => Vector) | undefined> => {
    const [gate, up, down] = await Promise.all(names.map(matrix));
    if (gate === undefined) return undefined;
    return (x) => {
      const a = times(gate, x);
      const b = times(up!, x);
      return times(down!, a.map((v, i) => v / (1 + Math.exp(-v)) * b[i]!));
    };
  };
  let hidden = input;
  const states: Vector[] = [];
  for (const layer of modelLayers) {
    const prefix = `model.layers.${layer}`;
    const norm = await tensors.read(
      `${prefix}.post_attention_layernorm.weight`,
    );
    const square = hidden.reduce((a, b) => a + b * b, 0) / hidden.length;
    const x = hidden.map((v, i) =>
      v / Math.sqrt(square + config.rms_norm_eps) * norm[i]!
    );
    const router = (await matrix(`${prefix}.${moe}.gate.weight`))!;
    let result = hidden;
    for (const [expert, weight] of weigh(times(router, x), config)) {
      const name = `${prefix}.${moe}.experts.${expert}`;
      const run = await network(
        moe === "mlp"
          ? [
            `${name}.gate_proj.weight`,
            `${name}.up_proj.weight`,
            `${name}.down_proj.weight`,
          ]
          : [`${name}.w1.weight`, `${name}.w3.weight`, `${name}.w2.weight`],
      );
      const output = run!(x);
      result = result.map((v, i) => v + weight * output[i]!);
    }
    const name = `${prefix}.mlp.shared_experts`;
    const shared = await network([
      `${name}.gate_proj.weight`,
      `${name}.up_proj.weight`,
      `${name}.down_proj.weight`,
    ]);
    const extra = shared?.(x);
    hidden = result.map((v, i) => v + (extra?.[i] ?? 0));
    states.push(hidden);
  }
  return states;
}

type Vector3 = readonly [gate: string, up: string, down: string];

function times(matrix: readonly Vector[], x: Vector): Vector {
  return matrix.map((row) => row.reduce((sum, v, i) => sum + v * x[i]!, 0));
}

function softmax(logits: Vector): Vector {
  const powers = logits.map(Math.exp);
  const sum = powers.reduce((a, b) => a + b, 0);
  return powers.map((power) => power / sum);
}

/** The largest values by index. */
function top(values: Vector, count: number): Map<number, number> {
  const entries = [...values.entries()].sort((a, b) => b[1] - a[1]);
  return new Map(entries.slice(0, count));
}

function normalized(chosen: Map<number, number>): Map<number, number> {
  const sum = [...chosen.values()].reduce((a, b) => a + b, 0);
  return new Map([...chosen].map(([index, value]) => [index, value / sum]));
}
