import { assertRejects } from "@std/assert";
import { join } from "@std/path";
import { openCheckpoint } from "../../lib/weights/checkpoint.ts";
import type { SafetensorsSpec } from "../../lib/weights/safetensors.ts";
import {
  expertSpecs,
  INDEX,
  modelSpecs,
  writeConfig,
  writeIndex,
  writeShard,
} from "./_checkpoints.ts";
import { TemporaryFolder } from "./_files.ts";

Deno.test("openCheckpoint() refuses a folder without a checkpoint", async () => {
  await using folder = new TemporaryFolder();
  for (const dir of [folder.path, folder.file("missing")]) {
    await assertRejects(
      () => openCheckpoint(dir),
      Deno.errors.NotFound,
      `Cannot open checkpoint "${dir}": there is no file "model.safetensors"`,
    );
  }
});

Deno.test("openCheckpoint() refuses shards outside of the folder", async () => {
  await using folder = new TemporaryFolder();
  const specs = modelSpecs();
  await Deno.mkdir(folder.file("in"));
  await writeShard(folder.file("out.safetensors"), specs);
  await Deno.symlink("../out.safetensors", folder.file("in/link"));
  const shards: [string, string][] = [
    [folder.file("out.safetensors"), "lies outside of the folder"],
    ["../out.safetensors", "lies outside of the folder"],
    ["x/../../out.safetensors", "lies outside of the folder"],
    ["..", "lies outside of the folder"],
    [
      "link",
      `is a link to "${await Deno.realPath(folder.file("out.safetensors"))}"`,
    ],
  ];
  const dir = folder.file("in");
  for (const [shard, state] of shards) {
    const map = Object.fromEntries(specs.map(({ name }) => [name, shard]));
    await Deno.writeTextFile(
      join(dir, INDEX),
      JSON.stringify({ weight_map: map }),
    );
    await assertRejects(
      () => openCheckpoint(dir),
      RangeError,
      `Cannot open checkpoint "${dir}": shard "${shard}" ${state}`,
    );
  }
});

Deno.test("openCheckpoint() refuses an index that does not fit the shards", async () => {
  await using folder = new TemporaryFolder();
  const specs = modelSpecs();
  await writeShard(folder.file("a.safetensors"), specs.slice(0, 6));
  await writeShard(folder.file("b.safetensors"), specs.slice(6));
  await writeIndex(folder, { specs, shard: "a.safetensors" });
  await assertRejects(
    () => openCheckpoint(folder.path),
    RangeError,
    `the index places tensor "${
      specs[6]!.name
    }" in shard "a.safetensors", which does not have it`,
  );
  await writeIndex(folder, {
    specs,
    shard: "a.safetensors",
    places: { [specs[11]!.name]: "c.safetensors" },
  });
  await writeShard(folder.file("a.safetensors"), specs.slice(0, 11));
  await assertRejects(
    () => openCheckpoint(folder.path),
    Deno.errors.NotFound,
    `Cannot open checkpoint "${folder.path}": there is no file "c.safetensors"`,
  );
});

Deno.test("openCheckpoint() refuses malformed files", async () => {
  await using folder = new TemporaryFolder();
  const index = folder.file(INDEX);
  const cases: [string, string, string][] = [
    [INDEX, "{", `Cannot read "${index}": it is not JSON`],
    [INDEX, "[]", `Cannot read "${index}": it is not a JSON object`],
    [INDEX, "{}", `Cannot read "${index}": it has no "weight_map"`],
    [
      INDEX,
      '{"weight_map":{"a":1}}',
      `Cannot read "${index}": the shard of tensor "a" is not a string`,
    ],
    ["config.json", "null", 'config.json": it is not a JSON object'],
    ["model.safetensors", "{}", "2 bytes are too few for a header length"],
  ];
  for (const [name, text, message] of cases) {
    await Deno.writeTextFile(folder.file(name), text);
    await assertRejects(
      () => openCheckpoint(folder.path),
      SyntaxError,
      message,
    );
    await Deno.remove(folder.file(name));
  }
});

