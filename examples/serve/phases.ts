// SPDX-License-Identifier: Apache-2.0
// What happened in each phase of the traffic, for the report.

import { balancedness, type EplbEvent, type Placement } from "@eplb/eplb";
import type { ServedLayer } from "./server.ts";

/** What happened while the traffic followed one workload. */
export interface PhaseReport {
  /** Name of the workload. */
  readonly workload: string;
  /** Forward passes. */
  readonly steps: number;
  /** Cycles that were decided: load reduced, policy and gate asked. */
  readonly cycles: number;
  /** Slots that got another expert. */
  readonly movedSlots: number;
  /** Balancedness, mean of the layers, in the cycle that found it worst; undefined without cycles. */
  readonly worstCycle:
    | { readonly before: number; readonly after: number }
    | undefined;
  /** Balancedness that the placement of the start would have had, mean of the layers. */
  readonly unbalanced: number;
  /** Balancedness of the tokens that ranks got, in the first interval. */
  readonly atFirst: number;
  /** The same from the third interval on; undefined if the phase is shorter. */
  readonly later: number | undefined;
  /** Tokens served. */
  readonly tokens: number;
  /** Tokens that came out of every layer with the bits of the model without balancing. */
  readonly equalTokens: number;
}

/** Sizes of what is counted. */
export interface PhaseOptions {
  /** Where the experts were at the start. */
  readonly placement: Placement;
  /** Steps from one rearrangement to the next. */
  readonly interval: number;
}

/** Counts what happens in a phase. */
export class Phase {
  readonly #workload: string;
  readonly #options: PhaseOptions;
  /** Tokens per logical expert, [layers, experts]. */
  readonly #load: Float64Array;
  /** Tokens per rank, [layers, ranks], in the first interval and from the third on. */
  readonly #atFirst: Float64Array;
  readonly #later: Float64Array;
  #steps = 0;
  #cycles = 0;
  #movedSlots = 0;
  #worst: { readonly before: number; readonly after: number } | undefined;
  #tokens = 0;
  /** Tokens of this process' ranks that came out equal. */
  equalTokens = 0;

  /** Begins a phase. */
  constructor(workload: string, options: PhaseOptions) {
    const { layers, experts, ranks } = options.placement;
    this.#workload = workload;
    this.#options = options;
    this.#load = new Float64Array(layers * experts);
    this.#atFirst = new Float64Array(layers * ranks);
    this.#later = new Float64Array(layers * ranks);
  }

  /** Counts a forward pass. */
  addStep(served: readonly ServedLayer[], topK: number): void {
    const { placement: { experts, ranks, slotsPerRank }, interval } =
      this.#options;
    const loads = this.#steps < interval
      ? this.#atFirst
      : this.#steps >= 2 * interval
      ? this.#later
      : undefined;
    for (const [layer, outcome] of served.entries()) {
      for (const expert of outcome.experts) {
        this.#load[layer * experts + expert]! += 1;
      }
      if (loads === undefined) continue;
      for (const slot of outcome.slots) {
        loads[layer * ranks + Math.floor(slot / slotsPerRank)]! += 1;
      }
    }
    this.#steps++;
    this.#tokens += served[0]!.slots.length / topK;
  }

  /** Counts what the state tells. */
  addEvent(event: EplbEvent): void {
    if (event.type !== "cycle-decided") return;
    const before = mean(event.balancednessBefore);
    const after = mean(event.balancednessAfter);
    this.#cycles++;
    this.#movedSlots += event.movedSlots;
    if (this.#worst === undefined || before < this.#worst.before) {
      this.#worst = { before, after };
    }
  }

  /** What was counted; `equalTokens` is that of all processes. */
  report(equalTokens: number): PhaseReport {
    const { placement, interval } = this.#options;
    return {
      workload: this.#workload,
      steps: this.#steps,
      cycles: this.#cycles,
      movedSlots: this.#movedSlots,
      worstCycle: this.#worst,
      unbalanced: balancedness(this.#load, placement).mean,
      atFirst: evenness(this.#atFirst, placement),
      later: this.#steps > 2 * interval
        ? evenness(this.#later, placement)
        : undefined,
      tokens: this.#tokens,
      equalTokens,
    };
  }
}

/** Mean ÷ maximum of the ranks' tokens, mean of the layers. */
function evenness(tokens: Float64Array, { layers, ranks }: Placement): number {
  const rows = Array.from(
    { length: layers },
    (_, layer) => tokens.subarray(layer * ranks, (layer + 1) * ranks),
  );
  return mean(rows.map((row) => mean(row) / Math.max(...row)));
}

function mean(values: Float64Array | readonly number[]): number {
  return Array.from(values).reduce((a, b) => a + b, 0) / values.length;
}
