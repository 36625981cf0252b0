// SPDX-License-Identifier: Apache-2.0

/**
 * Checking what a policy is given, before any work.
 *
 * @module
 */
import { checkInteger, show } from "../_check.ts";
import { shapeOf } from "../_physical_map.ts";
import type { Placement, PlacementShape } from "../placement.ts";
import type { Topology } from "../topology.ts";
import type { PolicyInput } from "./policy.ts";

const ACTION = "place experts";

/** The most tokens of a layer: sums of them fit a float32, and their squares a float64. */
const MOST_TOKENS = 1e38;

/** A policy's input after checks, with its defaults filled in. */
export interface PolicyJob extends PlacementShape {
  /** Slots of all ranks, per layer. */
  readonly slots: number;
  /** Tokens per logical expert, [layers, experts], row major. */
  readonly load: Float64Array;
  /** Ranks and nodes. */
  readonly topology: Topology;
  /** Ranks that may hold experts, ascending. */
  readonly active: Int32Array;
  /** Groups that the experts form. */
  readonly groups: number;
  /** Where the experts are today; undefined if they are nowhere. */
  readonly current: Placement | undefined;
}

/**
 * Refuses an input that no policy can plan for.
 *
 * @param input What the policy is given.
 * @returns The same, with sizes worked out and defaults filled in.
 * @throws {RangeError} If a size is not positive or does not fit another, a load is negative, not
 * finite or too large, `active` is not ascending ranks, their slots are fewer than the experts, or
 * `current` has another shape.
 */
export function checkInput(input: PolicyInput): PolicyJob {
  const { load, experts, topology, slotsPerRank, current, groups = 1 } = input;
  for (
    const [name, value] of Object.entries({ experts, slotsPerRank, groups })
  ) {
    checkInteger(value, { action: ACTION, name, min: 1 });
  }
  if (experts % groups !== 0) {
    refuse(`${experts} experts do not form ${groups} equal groups`);
  }
  if (load.length === 0 || load.length % experts !== 0) {
    refuse(
      `load must hold whole layers of ${experts} experts, it has ${load.length} values`,
    );
  }
  checkLoad(load, experts);
  const { ranks } = topology;
  const layers = load.length / experts;
  const slots = ranks * slotsPerRank;
  checkInteger(layers * slots, {
    action: ACTION,
    name: "layers * slots",
    min: 1,
  });
  const active = checkActive(input.active, ranks);
  const missing = experts - active.length * slotsPerRank;
  if (missing > 0) {
    refuse(
      `${active.length} active ranks of ${slotsPerRank} slots are ${missing} slots short of ${experts} experts`,
    );
  }
  const shape = { layers, ranks, slotsPerRank, experts };
  if (current !== undefined && shapeOf(current) !== shapeOf(shape)) {
    refuse(
      `the current placement has ${shapeOf(current)}, the job has ${
        shapeOf(shape)
      }`,
    );
  }
  return { ...shape, slots, load, topology, active, groups, current };
}

function refuse(state: string): never {
  throw new RangeError(`Cannot ${ACTION}: ${state}`);
}

function checkLoad(load: Float64Array, experts: number): void {
  for (let layer = 0; layer * experts < load.length; layer++) {
    let sum = 0;
    for (let expert = 0; expert < experts; expert++) {
      const tokens = load[layer * experts + expert]!;
      if (!(tokens >= 0 && tokens < Infinity)) {
        refuse(
          `load of layer ${layer}, expert ${expert} must be non-negative and finite, it is ${tokens}`,
        );
      }
      sum += tokens;
    }
    if (sum > MOST_TOKENS) {
      refuse(
        `load of layer ${layer} must add up to at most ${MOST_TOKENS}, it adds up to ${sum}`,
      );
    }
  }
}

function checkActive(
  active: readonly number[] | undefined,
  ranks: number,
): Int32Array {
  if (active === undefined) return new Int32Array(ranks).map((_, rank) => rank);
  active.forEach((rank, i) => {
    const last = i === 0 ? -1 : active[i - 1]!;
    if (!Number.isInteger(rank) || rank <= last || rank >= ranks) {
      refuse(
        `active ranks must ascend from 0 to ${ranks - 1}, entry ${i} is ${
          show(rank)
        }${i === 0 ? "" : ` after ${last}`}`,
      );
    }
  });
  return Int32Array.from(active);
}

/** Tells whether a layer carries no tokens. */
export function isDense(job: PolicyJob, layer: number): boolean {
  const { load, experts } = job;
  for (let i = layer * experts; i < (layer + 1) * experts; i++) {
    if (load[i]! > 0) return false;
  }
  return true;
}
