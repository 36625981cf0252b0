// SPDX-License-Identifier: Apache-2.0
// The ranks of this process: their expert memory, and the state that balances it.

import {
  type Dispatcher,
  type EplbEvent,
  EplbState,
  type ExpertCheckpoint,
  type ExpertPosition,
  ExpertWeights,
  loadExperts,
  NativeLibrary,
  Placement,
  type ServedModel,
  type TensorMemory,
  Topology,
} from "@eplb/eplb";
import {
  type DispatchCall,
  GpuDevice,
  HOST,
  type RankDevice,
} from "./device.ts";
import { exchange, type World } from "./exchange.ts";
import type { ServeOptions } from "./options.ts";
import type { ServingRank } from "./server.ts";

/** Options of {@linkcode BalancedRanks.load}. */
export interface BalancedRanksOptions {
  /** What is served, and how it is balanced. */
  readonly serve: ServeOptions;
  /** The ranks. */
  readonly world: World;
  /** Experts of each token. */
  readonly topK: number;
  /** Is told what happens. */
  readonly onEvent: (event: EplbEvent) => void;
}

/** A rank of this process: its memory, and the state's maps for its tokens. */
export class Rank implements ServingRank, Disposable {
  /** Its expert memory. */
  readonly weights: ExpertWeights;
  readonly #device: RankDevice;
  readonly #dispatcher: Dispatcher;
  readonly #topK: number;
  /** Address of slot 0 and bytes to the next, [layers][tensors]. */
  readonly #memory: readonly (readonly Required<TensorMemory>[])[];

  constructor(
    weights: ExpertWeights,
    options: {
      readonly device: RankDevice;
      readonly dispatcher: Dispatcher;
      readonly topK: number;
    },
  ) {
    this.weights = weights;
    this.#device = options.device;
    this.#dispatcher = options.dispatcher;
    this.#topK = options.topK;
    this.#memory = Array.from(
      { length: weights.layers },
      (_, layer) =>
        weights.tensorBytes.map((_, tensor) => weights.address(layer, tensor)),
    );
  }

  dispatch(call: Omit<DispatchCall, "topK">): void {
    this.#device.dispatch(this.#dispatcher, { ...call, topK: this.#topK });
  }

  read(
    { layer, slot, tensor }: ExpertPosition,
    target: Uint8Array<ArrayBuffer>,
  ): void {
    const { address, stride } = this.#memory[layer]![tensor]!;
    this.#device.read(address + BigInt(slot * stride), target);
  }

  [Symbol.dispose](): void {
    this.#device[Symbol.dispose]();
  }
}

/** Ranks whose experts are balanced. */
export class BalancedRanks implements AsyncDisposable {
  readonly #world: World;
  /** Balances the model. */
  readonly state: EplbState;
  /** The model of the state. */
  readonly model: ServedModel;
  /** Where the experts were at the start. */
  readonly start: Placement;
  /** The local ranks. */
  readonly locals: readonly Rank[];
  readonly #owned: AsyncDisposableStack;

  private constructor(parts: {
    readonly world: World;
    readonly state: EplbState;
    readonly model: ServedModel;
    readonly locals: readonly Rank[];
    readonly owned: AsyncDisposableStack;
  }) {
    this.#world = parts.world;
    this.state = parts.state;
    this.model = parts.model;
    this.start = parts.model.placement;
    this.locals = parts.locals;
    this.#owned = parts.owned;
  }

  /** Fills the slots of the local ranks, and joins them with those of the others. */
  static async load(
    checkpoint: ExpertCheckpoint,
    { serve, world, topK, onEvent }: BalancedRanksOptions,
  ): Promise<BalancedRanks> {
    const { layout, layers, experts } = checkpoint;
    const { ranks, locals, cluster } = world;
    const slotsPerRank = Math.ceil(experts / ranks) + serve.redundant;
    const placement = Placement.contiguous({
      layers,
      ranks,
      slotsPerRank,
      experts,
    });
    const library = NativeLibrary.open();
    const devices = chooseDevices(library, serve);
    await using owned = new AsyncDisposableStack();
    const weights: ExpertWeights[] = [];
    for (const rank of locals) {
      const one = owned.use(
        await ExpertWeights.allocate(library, {
          layout,
          layers,
          slots: slotsPerRank,
          device: devices[rank]!,
          shareable: cluster !== undefined,
        }),
      );
      await loadExperts(checkpoint, one, { placement, rank });
      weights.push(one);
    }
    const state = owned.use(
      await EplbState.create({
        library,
        topology: Topology.uniform({ ranks, nodes: 1 }),
        ranks: locals,
        ...(cluster && { cluster }),
        mode: serve.mode,
        policy: serve.policy,
        gate: serve.gate ? {} : false,
        stepInterval: serve.interval,
        windowSteps: serve.interval,
        onEvent,
      }),
    );
    const model = await state.addModel({
      name: checkpoint.model,
      weights,
      experts,
      placement,
    });
    const ranksHere = weights.map((one, local) =>
      owned.use(
        new Rank(one, {
          device: one.device === "host"
            ? HOST
            : new GpuDevice(one.device, serve.tokens * topK),
          dispatcher: model.dispatcher(locals[local]!),
          topK,
        }),
      )
    );
    return new BalancedRanks({
      world,
      state,
      model,
      locals: ranksHere,
      owned: owned.move(),
    });
  }

  /** Ends in order: no rank frees memory that another one may still read. */
  async close(): Promise<void> {
    await this.state.close();
    await exchange(this.#world, "closed", new Int32Array(0));
    await this.#owned.disposeAsync();
  }

  /** Frees everything, whatever the other ranks do. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.#owned.disposeAsync();
  }
}

/** A GPU for each rank, [ranks], or the host for all. */
function chooseDevices(
  library: NativeLibrary,
  { device, ranks }: ServeOptions,
): (number | "host")[] {
  const { devices, reason } = library.devices();
  if (device === "cuda" && devices.length === 0) {
    throw new Error(`Cannot serve on GPUs: there are none (${reason})`);
  }
  const onGpus = device === "cuda" ||
    (device === "auto" && devices.length >= ranks);
  return Array.from(
    { length: ranks },
    (_, rank) => onGpus ? rank % devices.length : "host",
  );
}
