import { deepseekPolicy } from "../lib/policies/deepseek.ts";
import { SeededRandom } from "../lib/random.ts";

/** A skewed load like those of real models: few experts take many tokens. */
function skewedLoad(layers: number, experts: number): Float64Array {
  const random = new SeededRandom(1);
  return Float64Array.from(
    { length: layers * experts },
    () => Math.floor(100 / (0.001 + random.uint32() / 2 ** 32)),
  );
}

const SHAPES = [
  { name: "58 x 256 to 288 on 32 ranks", layers: 58, experts: 256, ranks: 32 },
  { name: "94 x 128 to 144 on 16 ranks", layers: 94, experts: 128, ranks: 16 },
] as const;

for (const { name, layers, experts, ranks } of SHAPES) {
  const load = skewedLoad(layers, experts);
  const sizes = { experts, ranks, slotsPerRank: 9 };
  Deno.bench("deepseek, hierarchical", { group: name }, () => {
    deepseekPolicy(load, { ...sizes, nodes: 4, groups: 8 });
  });
  Deno.bench("deepseek, global", { group: name }, () => {
    deepseekPolicy(load, sizes);
  });
}
