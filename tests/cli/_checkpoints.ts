// The checkpoints of the fixtures, and what --save has written, read by the
// definition of the safetensors format alone.

import { assertEquals } from "@std/assert";
import { fromFileUrl, join } from "@std/path";
import type { Rows } from "./_maps.ts";

/** A checkpoint of the fixtures. */
export interface Fixture {
  readonly name: string;
  readonly folder: string;
  readonly experts: number;
  readonly layers: number;
  /** Bytes of one expert: three projections of 64 × 32 bfloat16. */
  readonly expertBytes: number;
  /** Names of the gate, up and down projections of one expert. */
  readonly tensors: (layer: number, expert: number) => string[];
}

function fixture(
  name: string,
  rest: Pick<Fixture, "experts" | "tensors">,
): Fixture {
  const url = new URL(`../fixtures/checkpoints/${name}`, import.meta.url);
  const folder = fromFileUrl(url);
  return { name, folder, layers: 2, expertBytes: 3 * 64 * 32 * 2, ...rest };
}

const PROJECTIONS = ["gate", "up", "down"];

/** One checkpoint of each family. */
export const FIXTURES: readonly Fixture[] = [
  fixture("deepseek-v3-tiny", {
    experts: 16,
    // Its first layer is dense.
    tensors: (layer, expert) =>
      PROJECTIONS.map((part) =>
        `model.layers.${layer + 1}.mlp.experts.${expert}.${part}_proj.weight`
      ),
  }),
  fixture("qwen3-moe-tiny", {
    experts: 16,
    tensors: (layer, expert) =>
      PROJECTIONS.map((part) =>
        `model.layers.${layer}.mlp.experts.${expert}.${part}_proj.weight`
      ),
  }),
  fixture("mixtral-tiny", {
    experts: 8,
    tensors: (layer, expert) =>
      ["w1", "w3", "w2"].map((part) =>
        `model.layers.${layer}.block_sparse_moe.experts.${expert}.${part}.weight`
      ),
  }),
];

type Tensors = Map<string, Uint8Array>;

async function readTensors(path: string): Promise<Tensors> {
  const bytes = await Deno.readFile(path);
  const length = Number(new DataView(bytes.buffer).getBigUint64(0, true));
  const header: Record<string, { data_offsets: [number, number] }> = JSON.parse(
    new TextDecoder().decode(bytes.subarray(8, 8 + length)),
  );
  delete header["__metadata__"];
  return new Map(
    Object.entries(header).map(([name, { data_offsets: [begin, end] }]) => {
      return [name, bytes.subarray(8 + length + begin, 8 + length + end)];
    }),
  );
}

async function readCheckpoint(folder: string): Promise<Tensors> {
  const all: Tensors = new Map();
  for await (const { name } of Deno.readDir(folder)) {
    if (!name.endsWith(".safetensors")) continue;
    for (const entry of await readTensors(join(folder, name))) {
      all.set(...entry);
    }
  }
  return all;
}

/** Fails unless the folder holds, bit for bit, the checkpoint's experts as the map says. */
export async function assertSaved(
  folder: string,
  options: {
    readonly fixture: Fixture;
    readonly map: Rows;
    readonly ranks: number;
  },
): Promise<void> {
  const { fixture, map, ranks } = options;
  const original = await readCheckpoint(fixture.folder);
  const entries = await Array.fromAsync(Deno.readDir(folder));
  const names = entries.map(({ name }) => name).sort();
  const files = Array.from(
    { length: ranks },
    (_, rank) => `rank-0000${rank}.safetensors`,
  );
  assertEquals(names, ["placement.json", ...files]);
  const placement = await Deno.readTextFile(join(folder, "placement.json"));
  assertEquals(JSON.parse(placement), { physical_to_logical_map: map });
  for (const [rank, file] of files.entries()) {
    const saved = await readTensors(join(folder, file));
    const perRank = map[0]!.length / ranks;
    let filled = 0;
    map.forEach((row, layer) =>
      row.slice(rank * perRank, (rank + 1) * perRank)
        .forEach((expert, slot) => {
          if (expert === -1) return;
          filled++;
          const [gate, up, down] = fixture.tensors(layer, expert)
            .map((name) => original.get(name)!);
          const w13 = saved.get(`layers.${layer}.slots.${slot}.w13`)!;
          assertEquals(w13.subarray(0, gate!.length), gate);
          assertEquals(w13.subarray(gate!.length), up);
          assertEquals(saved.get(`layers.${layer}.slots.${slot}.w2`), down);
        })
    );
    assertEquals(saved.size, 2 * filled);
  }
}
