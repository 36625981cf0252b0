import type { Dtype } from "../../lib/weights/dtype.ts";
import {
  type SafetensorsSpec,
  writeSafetensors,
} from "../../lib/weights/safetensors.ts";
import { contentOf, type TemporaryFolder } from "./_files.ts";

export const INDEX = "model.safetensors.index.json";

/** The tensors of one expert in DeepSeek's FP8 layout, reduced. */
export function expertSpecs(
  layer: number,
  expert: number,
  options: { readonly scales?: boolean; readonly dtype?: Dtype } = {},
): SafetensorsSpec[] {
  const { scales = false, dtype = "F8_E4M3" } = options;
  const prefix = `model.layers.${layer}.mlp.experts.${expert}`;
  const shapes = { gate: [6, 4], up: [6, 4], down: [4, 6] };
  const blocks = { gate: [3, 2], up: [3, 2], down: [2, 3] };
  return (["gate", "up", "down"] as const).flatMap((part) => {
    const name = `${prefix}.${part}_proj.weight`;
    const weight = { name, dtype, shape: shapes[part] };
    const scale: SafetensorsSpec = {
      name: `${name}_scale_inv`,
      dtype: "F32",
      shape: blocks[part],
    };
    return scales ? [weight, scale] : [weight];
  });
}

/** Experts 0 and 1 of model layers 3 and 4. */
export function modelSpecs(
  options: { readonly scales?: boolean } = {},
): SafetensorsSpec[] {
  return [3, 4].flatMap((layer) =>
    [0, 1].flatMap((expert) => expertSpecs(layer, expert, options))
  );
}

export async function writeShard(
  path: string,
  specs: readonly SafetensorsSpec[],
): Promise<void> {
  await writeSafetensors(path, specs, { data: (spec) => [contentOf(spec)] });
}

/** Writes an index that places all tensors in one shard, but for those in `places`. */
export async function writeIndex(
  folder: TemporaryFolder,
  options: {
    readonly specs: readonly SafetensorsSpec[];
    readonly shard: unknown;
    readonly places?: Readonly<Record<string, string>>;
  },
): Promise<void> {
  const { specs, shard, places } = options;
  const map = Object.fromEntries(specs.map(({ name }) => [name, shard]));
  await Deno.writeTextFile(
    folder.file(INDEX),
    JSON.stringify({ metadata: {}, weight_map: { ...map, ...places } }),
  );
}

export async function writeConfig(
  folder: TemporaryFolder,
  config: unknown,
): Promise<void> {
  await Deno.writeTextFile(folder.file("config.json"), JSON.stringify(config));
}
