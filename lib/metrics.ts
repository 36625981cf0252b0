/**
 * How well a placement spreads a load.
 *
 * @module
 */
import type { Placement } from "./placement.ts";

/** Options of {@linkcode balancedness}. */
export interface BalancednessOptions {
  /**
   * Share of its expert's tokens that each slot takes, [layers, slots], row
   * major; the shares of one expert's replicas add up to 1. Empty slots are not
   * looked at.
   *
   * @default {equal shares}
   */
  readonly shares?: Float32Array | Float64Array;
}

/** Result of {@linkcode balancedness}. */
export interface Balancedness {
  /** Balancedness of each layer, [layers], in (0, 1]. */
  readonly layers: Float64Array;
  /** Mean over the layers, in (0, 1]. */
  readonly mean: number;
}

/** How far the shares of one expert may miss 1: float32 rounding of many replicas. */
const SHARE_TOLERANCE = 1e-4;

/**
 * Mean rank load over maximum rank load, layer by layer.
 *
 * A rank's load is the sum, over its slots, of what the slot takes of its
 * expert's tokens. 1 is perfect balance, 1 ÷ ranks is everything on one rank; a
 * layer without any load counts as 1.
 *
 * @param load Tokens per logical expert, [layers, experts], row major.
 * @param placement Where the experts are.
 * @param options Shares of the replicas, if they are unequal.
 * @returns Balancedness of each layer, and their mean.
 * @throws {RangeError} If sizes do not fit the placement, if a load is negative
 * or not finite, or if shares are not between 0 and 1 or those of an expert do
 * not add up to 1.
 *
 * @example
 * ```ts
 * import { balancedness, Placement } from "@eplb/eplb";
 * import { assertEquals } from "@std/assert";
 *
 * const placement = Placement.from([[0, 1, 0, 2]], { ranks: 2 });
 * const load = new Float64Array([40, 10, 30]);
 * // Rank 0 takes 40 / 2 + 10, rank 1 takes 40 / 2 + 30.
 * assertEquals(balancedness(load, placement).mean, 40 / 50);
 * ```
 */
export function balancedness(
  load: Float64Array | Int32Array,
  placement: Placement,
  options: BalancednessOptions = {},
): Balancedness {
  const { shares } = options;
  checkLoad(load, placement);
  if (shares !== undefined) checkShares(shares, placement);
  const layers = new Float64Array(placement.layers);
  for (let layer = 0; layer < layers.length; layer++) {
    layers[layer] = balance(rankLoads(load, placement, { layer, shares }));
  }
  const sum = layers.reduce((sum, value) => sum + value, 0);
  return { layers, mean: sum / layers.length };
}

/** Tokens of each rank in one layer, [ranks]. */
function rankLoads(
  load: Float64Array | Int32Array,
  placement: Placement,
  options: {
    readonly layer: number;
    readonly shares: Float32Array | Float64Array | undefined;
  },
): Float64Array {
  const { slots, slotsPerRank, experts, ranks } = placement;
  const { layer, shares } = options;
  const sums = new Float64Array(ranks);
  for (let slot = 0; slot < slots; slot++) {
    const expert = placement.physicalToLogical[layer * slots + slot]!;
    if (expert < 0) continue;
    const row = layer * experts + expert;
    const share = shares === undefined
      ? 1 / placement.logicalReplicaCount[row]!
      : shares[layer * slots + slot]!;
    sums[Math.floor(slot / slotsPerRank)]! += load[row]! * share;
  }
  return sums;
}

/** The largest load is divided by first, which keeps rounding from exceeding 1. */
function balance(loads: Float64Array): number {
  const max = loads.reduce((a, b) => Math.max(a, b), 0);
  if (max === 0) return 1;
  return loads.reduce((sum, value) => sum + value / max, 0) / loads.length;
}

function checkLoad(
  load: Float64Array | Int32Array,
  placement: Placement,
): void {
  const { layers, experts } = placement;
  if (load.length !== layers * experts) {
    throw new RangeError(
      `Cannot measure balancedness: load must have ${layers} layers × ${experts} experts, it has ${load.length} values`,
    );
  }
  for (const [index, tokens] of load.entries()) {
    if (!(tokens >= 0 && tokens < Infinity)) {
      throw new RangeError(
        `Cannot measure balancedness: load of layer ${
          Math.floor(index / experts)
        }, expert ${
          index % experts
        } must be non-negative and finite, it is ${tokens}`,
      );
    }
  }
}

function checkShares(
  shares: Float32Array | Float64Array,
  placement: Placement,
): void {
  const { layers, slots, experts, physicalToLogical } = placement;
  if (shares.length !== layers * slots) {
    throw new RangeError(
      `Cannot measure balancedness: shares must have ${layers} layers × ${slots} slots, they have ${shares.length} values`,
    );
  }
  const sums = new Float64Array(layers * experts);
  for (const [index, share] of shares.entries()) {
    const expert = physicalToLogical[index]!;
    if (expert < 0) continue;
    const layer = Math.floor(index / slots);
    if (!(share >= 0 && share <= 1)) {
      throw new RangeError(
        `Cannot measure balancedness: share of layer ${layer}, slot ${
          index % slots
        } must be between 0 and 1, it is ${share}`,
      );
    }
    sums[layer * experts + expert]! += share;
  }
  for (const [index, sum] of sums.entries()) {
    if (Math.abs(sum - 1) > SHARE_TOLERANCE) {
      throw new RangeError(
        `Cannot measure balancedness: shares of layer ${
          Math.floor(index / experts)
        }, expert ${index % experts} must add up to 1, they add up to ${sum}`,
      );
    }
  }
}
