import { assertEquals } from "@std/assert";
import fc from "fast-check";
import { GatherTable } from "../../lib/cluster/gathers.ts";
import type { GatherMode } from "../../lib/cluster/protocol.ts";

const NOTHING = new Uint8Array();

Deno.test("GatherTable puts the k-th post of every rank into the k-th gather", () => {
  const post = fc.record({
    rank: fc.nat(3),
    mode: fc.constantFrom<GatherMode>("all", "survivors"),
    name: fc.constantFrom("a", "b"),
  });
  fc.assert(fc.property(fc.array(post, { maxLength: 60 }), (posts) => {
    const table = new GatherTable();
    const generations = new Map<unknown, string>();
    const counts = new Map<string, number>();
    for (const [id, { rank, mode, name }] of posts.entries()) {
      const count = `${rank} ${mode} ${name}`;
      const generation = counts.get(count) ?? 0;
      counts.set(count, generation + 1);
      const gather = table.add(rank, { id, mode, name, payload: NOTHING });
      const expected = `${mode} ${name} ${generation}`;
      assertEquals(generations.get(gather) ?? expected, expected);
      generations.set(gather, expected);
      assertEquals(table.find(rank, id) ?? gather, gather);
      if (gather.posts.size === 4) table.close(gather);
    }
    assertEquals(new Set(generations.values()).size, generations.size);
  }));
});

Deno.test("GatherTable.close() forgets a gather, and its name with the last", () => {
  const table = new GatherTable();
  const post = { mode: "all", name: "a", payload: NOTHING } as const;
  const first = table.add(0, { ...post, id: 0 });
  const second = table.add(0, { ...post, id: 1 });
  assertEquals(table.oldest("all", "a"), first);
  table.close(first);
  assertEquals(table.list(), [second]);
  assertEquals(table.find(0, 0), undefined);
  assertEquals(table.find(0, 1), second);
  table.close(second);
  assertEquals(table.list(), []);
  assertEquals(table.oldest("all", "a"), undefined);
});
