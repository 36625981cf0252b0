import { assert, assertEquals, assertGreater } from "@std/assert";
import type { Placement } from "../../lib/placement.ts";
import { SeededRandom } from "../../lib/random.ts";
import type { EplbState } from "../../lib/runtime/state.ts";
import { LAYOUT } from "../engine/_ledger.ts";
import { ofType, serve, ServedLedger, servePasses, SMALL } from "./_serving.ts";

const { expertBytes } = LAYOUT;
const { layers: LAYERS, ranks: RANKS, slotsPerRank: SLOTS } = SMALL;

/** Experts that each rank gets into other slots, once for each layer, [ranks]. */
function gathered(from: Placement, to: Placement): number[] {
  return Array.from({ length: RANKS }, (_, rank) => {
    let experts = 0;
    for (let layer = 0; layer < LAYERS; layer++) {
      const begin = (layer * RANKS + rank) * SLOTS;
      const changed = [...to.physicalToLogical.subarray(begin, begin + SLOTS)]
        .filter((expert, i) => expert !== from.physicalToLogical[begin + i]);
      experts += new Set(changed).size;
    }
    return experts;
  });
}

/** Serves until something has happened, or for a minute; returns where the tokens came from. */
async function serveUntil(
  happened: () => boolean,
  state: EplbState,
  served: ServedLedger,
): Promise<SeededRandom> {
  const random = new SeededRandom(4);
  const start = performance.now();
  while (!happened() && performance.now() - start < 60_000) {
    await servePasses(state, served, { random, passes: 1, hot: () => 2 });
  }
  return random;
}

Deno.test("step() waits for nothing while maxRate holds up a move, and commits what is there", async () => {
  using served = new ServedLedger(SMALL);
  const { state, events } = await serve({
    mode: "async",
    policy: "deepseek",
    maxRate: 1, // the next layer is due after 12 seconds for each expert
    stepInterval: 40,
    windowSteps: 10,
  });
  await using _ = state;
  await served.addTo(state);
  const committed = () => ofType(events, "layers-committed").length;
  const random = await serveUntil(() => committed() > 0, state, served);
  await servePasses(state, served, { random, passes: 20, hot: () => 2 });
  assertEquals(committed(), 1);
  assertEquals(ofType(events, "cycle-ended"), []);
  const closing = performance.now();
  await state.close();
  assert(performance.now() - closing < 8_000);
  served.check();
});

for (const mode of ["async", "sync"] as const) {
  Deno.test(`step() ends a move within maxRate with all layers in place, ${mode}`, async () => {
    using served = new ServedLedger(SMALL);
    const seconds = 0.01; // for each expert
    const { state, events } = await serve({
      mode,
      policy: "deepseek",
      drain: false,
      maxRate: expertBytes / seconds,
      stepInterval: 40,
      windowSteps: 10,
    });
    await using _ = state;
    await served.addTo(state);
    const ended = () => ofType(events, "cycle-ended")[0];
    await serveUntil(() => ended() !== undefined, state, served);
    assertEquals(ended()?.outcome, "committed");
    const most = Math.max(...gathered(served.start, served.model.placement));
    assertGreater(most, 0);
    assert(
      ended()!.moveSeconds >= most * seconds,
      `${ended()!.moveSeconds} s for ${most} experts`,
    );
  });
}
