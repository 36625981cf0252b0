import {
  assertEquals,
  assertMatch,
  assertNotEquals,
  assertRejects,
} from "@std/assert";
import { fromFileUrl, join } from "@std/path";
import {
  type ExpertCheckpoint,
  openCheckpoint,
} from "../../lib/weights/checkpoint.ts";
import type { SafetensorsSpec } from "../../lib/weights/safetensors.ts";
import { modelShape } from "../../lib/weights/shapes.ts";
import { modelSpecs, writeConfig, writeShard } from "./_checkpoints.ts";
import { contentOf, naiveRead, sha256, TemporaryFolder } from "./_files.ts";

const FIXTURES = fromFileUrl(
  new URL("../fixtures/checkpoints", import.meta.url),
);

/** Real layouts; digests computed with another safetensors reader. */
const REAL = [
  {
    name: "deepseek-v3-tiny",
    model: "deepseek-v3",
    modelLayers: [1, 2],
    experts: 16,
    block: "mlp",
    projections: ["gate_proj", "up_proj", "down_proj"],
    sample: {
      expert: 15,
      w13: "67953141d53a0b749aa75910e5fc972f696154b2e1dcf72b78b3f306f1dcdda0",
      w2: "5cc7598c909c18aef559526870b6a80c61fde00e8059b0be8afefffb5d21f98c",
    },
  },
  {
    name: "qwen3-moe-tiny",
    model: "qwen3-moe",
    modelLayers: [0, 1],
    experts: 16,
    block: "mlp",
    projections: ["gate_proj", "up_proj", "down_proj"],
    sample: {
      expert: 7,
      w13: "a98eeb9468069559f6d943a561a4185441dc763db389956889b2d5c37e84e39e",
      w2: "20a85166a4f539013bdc44897cdde050e163ac12c98a6f92374291814f54252f",
    },
  },
  {
    name: "mixtral-tiny",
    model: "mixtral",
    modelLayers: [0, 1],
    experts: 8,
    block: "block_sparse_moe",
    projections: ["w1", "w3", "w2"],
    sample: {
      expert: 5,
      w13: "6152a07b2ce61f2386b538c588f9185e3f2cb7fce7e8cec831d2742352cf7ed4",
      w2: "5673447a90bc545100438a90914886cc9c990093be579b70b30762b1a647f252",
    },
  },
] as const;

/** One tensor of one expert, in new memory. */
async function readExpert(
  checkpoint: ExpertCheckpoint,
  at: readonly [layer: number, expert: number],
  tensor: string,
): Promise<Uint8Array<ArrayBuffer>> {
  const { bytes } = checkpoint.layout.tensors
    .find(({ name }) => name === tensor)!;
  const target = new Uint8Array(bytes);
  await checkpoint.readExpert(...at, { tensor, target });
  return target;
}

for (const real of REAL) {
  const dir = join(FIXTURES, real.name);

  Deno.test(`openCheckpoint() knows the experts of ${real.name}`, async () => {
    using checkpoint = await openCheckpoint(dir);
    assertEquals(checkpoint.dir, dir);
    assertEquals(checkpoint.model, real.model);
    assertEquals(checkpoint.modelLayers, real.modelLayers);
    assertEquals(checkpoint.layers, 2);
    assertEquals(checkpoint.experts, real.experts);
    // hidden_size 64 and moe_intermediate_size 32 in the three config.json
    assertEquals(
      checkpoint.layout.tensors.map(({ name, dtype, shape, bytes }) => [
        name,
        dtype,
        shape,
        bytes,
      ]),
      [
        ["w13", "BF16", [64, 64], 8192],
        ["w2", "BF16", [64, 32], 4096],
      ],
    );
  });

  Deno.test(`ExpertCheckpoint.readExpert() reads every expert of ${real.name}`, async () => {
    const tensors = new Map<string, Uint8Array>();
    for await (const { name } of Deno.readDir(dir)) {
      if (!name.endsWith(".safetensors")) continue;
      const bytes = await Deno.readFile(join(dir, name));
      for (const entry of naiveRead(bytes)) tensors.set(...entry);
    }
    using checkpoint = await openCheckpoint(dir);
    for (const [layer, modelLayer] of real.modelLayers.entries()) {
      for (let expert = 0; expert < real.experts; expert++) {
        const [gate, up, down] = real.projections.map((projection) =>
          tensors.get(
            `model.layers.${modelLayer}.${real.block}.experts.${expert}.${projection}.weight`,
          )!
        );
        assertEquals(
          await readExpert(checkpoint, [layer, expert], "w13"),
          new Uint8Array([...gate!, ...up!]),
        );
        assertEquals(
          await readExpert(checkpoint, [layer, expert], "w2"),
          new Uint8Array(down!),
        );
      }
    }
  });

  Deno.test(`ExpertCheckpoint.readExpert() agrees with another reader on ${real.name}`, async () => {
    using checkpoint = await openCheckpoint(dir);
    const { expert, w13, w2 } = real.sample;
    const digests = [];
    for (const tensor of ["w13", "w2"]) {
      digests.push(
        await sha256(await readExpert(checkpoint, [1, expert], tensor)),
      );
    }
    assertEquals(digests, [w13, w2]);
  });
}

