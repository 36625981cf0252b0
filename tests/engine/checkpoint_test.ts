import { assertEquals, assertRejects } from "@std/assert";
import { join } from "@std/path";
import { ExpertWeights } from "../../lib/native/weights.ts";
import { Placement } from "../../lib/placement.ts";
import { loadExperts, saveExperts } from "../../lib/engine/checkpoint.ts";
import { Engine } from "../../lib/engine/engine.ts";
import { Topology } from "../../lib/topology.ts";
import { openCheckpoint } from "../../lib/weights/checkpoint.ts";
import { library } from "../_native.ts";

const CHECKPOINTS = new URL("../fixtures/checkpoints/", import.meta.url);
const RANKS = 4;

/** Tensors of a safetensors file, read by the format's definition alone. */
async function readTensors(
  path: string | URL,
): Promise<Map<string, Uint8Array>> {
  const bytes = await Deno.readFile(path);
  const length = Number(new DataView(bytes.buffer).getBigUint64(0, true));
  const header: Record<string, { data_offsets: [number, number] }> = JSON.parse(
    new TextDecoder().decode(bytes.subarray(8, 8 + length)),
  );
  return new Map(
    Object.entries(header).filter(([name]) => name !== "__metadata__").map((
      [name, { data_offsets: [begin, end] }],
    ) => [name, bytes.subarray(8 + length + begin, 8 + length + end)]),
  );
}

async function readAll(folder: URL): Promise<Map<string, Uint8Array>> {
  const all = new Map<string, Uint8Array>();
  for await (const { name } of Deno.readDir(folder)) {
    if (!name.endsWith(".safetensors")) continue;
    for (const entry of await readTensors(new URL(name, folder))) {
      all.set(...entry);
    }
  }
  return all;
}

/** What the checkpoint's own names are: gate, up and down of one expert. */
function namesOf(model: string, layer: number, expert: number): string[] {
  return model === "mixtral-tiny"
    ? ["w1", "w3", "w2"].map((part) =>
      `model.layers.${layer}.block_sparse_moe.experts.${expert}.${part}.weight`
    )
    : ["gate", "up", "down"].map((part) =>
      `model.layers.${layer}.mlp.experts.${expert}.${part}_proj.weight`
    );
}

for (
  const { model, firstLayer, experts } of [
    { model: "deepseek-v3-tiny", firstLayer: 1, experts: 16 },
    { model: "qwen3-moe-tiny", firstLayer: 0, experts: 16 },
    { model: "mixtral-tiny", firstLayer: 0, experts: 8 },
  ]
) {
  Deno.test(`saveExperts() after ten rearrangements of ${model} writes the checkpoint's own bytes`, async () => {
    const folder = new URL(`${model}/`, CHECKPOINTS);
    const original = await readAll(folder);
    using checkpoint = await openCheckpoint(folder.pathname);
    const { layers, layout } = checkpoint;
    assertEquals([layers, checkpoint.experts], [2, experts]);
    const slotsPerRank = experts / RANKS + 2;
    const shape = { layers, ranks: RANKS, slotsPerRank, experts };
    const placement = Placement.contiguous(shape);
    await using owned = new AsyncDisposableStack();
    const weights: ExpertWeights[] = [];
    for (let rank = 0; rank < RANKS; rank++) {
      const size = { layout, layers, slots: slotsPerRank };
      weights.push(owned.use(await ExpertWeights.allocate(library, size)));
      await loadExperts(checkpoint, weights[rank]!, { placement, rank });
    }
    const engine = owned.use(
      await Engine.connect({
        library,
        placement,
        weights,
        topology: Topology.uniform({ ranks: RANKS, nodes: 2 }),
      }),
    );
    for (let seed = 1; seed <= 10; seed++) {
      await engine.rearrange(Placement.random({ ...shape, seed }));
    }
    const end = Placement.random({ ...shape, seed: 10 });
    const target = await Deno.makeTempDir();
    owned.defer(() => Deno.remove(target, { recursive: true }));
    for (let rank = 0; rank < RANKS; rank++) {
      const path = join(target, `${rank}.safetensors`);
      await saveExperts(path, weights[rank]!, { placement: end, rank });
      const saved = await readTensors(path);
      assertEquals(saved.size, layers * slotsPerRank * 2);
      for (let layer = 0; layer < layers; layer++) {
        for (let slot = 0; slot < slotsPerRank; slot++) {
          const physical = layer * end.slots + rank * slotsPerRank + slot;
          const expert = end.physicalToLogical[physical]!;
          const [gate, up, down] = namesOf(model, firstLayer + layer, expert)
            .map((name) => original.get(name)!);
          const w13 = saved.get(`layers.${layer}.slots.${slot}.w13`)!;
          const half = w13.length / 2;
          assertEquals(w13.subarray(0, half), gate);
          assertEquals(w13.subarray(half), up);
          assertEquals(saved.get(`layers.${layer}.slots.${slot}.w2`), down);
        }
      }
    }
  });
}

Deno.test("loadExperts() refuses a placement of another size", async () => {
  const folder = new URL("mixtral-tiny/", CHECKPOINTS);
  using checkpoint = await openCheckpoint(folder.pathname);
  const { layers, layout } = checkpoint;
  using weights = await ExpertWeights.allocate(library, {
    layout,
    layers,
    slots: 9,
  });
  const shape = { layers, ranks: 1, slotsPerRank: 9, experts: 9 };
  const placement = Placement.contiguous(shape);
  await assertRejects(
    () => loadExperts(checkpoint, weights, { placement, rank: 0 }),
    RangeError,
    "Cannot load experts: experts do not agree: 8 and 9",
  );
});