Deno.test("openCheckpoint() refuses experts that are incomplete or unlike", async () => {
  const all = modelSpecs();
  const scaled = modelSpecs({ scales: true });
  const gate = "model.layers.3.mlp.experts.0.gate_proj.weight";
  const other: SafetensorsSpec = { name: "norm", dtype: "BF16", shape: [4] };
  const without = (part: string): SafetensorsSpec[] =>
    all.filter(({ name }) => !name.includes(part));
  const changed = (
    part: string,
    change: Partial<SafetensorsSpec>,
  ): SafetensorsSpec[] =>
    all.map((spec) => spec.name.includes(part) ? { ...spec, ...change } : spec);
  const cases: [SafetensorsSpec[], string][] = [
    [[other], "it has no expert tensors"],
    [
      without("layers.4.mlp.experts.1."),
      "model layer 4 has no expert 1, another layer has 2 experts",
    ],
    [
      without("layers.3.mlp.experts.0."),
      "model layer 3 has no expert 0, another layer has 2 experts",
    ],
    [
      without("layers.4.mlp.experts.0.up_proj"),
      "expert 0 of model layer 4 has no up weight, unlike other experts",
    ],
    [
      scaled.filter(({ name }) =>
        !name.endsWith("layers.4.mlp.experts.1.down_proj.weight_scale_inv")
      ),
      "expert 1 of model layer 4 has no down scale, unlike other experts",
    ],
    [
      [...all, ...expertSpecs(4, 2, { scales: true }), ...expertSpecs(3, 2)],
      "expert 2 of model layer 4 has a gate scale, unlike other experts",
    ],
    [
      [...all, {
        name: "model.layers.3.mlp.experts.0.gate_proj.weight_packed",
        dtype: "I32",
        shape: [2],
      }],
      'expert tensor "model.layers.3.mlp.experts.0.gate_proj.weight_packed" is of no known kind',
    ],
    [
      [...all, {
        name: "model.layers.5.block_sparse_moe.experts.0.w1.weight",
        dtype: "U8",
        shape: [2],
      }],
      "it mixes the expert names of two models",
    ],
    [
      changed("layers.4.mlp.experts.1.gate_proj", { dtype: "F8_E5M2" }),
      `tensor "model.layers.4.mlp.experts.1.gate_proj.weight" (F8_E5M2 [6, 4]) is unlike "${gate}" (F8_E4M3 [6, 4])`,
    ],
    [
      changed("layers.3.mlp.experts.1.down_proj", { shape: [6, 4] }),
      'tensor "model.layers.3.mlp.experts.1.down_proj.weight" (F8_E4M3 [6, 4]) is unlike "model.layers.3.mlp.experts.0.down_proj.weight" (F8_E4M3 [4, 6])',
    ],
    [
      changed("up_proj", { shape: [4, 6] }),
      `gate "${gate}" (F8_E4M3 [6, 4]) is unlike up "model.layers.3.mlp.experts.0.up_proj.weight" (F8_E4M3 [4, 6])`,
    ],
    [
      changed("down_proj", { shape: [6, 4] }),
      `gate "${gate}" (F8_E4M3 [6, 4]) does not fit down "model.layers.3.mlp.experts.0.down_proj.weight" (F8_E4M3 [6, 4])`,
    ],
    [
      changed("_proj", { shape: [24] }),
      `tensor "${gate}" (F8_E4M3 [24]) is not a matrix`,
    ],
  ];
  await using folder = new TemporaryFolder();
  for (const [specs, state] of cases) {
    await writeShard(folder.file("model.safetensors"), specs);
    await assertRejects(
      () => openCheckpoint(folder.path),
      RangeError,
      `Cannot open checkpoint "${folder.path}": ${state}`,
    );
  }
});

Deno.test("openCheckpoint() refuses another number of experts than config.json has", async () => {
  await using folder = new TemporaryFolder();
  await writeShard(folder.file("model.safetensors"), modelSpecs());
  for (const key of ["n_routed_experts", "num_experts", "num_local_experts"]) {
    await writeConfig(folder, { [key]: 3 });
    await assertRejects(
      () => openCheckpoint(folder.path),
      RangeError,
      `Cannot open checkpoint "${folder.path}": "config.json" says 3 experts, the files have 2`,
    );
  }
});
