// SPDX-License-Identifier: Apache-2.0

/**
 * The part of an objective that each slot adds to its rank.
 *
 * @module
 */
import { show } from "../_check.ts";
import type { Objective } from "./objective.ts";

/** What slots cost, checked and with defaults filled in. */
export interface SlotCost {
  /** Cost of one token. */
  readonly tokenCost: number;
  /** Cost of a slot that gets any tokens. */
  readonly expertCost: number;
  /** One over the speed of each rank, [ranks]. */
  readonly pace: Float64Array;
}

/**
 * Reads what slots cost.
 *
 * @param objective What is balanced.
 * @param ranks Number of ranks.
 * @returns The costs.
 * @throws {RangeError} If a cost is negative or not finite, or there is not one positive, finite
 * speed for each rank.
 */
export function slotCost(objective: Objective, ranks: number): SlotCost {
  const { tokenCost = 1, expertCost = 0, speed } = objective;
  for (const [name, cost] of Object.entries({ tokenCost, expertCost })) {
    if (!(cost >= 0 && cost < Infinity)) {
      refuse(`${name} must be non-negative and finite, it is ${show(cost)}`);
    }
  }
  if (speed !== undefined && speed.length !== ranks) {
    refuse(`there are ${speed.length} speeds for ${ranks} ranks`);
  }
  speed?.forEach((value, rank) => {
    if (!(value > 0 && value < Infinity)) {
      refuse(
        `the speed of rank ${rank} must be positive and finite, it is ${value}`,
      );
    }
  });
  const pace = new Float64Array(ranks).map((_, rank) =>
    1 / (speed?.[rank] ?? 1)
  );
  return { tokenCost, expertCost, pace };
}

function refuse(state: string): never {
  throw new RangeError(`Cannot place experts: ${state}`);
}