Deno.test("ExpertCheckpoint.readExpert() joins the scales of gate and up", async () => {
  await using folder = new TemporaryFolder();
  const specs = modelSpecs({ scales: true });
  await writeShard(folder.file("model.safetensors"), specs);
  using checkpoint = await openCheckpoint(folder.path);
  assertEquals(
    checkpoint.layout.tensors.map(({ name, dtype, shape }) => [
      name,
      dtype,
      shape,
    ]),
    [
      ["w13", "F8_E4M3", [12, 4]],
      ["w2", "F8_E4M3", [4, 6]],
      ["w13_scale", "F32", [6, 2]],
      ["w2_scale", "F32", [2, 3]],
    ],
  );
  const content = (layer: number, name: string): Uint8Array<ArrayBuffer> =>
    contentOf(
      specs.find((spec) =>
        spec.name === `model.layers.${layer}.mlp.experts.1.${name}`
      )!,
    );
  assertEquals(
    await readExpert(checkpoint, [1, 1], "w13_scale"),
    new Uint8Array([
      ...content(4, "gate_proj.weight_scale_inv"),
      ...content(4, "up_proj.weight_scale_inv"),
    ]),
  );
  const target = new Uint8Array(24);
  await checkpoint.readExpert(0, 1, { tensor: 3, target });
  assertEquals(target, content(3, "down_proj.weight_scale_inv"));
  assertNotEquals(target, content(4, "down_proj.weight_scale_inv"));
});

Deno.test("openCheckpoint() finds the layout that modelShape() has", async () => {
  await using folder = new TemporaryFolder();
  const { layout } = modelShape("deepseek-r1", { scale: 16 });
  const specs = ["gate", "up", "down"].flatMap((part): SafetensorsSpec[] => {
    const name = `model.layers.3.mlp.experts.0.${part}_proj.weight`;
    const turn = <T>(shape: T[]): T[] =>
      part === "down" ? shape.reverse() : shape;
    return [
      { name, dtype: "F8_E4M3", shape: turn([2048 / 16, 7168 / 16]) },
      { name: `${name}_scale_inv`, dtype: "F32", shape: turn([1, 4]) },
    ];
  });
  await writeShard(folder.file("model.safetensors"), specs);
  using checkpoint = await openCheckpoint(folder.path);
  assertEquals(checkpoint.layout.tensors, layout.tensors);
});

Deno.test("openCheckpoint() leaves out layers behind num_hidden_layers", async () => {
  await using folder = new TemporaryFolder();
  await writeShard(folder.file("model.safetensors"), modelSpecs());
  {
    using checkpoint = await openCheckpoint(folder.path);
    assertEquals(checkpoint.modelLayers, [3, 4]);
  }
  await writeConfig(folder, { num_hidden_layers: 4, n_routed_experts: 2 });
  using checkpoint = await openCheckpoint(folder.path);
  assertEquals(checkpoint.modelLayers, [3]);
});

Deno.test("openCheckpoint() follows links inside the folder", async () => {
  await using folder = new TemporaryFolder();
  await Deno.mkdir(folder.file("parts"));
  await writeShard(folder.file("parts/one"), modelSpecs());
  await Deno.symlink("parts/one", folder.file("model.safetensors"));
  using checkpoint = await openCheckpoint(folder.path);
  assertEquals(checkpoint.experts, 2);
});

Deno.test("openCheckpoint() follows a snapshot's links to its cache's blobs", async () => {
  await using folder = new TemporaryFolder();
  const snapshot = folder.file("models--a--b/snapshots/0123abcd");
  await Deno.mkdir(snapshot, { recursive: true });
  await Deno.mkdir(folder.file("models--a--b/blobs"));
  await writeShard(folder.file("models--a--b/blobs/ffee"), modelSpecs());
  await Deno.symlink("../../blobs/ffee", join(snapshot, "model.safetensors"));
  {
    using checkpoint = await openCheckpoint(snapshot);
    assertEquals(checkpoint.experts, 2);
  }
  await Deno.rename(
    folder.file("models--a--b/blobs/ffee"),
    folder.file("models--a--b/elsewhere"),
  );
  await Deno.remove(join(snapshot, "model.safetensors"));
  await Deno.symlink("../../elsewhere", join(snapshot, "model.safetensors"));
  const error = await assertRejects(() => openCheckpoint(snapshot), RangeError);
  assertMatch(error.message, /shard "model.safetensors" is a link to ".*else/);
});

Deno.test("ExpertCheckpoint.readExpert() refuses what is not there", async () => {
  await using folder = new TemporaryFolder();
  await writeShard(folder.file("model.safetensors"), modelSpecs());
  using checkpoint = await openCheckpoint(folder.path);
  const target = new Uint8Array(48);
  const cases: [number, number, string | number, number, string][] = [
    [2, 0, "w13", 48, "layer must be an integer from 0 to 1"],
    [0, -1, "w13", 48, "expert must be an integer from 0 to 1"],
    [0, 0, "w3", 48, 'there is no tensor "w3" among w13, w2'],
    [0, 0, 2, 48, "there is no tensor 2 among w13, w2"],
    [0, 0, "w13", 47, 'tensor "w13" has 48 bytes, the target has 47'],
    [0, 0, 1, 48, 'tensor "w2" has 24 bytes, the target has 48'],
  ];
  for (const [layer, expert, tensor, length, message] of cases) {
    await assertRejects(
      () =>
        checkpoint.readExpert(layer, expert, {
          tensor,
          target: target.subarray(0, length),
        }),
      RangeError,
      `Cannot read expert: ${message}`,
    );
  }
});

Deno.test("ExpertCheckpoint.close() may be called again and ends reading", async () => {
  const checkpoint = await openCheckpoint(join(FIXTURES, "mixtral-tiny"));
  checkpoint.close();
  checkpoint.close();
  await assertRejects(
    () => readExpert(checkpoint, [0, 0], "w2"),
    TypeError,
    "the reader is closed",
  );
});
