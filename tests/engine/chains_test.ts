// SGLang's test of its expert location updater, written again: chains of random
// maps, each chain's end the next one's start, every value compared.

import { assertEquals } from "@std/assert";
import { Placement } from "../../lib/placement.ts";
import { Engine } from "../../lib/engine/engine.ts";
import { Topology } from "../../lib/topology.ts";
import { Ledger } from "./_ledger.ts";

const STEPS = Number(Deno.env.get("EPLB_TEST_STEPS") ?? 200);
const LAYERS = 2;

interface Chain {
  readonly ranks: number;
  readonly nodes: number;
  readonly experts: number;
  readonly slots: number;
  readonly sources: "balanced" | "chunked";
}

async function runChain(chain: Chain): Promise<void> {
  const { ranks, nodes, experts, slots, sources } = chain;
  const shape = { layers: LAYERS, ranks, slotsPerRank: slots / ranks, experts };
  const start = Placement.contiguous(shape);
  await using owned = new AsyncDisposableStack();
  const ledgers = Array.from(
    { length: ranks },
    (_, rank) => owned.use(new Ledger(rank, start)),
  );
  const engine = owned.use(
    await Engine.connect({
      library: (await import("../_native.ts")).library,
      topology: Topology.uniform({ ranks, nodes }),
      placement: start,
      weights: ledgers.map(({ weights }) => weights),
      // One set in every other chain, so that both ways of staging are walked.
      staging: { sets: experts % 2 === 0 ? 2 : 1 },
    }),
  );
  for (let step = 0; step < STEPS; step++) {
    const to = Placement.random({ ...shape, seed: step + 1 });
    await engine.rearrange(to, { sources });
    const wrong = ledgers.reduce((sum, one) => sum + one.wrongValues(to), 0);
    assertEquals(wrong, 0, `step ${step}: ${wrong} wrong values`);
  }
}

const eightRanks: Chain[] = [1, 2, 4].flatMap((nodes) =>
  [2, 5, 20, 256].flatMap((experts) =>
    [8, 16, 256, 288].filter((slots) => experts <= slots).flatMap((slots) =>
      (["balanced", "chunked"] as const).map((sources) => (
        { ranks: 8, nodes, experts, slots, sources }
      ))
    )
  )
);
const manyRanks: Chain[] = (["balanced", "chunked"] as const).map((sources) => (
  { ranks: 32, nodes: 4, experts: 256, slots: 288, sources }
));

Deno.test.each([...eightRanks, ...manyRanks])(
  "rearrange() leaves every value where the map says: $ranks ranks on $nodes nodes, $experts experts in $slots slots, $sources",
  runChain,
);
