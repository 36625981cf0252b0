// SPDX-License-Identifier: Apache-2.0

/**
 * The hops of one layer.
 *
 * @module
 */
import { HopArrivals } from "./_hop_arrivals.ts";
import { park, rotate, swapOut } from "./_hop_detours.ts";
import { EntryRanks } from "./_hop_entries.ts";
import { findKnots } from "./_hop_knots.ts";
import { Group, HopLayer } from "./_hop_layer.ts";
import type { Placement } from "../placement.ts";
import type { Topology } from "../topology.ts";

/**
 * Finds the hops of one layer after the other.
 *
 * Every layer comes to its end, since the number of waiting slots falls, or else that of knots:
 *
 * - Some slot is redundant or empty. If no ready slot can be settled alone, what they hold are last
 *   copies, which only ready slots wait for: as many experts as slots, so that each slot waits for
 *   another of them, and the slots form circles. A circle for which there are cells is settled. The
 *   others are knots, and an expert of one is parked, so that one of its slots can be settled: in the
 *   same hop, or first of all in the next one. Where a settled slot is taken for it, as many slots wait
 *   as before, but there is a knot less.
 * - Every slot holds the only copy of its expert, so that all slots lie in circles from the beginning.
 *   A circle for which there are cells is settled. Of a row of a knot, all slots but one are settled;
 *   a knot has such a row, unless it lies on one rank of one cell. Then a swap leaves one knot of that
 *   kind less, and rotating makes no new one.
 */
export class HopSequence {
  readonly #layer: HopLayer;
  readonly #arrivals: HopArrivals;
  readonly #entries: EntryRanks | undefined;
  // Slots to settle first in the next hop, since their expert is parked on their rank.
  #first: readonly number[] = [];

  constructor(
    shape: Placement,
    options: {
      readonly topology: Topology;
      readonly cells: number;
      readonly relay: boolean;
    },
  ) {
    this.#layer = new HopLayer(shape, options);
    this.#arrivals = new HopArrivals(this.#layer);
    this.#entries = options.relay && options.topology.nodes > 1
      ? new EntryRanks(this.#layer)
      : undefined;
  }

  /**
   * Finds the hops of a layer.
   *
   * @param from Expert in each slot, [slots].
   * @param to Expert that shall be there in the end, [slots].
   * @returns The experts after each hop but the last one, which leads to `to`.
   */
  of(from: Int32Array, to: Int32Array): Int32Array[] {
    const layer = this.#layer;
    const rows: Int32Array[] = [];
    layer.load(from, to);
    this.#entries?.reset();
    while (layer.waiting > 0) {
      this.#hop();
      if (layer.waiting > 0) rows.push(layer.content.slice());
    }
    return rows;
  }

  #hop(): void {
    const layer = this.#layer;
    layer.begin();
    if (this.#entries === undefined) layer.ready.fill(1);
    else this.#entries.markReady();
    for (const slot of this.#first) this.#arrivals.settle(slot, Group.all);
    this.#first = [];
    if (layer.slots > layer.experts) this.#settleWithSpare();
    else this.#settleWithoutSpare();
  }

  // Some slot is redundant or empty.
  #settleWithSpare(): void {
    const layer = this.#layer;
    this.#first = findKnots(layer)
      .map((knot) => park(layer, this.#arrivals, knot))
      .filter((slot) => slot !== undefined);
    this.#arrivals.settleAll(Group.rank);
    // Rather than do nothing, let an expert come back to a rank, or else to a node.
    for (const keep of [Group.node, Group.all]) {
      if (layer.changes === 0) this.#arrivals.settleAll(keep);
    }
  }

  // Every slot holds the only copy of its expert.
  #settleWithoutSpare(): void {
    const layer = this.#layer;
    for (const knot of findKnots(layer)) {
      // Rows that settle one of two slots cost most: only if the knot has no longer one.
      const least = Math.min(3, rotate(layer, knot, 2));
      while (least > 0 && rotate(layer, knot, least) > 0);
    }
    this.#arrivals.settleAll(Group.rank);
    const knots = findKnots(layer);
    for (const knot of knots) swapOut(layer, knot, knots);
  }
}
