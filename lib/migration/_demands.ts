// SPDX-License-Identifier: Apache-2.0

/**
 * What the source choices share: the demands of one layer.
 *
 * @module
 */
import type { Topology } from "../topology.ts";

/**
 * The experts that ranks need from other ranks, in one layer; written anew for each layer.
 *
 * A rank needs an expert at most once. A holder is *eligible* for a demand if it is on the
 * destination's node; if no holder is, all holders are.
 */
export class LayerDemands {
  /** Where the ranks are. */
  readonly topology: Topology;
  /** Ranks that hold and may send an expert, [experts, ranks]; the first `holderCount` of a row, ascending. */
  readonly holders: Int32Array;
  /** Number of ranks that hold and may send an expert, [experts]. */
  readonly holderCount: Int32Array;
  /** Number of demands: the arrays below are filled up to here, in ascending order of `slot`. */
  count = 0;
  /** The logical expert that is needed. */
  readonly expert: Int32Array;
  /** The node of the destination if it has a holder, else -1. */
  readonly node: Int32Array;
  /** The slot that gets the expert. */
  readonly slot: Int32Array;
  /** The rank that sends: what a chooser decides. */
  readonly source: Int32Array;

  constructor(
    topology: Topology,
    sizes: { readonly experts: number; readonly slots: number },
  ) {
    this.topology = topology;
    this.holders = new Int32Array(sizes.experts * topology.ranks);
    this.holderCount = new Int32Array(sizes.experts);
    this.expert = new Int32Array(sizes.slots);
    this.node = new Int32Array(sizes.slots);
    this.slot = new Int32Array(sizes.slots);
    this.source = new Int32Array(sizes.slots);
  }
}

/** Decides `source` of the demands of one layer after the other. */
export interface SourceChooser {
  choose(): void;
}
