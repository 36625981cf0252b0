// SPDX-License-Identifier: Apache-2.0
// Whether two runs of the model gave the same bits.

import type { LayerOutcome } from "./moe.ts";
import type { ServedLayer } from "./server.ts";

/** Where outputs differ from those of the model without balancing. */
export interface Difference {
  /** The step, from 1. */
  readonly step: number;
  /** MoE layer. */
  readonly layer: number;
  /** Token of the step. */
  readonly token: number;
  /** Logical expert whose output differs; undefined if only what was made of the outputs does. */
  readonly expert: number | undefined;
  /** The slot that the expert was computed in, over all ranks. */
  readonly slot: number | undefined;
  /** The rank of that slot. */
  readonly rank: number | undefined;
}

/** A token came out with other bits than without balancing. */
export class DifferenceError extends Error implements Difference {
  readonly step: number;
  readonly layer: number;
  readonly token: number;
  readonly expert: number | undefined;
  readonly slot: number | undefined;
  readonly rank: number | undefined;

  /** Says where. */
  constructor(difference: Difference) {
    const { step, layer, token, expert, slot, rank } = difference;
    const what = expert === undefined
      ? "its hidden state"
      : `expert ${expert} in slot ${slot} of rank ${rank}`;
    super(
      `Cannot go on serving: step ${step}, layer ${layer}, token ${token}: ` +
        `${what} gave other bits than the model without balancing`,
    );
    this.name = "DifferenceError";
    this.step = step;
    this.layer = layer;
    this.token = token;
    this.expert = expert;
    this.slot = slot;
    this.rank = rank;
  }
}

/** Sizes of what is compared. */
export interface CompareOptions {
  /** The step, from 1. */
  readonly step: number;
  /** The first token that was computed without balancing. */
  readonly firstToken: number;
  /** Experts of each token. */
  readonly topK: number;
  /** Slots of each rank. */
  readonly slotsPerRank: number;
}

/**
 * Compares tokens, layer by layer, bit by bit.
 *
 * @param served The layers of all tokens, experts in slots.
 * @param expected The layers of some of the tokens, without balancing.
 * @param options Which tokens, and sizes.
 * @throws {DifferenceError} At the first difference.
 */
export function compare(
  served: readonly ServedLayer[],
  expected: readonly LayerOutcome[],
  options: CompareOptions,
): void {
  for (const [layer, outcome] of expected.entries()) {
    compareLayer(served[layer]!, outcome, { ...options, layer });
  }
}

function compareLayer(
  served: ServedLayer,
  expected: LayerOutcome,
  options: CompareOptions & { readonly layer: number },
): void {
  const { step, layer, firstToken, topK, slotsPerRank } = options;
  const choices = expected.experts.length;
  const firstChoice = firstToken * topK;
  for (let choice = 0; choice < choices; choice++) {
    const same =
      expected.experts[choice] === served.experts[firstChoice + choice] &&
      sameRow(served.outputs, expected.outputs, {
        row: choice,
        offset: firstChoice,
        width: expected.outputs.length / choices,
      });
    if (same) continue;
    const slot = served.slots[firstChoice + choice]!;
    throw new DifferenceError({
      step,
      layer,
      token: firstToken + Math.floor(choice / topK),
      expert: served.experts[firstChoice + choice]!,
      slot,
      rank: Math.floor(slot / slotsPerRank),
    });
  }
  const tokens = choices / topK;
  const width = expected.hidden.length / tokens;
  for (let row = 0; row < tokens; row++) {
    const where = { row, offset: firstToken, width };
    if (sameRow(served.hidden, expected.hidden, where)) continue;
    throw new DifferenceError({
      step,
      layer,
      token: firstToken + row,
      expert: undefined,
      slot: undefined,
      rank: undefined,
    });
  }
}

/** Whether row `row + offset` of one matrix has the bits of row `row` of another. */
function sameRow(
  a: Float32Array,
  b: Float32Array,
  { row, offset, width }: {
    readonly row: number;
    readonly offset: number;
    readonly width: number;
  },
): boolean {
  // As whole numbers, in which +0 is not -0 and each NaN is itself.
  const bitsA = new Uint32Array(a.buffer, a.byteOffset, a.length);
  const bitsB = new Uint32Array(b.buffer, b.byteOffset, b.length);
  for (let i = row * width; i < (row + 1) * width; i++) {
    if (bitsA[i + offset * width] !== bitsB[i]) return false;
  }
  return true;
}
