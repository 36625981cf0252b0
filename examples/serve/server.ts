// SPDX-License-Identifier: Apache-2.0
// The model with its experts in slots on many ranks, wherever they are just now.

import type { ExpertLayout, ExpertPosition } from "@eplb/eplb";
import type { DispatchCall } from "./device.ts";
import { exchange, tokensOf, type World } from "./exchange.ts";
import type { Expert, MoeModel } from "./model.ts";
import {
  type LayerOutcome,
  type Routing,
  rowOf,
  runExpert,
  runLayers,
} from "./moe.ts";
import { decode } from "./tensors.ts";

/** What went on in one layer of the experts in slots. */
export interface ServedLayer extends LayerOutcome {
  /** Slot that each choice of each token was computed in, over all ranks, [tokens, topK]. */
  readonly slots: Int32Array;
}

/** One of the ranks of this process. */
export interface ServingRank {
  /** Chooses slots for tokens of this rank. */
  dispatch(call: Omit<DispatchCall, "topK">): void;
  /** Copies what a tensor of one of its slots holds at this moment. */
  read(position: ExpertPosition, target: Uint8Array<ArrayBuffer>): void;
}

/** Options of {@linkcode ExpertServer}. */
export interface ExpertServerOptions {
  /** Routers and what else every rank has. */
  readonly model: MoeModel;
  /** The ranks. */
  readonly world: World;
  /** The local ranks, in their order. */
  readonly ranks: readonly ServingRank[];
  /** The tensors of one expert. */
  readonly layout: ExpertLayout;
  /** Slots of each rank, per layer. */
  readonly slotsPerRank: number;
}

/**
 * Runs the model expert parallel.
 *
 * Every process has all tokens and routers. A rank dispatches its part of the tokens with
 * its own tables; the rank that has a slot computes it with the bytes that are in the slot
 * at that moment, and everybody gets the outputs.
 */
export class ExpertServer {
  readonly #options: ExpertServerOptions;
  /** Memory for the weights of one slot: bytes as they are, and numbers. */
  readonly #bytes: readonly Uint8Array<ArrayBuffer>[];
  readonly #numbers: readonly Float32Array<ArrayBuffer>[];

  /** Takes the weights as they are. */
  constructor(options: ExpertServerOptions) {
    const { layout } = options;
    this.#options = options;
    this.#bytes = layout.moved.map(({ bytes }) => new Uint8Array(bytes));
    this.#numbers = layout.moved.map(({ shape }) =>
      new Float32Array(shape.reduce((a, b) => a * b, 1))
    );
  }

  /** Runs the layers on hidden states, [tokens, hidden]. */
  async forward(
    hidden: Float32Array,
    { step, biases }: {
      readonly step: number;
      readonly biases: readonly Float64Array[];
    },
  ): Promise<ServedLayer[]> {
    const slots: Int32Array[] = [];
    const outcomes = await runLayers(this.#options.model, hidden, {
      biases,
      experts: async (layer, routing) => {
        slots[layer] = await this.#dispatch(layer, routing.experts, step);
        return await this.#compute(layer, routing, slots[layer]!);
      },
    });
    return outcomes.map((outcome, layer) => ({
      ...outcome,
      slots: slots[layer]!,
    }));
  }

  /** Every rank sends its own tokens; [tokens, topK] of all ranks. */
  async #dispatch(
    layer: number,
    experts: Int32Array,
    salt: number,
  ): Promise<Int32Array> {
    const { model: { topK }, world, ranks } = this.#options;
    const tokens = experts.length / topK;
    const parts = world.locals.map((rank, local) => {
      const [begin, end] = tokensOf(rank, { ranks: world.ranks, tokens });
      const logical = experts.slice(begin * topK, end * topK);
      const slots = new Int32Array(logical.length).fill(-1);
      ranks[local]!.dispatch({ logical, slots, layer, salt });
      return slots;
    });
    const all = await exchange(world, "slots", joined(parts));
    const slots = joined(all.map((part) => new Int32Array(part)));
    this.#check(layer, slots);
    return slots;
  }

  /** Computes what came to local slots, and gets the rest from the others. */
  async #compute(
    layer: number,
    { normed, experts }: Routing,
    slots: Int32Array,
  ): Promise<Float32Array> {
    const { model: { hidden, topK }, world } = this.#options;
    const mine = this.#choicesOf(slots);
    const part = new Float32Array(mine.length * hidden);
    const order = mine.map((_, index) => index);
    order.sort((a, b) => slots[mine[a]!]! - slots[mine[b]!]!);
    let expert: Expert | undefined;
    let read = -1;
    for (const index of order) {
      const choice = mine[index]!;
      if (slots[choice] !== read) {
        read = slots[choice]!;
        expert = this.#read(layer, read);
      }
      const input = rowOf(normed, Math.floor(choice / topK), hidden);
      runExpert(expert!, input, rowOf(part, index, hidden));
    }
    const parts = await exchange(world, "outputs", part);
    return this.#merge(parts, slots, experts.length);
  }

  /** The choices, ascending, whose slots a process has; by default this one. */
  #choicesOf(slots: Int32Array, process?: number): number[] {
    const { world } = this.#options;
    const ranks = new Set(process === undefined ? world.locals : [process]);
    return [...slots.keys()].filter((choice) =>
      ranks.has(Math.floor(slots[choice]! / this.#options.slotsPerRank))
    );
  }

  /** Puts the outputs of all processes together, [tokens, topK, hidden]. */
  #merge(
    parts: readonly ArrayBuffer[],
    slots: Int32Array,
    choices: number,
  ): Float32Array {
    const { model: { hidden }, world: { cluster } } = this.#options;
    if (cluster === undefined) return new Float32Array(parts[0]!);
    const outputs = new Float32Array(choices * hidden);
    for (const [process, part] of parts.entries()) {
      const rows = new Float32Array(part);
      for (const [row, choice] of this.#choicesOf(slots, process).entries()) {
        outputs.set(rowOf(rows, row, hidden), choice * hidden);
      }
    }
    return outputs;
  }

  /** Reads what a slot holds at this moment: never what it held before. */
  #read(layer: number, slot: number): Expert {
    const { ranks, world, layout, slotsPerRank } = this.#options;
    const local = world.locals.indexOf(Math.floor(slot / slotsPerRank));
    const [w13, w2] = layout.moved.map(({ dtype }, tensor) => {
      const position = { layer, slot: slot % slotsPerRank, tensor };
      const bytes = this.#bytes[tensor]!;
      ranks[local]!.read(position, bytes);
      return decode(bytes, dtype, this.#numbers[tensor]!);
    });
    return { w13: w13!, w2: w2! };
  }

  #check(layer: number, slots: Int32Array): void {
    const { world: { ranks } } = this.#options;
    const wrong = slots.findIndex((slot) =>
      !(slot >= 0 && slot < ranks * this.#options.slotsPerRank)
    );
    if (wrong < 0) return;
    throw new RangeError(
      `Cannot serve layer ${layer}: choice ${wrong} was sent to slot ${
        slots[wrong]
      } ` +
        `of ${ranks * this.#options.slotsPerRank}`,
    );
  }
}

function joined(parts: readonly Int32Array[]): Int32Array<ArrayBuffer> {
  const all = new Int32Array(parts.reduce((sum, one) => sum + one.length, 0));
  let begin = 0;
  for (const part of parts) {
    all.set(part, begin);
    begin += part.length;
  }
  return all;
}
