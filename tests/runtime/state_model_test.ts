// Any order of what an engine can do with a state keeps maps and weights equal.

import { assert, assertEquals } from "@std/assert";
import fc from "fast-check";
import { SeededRandom } from "../../lib/random.ts";
import type { EplbState } from "../../lib/runtime/state.ts";
import { breathe, serve, ServedLedger, SMALL } from "./_serving.ts";

/** What is known without looking into the state. */
interface Model {
  stopped: boolean;
  models: number;
}

/** The state, and all that is served. */
interface Real {
  readonly state: EplbState;
  readonly served: ServedLedger[];
  readonly random: SeededRandom;
}

type Command = fc.AsyncCommand<Model, Real>;

/** Whatever a command did: maps are those of the weights, and tokens go by them. */
function checkAll({ served, random }: Real, hot: number): void {
  for (const one of served) {
    one.check();
    one.forward(random, hot);
  }
}

/** Some forward passes. */
class Steps implements Command {
  constructor(
    readonly count: number,
    readonly hot: number,
    readonly pause: boolean,
  ) {}
  check = (): boolean => true;
  async run(_: Model, real: Real): Promise<void> {
    for (let i = 0; i < this.count; i++) {
      checkAll(real, this.hot);
      if (this.pause) await breathe();
      await real.state.step();
    }
  }
  toString = (): string =>
    `steps(${this.count}, hot ${this.hot}, ${this.pause})`;
}

class Request implements Command {
  check = (): boolean => true;
  run(_: Model, { state }: Real): Promise<void> {
    state.request();
    return Promise.resolve();
  }
  toString = (): string => "request";
}

class SetActive implements Command {
  constructor(readonly without: number) {}
  check = (): boolean => true;
  run(_: Model, { state }: Real): Promise<void> {
    // Without one rank there are still 3 × 3 slots for at most 8 experts.
    state.setActive([0, 1, 2, 3].filter((rank) => rank !== this.without));
    return Promise.resolve();
  }
  toString = (): string => `setActive(all but ${this.without})`;
}

class Drain implements Command {
  check = (): boolean => true;
  async run(_: Model, { state }: Real): Promise<void> {
    await state.drain();
    assertEquals(state.busy, false);
  }
  toString = (): string => "drain";
}

class Stop implements Command {
  check = ({ stopped }: Model): boolean => !stopped;
  run(model: Model, { state }: Real): Promise<void> {
    model.stopped = true;
    state.stop("enough");
    return Promise.resolve();
  }
  toString = (): string => "stop";
}

class AddModel implements Command {
  constructor(readonly experts: number) {}
  check = ({ models }: Model): boolean => models < 3;
  async run(model: Model, { state, served }: Real): Promise<void> {
    const name = `model ${model.models++}`;
    const one = new ServedLedger({
      ...SMALL,
      layers: 2,
      experts: this.experts,
    });
    served.push(one);
    await one.addTo(state, { name });
    assertEquals(state.models.length, model.models);
  }
  toString = (): string => `addModel(${this.experts})`;
}

const commands = [
  fc.record({
    count: fc.integer({ min: 1, max: 12 }),
    hot: fc.nat({ max: 7 }),
    pause: fc.boolean(),
  }).map(({ count, hot, pause }) => new Steps(count, hot, pause)),
  fc.constant(new Request()),
  fc.integer({ min: 0, max: 4 }).map((without) => new SetActive(without)),
  fc.constant(new Drain()),
  fc.constant(new Stop()),
  fc.integer({ min: 5, max: 9 }).map((experts) => new AddModel(experts)),
];

for (const mode of ["async", "sync"] as const) {
  Deno.test(`EplbState keeps maps and weights equal in any order of calls, ${mode}`, async () => {
    const seen = new Set<string>();
    await fc.assert(
      fc.asyncProperty(
        fc.commands(commands, { maxCommands: 24, size: "max" }),
        fc.constantFrom("quota", "deepseek", "swap"),
        fc.integer({ min: 1, max: 3 }),
        fc.nat(),
        async (calls, policy, layersPerStep, seed) => {
          const { state, events } = await serve({
            mode,
            policy: policy as "quota",
            layersPerStep,
            stepInterval: 6,
          });
          const real: Real = {
            state,
            served: [],
            random: new SeededRandom(seed),
          };
          try {
            const first = new ServedLedger(SMALL);
            real.served.push(first);
            await first.addTo(state, {
              name: "model 0",
              // Every third job has room for one expert, and takes several moves.
              ...(seed % 3 === 0 && { staging: { bytes: 512 } }),
            });
            await fc.asyncModelRun(
              () => ({ model: { stopped: false, models: 1 }, real }),
              calls,
            );
            await state.drain();
            checkAll(real, 0);
            assertEquals(state.failure, undefined);
          } finally {
            await state.close();
            for (const one of real.served) one[Symbol.dispose]();
          }
          for (const event of events) {
            if (event.type === "cycle-ended") seen.add(event.outcome);
          }
        },
      ),
      { numRuns: 60 },
    );
    assert(seen.has("committed") && seen.has("abandoned"), [...seen].join());
    assert(!seen.has("failed"));
  });
}
