// A model that is served by all ranks in this process, and what must hold at any time.

import { assertEquals } from "@std/assert";
import { Placement } from "../../lib/placement.ts";
import type { SeededRandom } from "../../lib/random.ts";
import type { EplbEvent } from "../../lib/runtime/events.ts";
import type { ServedModel } from "../../lib/runtime/model.ts";
import type {
  EplbStateOptions,
  ModelOptions,
} from "../../lib/runtime/options.ts";
import { EplbState } from "../../lib/runtime/state.ts";
import { Topology } from "../../lib/topology.ts";
import { library } from "../_native.ts";
import { Ledger } from "../engine/_ledger.ts";

/** Sizes of a model under test. */
export interface ServingShape {
  readonly layers: number;
  readonly ranks: number;
  readonly slotsPerRank: number;
  readonly experts: number;
}

export const SMALL: ServingShape = {
  layers: 4,
  ranks: 4,
  slotsPerRank: 3,
  experts: 8,
};

/** One model whose slots hold the ids of their experts. */
export class ServedLedger implements Disposable {
  readonly shape: ServingShape;
  readonly ledgers: readonly Ledger[];
  readonly start: Placement;
  model!: ServedModel;

  constructor(shape: ServingShape) {
    this.shape = shape;
    this.start = Placement.contiguous(shape);
    this.ledgers = Array.from(
      { length: shape.ranks },
      (_, rank) => new Ledger(rank, this.start),
    );
  }

  async addTo(
    state: EplbState,
    options: Partial<ModelOptions> = {},
  ): Promise<this> {
    this.model = await state.addModel({
      name: "main",
      weights: this.ledgers.map(({ weights }) => weights),
      experts: this.shape.experts,
      ...options,
    });
    return this;
  }

  /** One forward pass: each rank maps tokens that want the experts of a skewed draw. */
  forward(random: SeededRandom, hot: number): void {
    const { layers, ranks, experts } = this.shape;
    const tokens = 16;
    const logical = new Int32Array(tokens * 2);
    const physical = new Int32Array(tokens * 2);
    for (let rank = 0; rank < ranks; rank++) {
      for (let layer = 0; layer < layers; layer++) {
        for (let i = 0; i < logical.length; i++) {
          const favored = random.below(3) > 0;
          logical[i] = favored
            ? (hot + layer) % experts
            : random.below(experts);
        }
        this.model.dispatcher(rank).dispatch(logical, physical, {
          layer,
          topK: 2,
        });
        this.#checkRouted(logical, physical, layer);
      }
    }
  }

  /** Tokens go to slots that hold their expert, by the map and in truth. */
  #checkRouted(logical: Int32Array, physical: Int32Array, layer: number): void {
    const { slots, physicalToLogical } = this.model.placement;
    for (const [i, slot] of physical.entries()) {
      assertEquals(physicalToLogical[layer * slots + slot], logical[i]);
    }
  }

  /** Weights are where the map says, all bytes of them. */
  check(): void {
    for (const ledger of this.ledgers) {
      assertEquals(ledger.wrongValues(this.model.placement), 0);
    }
  }

  [Symbol.dispose](): void {
    for (const ledger of this.ledgers) ledger[Symbol.dispose]();
  }
}

/** A state with all ranks in this process, and what it has told. */
export async function serve(
  options: Partial<EplbStateOptions> & { readonly shape?: ServingShape } = {},
): Promise<{ state: EplbState; events: EplbEvent[] }> {
  const { shape = SMALL, ...rest } = options;
  const events: EplbEvent[] = [];
  const state = await EplbState.create({
    library,
    topology: Topology.uniform({ ranks: shape.ranks, nodes: 1 }),
    stepInterval: 8,
    windowSteps: 4,
    gate: false,
    onEvent: (event) => events.push(event),
    ...rest,
  });
  return { state, events };
}

/** Lets what runs in the background go on. */
export function breathe(milliseconds = 1): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, milliseconds));
}

/** Forward passes and the ends of their steps; weights and maps agree at each. */
export async function servePasses(
  state: EplbState,
  served: ServedLedger,
  options: {
    readonly random: SeededRandom;
    readonly passes: number;
    /** The expert that tokens favor in a step, from 0. */
    readonly hot: (step: number) => number;
  },
): Promise<void> {
  const { random, passes, hot } = options;
  for (let step = 0; step < passes; step++) {
    served.forward(random, hot(step));
    served.check();
    await breathe();
    await state.step();
    served.check();
  }
}

/** Events of one kind. */
export function ofType<T extends EplbEvent["type"]>(
  events: readonly EplbEvent[],
  type: T,
): Extract<EplbEvent, { type: T }>[] {
  return events.filter((event): event is Extract<EplbEvent, { type: T }> =>
    event.type === type
  );
}
