// SPDX-License-Identifier: Apache-2.0
// What `plan` and `simulate` have in common: sizes, ranks, policies.

import { policies, type PolicyName } from "../../policies/registry.ts";
import { EXPERT_BYTES } from "../../simulate.ts";
import type { GateOptions } from "../../policies/gate.ts";
import { type LinkRates, Topology } from "../../topology.ts";
import { type Flag, fromOptions, UsageError } from "../command.ts";
import type { Flags } from "../flags.ts";

/** Options of both commands. */
export const RANK_FLAGS: readonly Flag[] = [
  { name: "ranks", value: "N", type: "count", help: "number of ranks" },
  {
    name: "nodes",
    value: "M",
    type: "count",
    help: "nodes the ranks are on, equally (default: 1)",
  },
  {
    name: "redundant",
    value: "R",
    type: "text",
    help: "redundant slots of all ranks, per layer (default: 0)",
  },
  {
    name: "link-rate",
    value: "GB/S",
    type: "number",
    help: "rate of a rank's link inside its node",
  },
  {
    name: "node-rate",
    value: "GB/S",
    type: "number",
    help: "rate of a rank's link to other nodes",
  },
];

/** Options of the gate. */
export const GATE_FLAGS: readonly Flag[] = [
  {
    name: "horizon",
    value: "STEPS",
    type: "count",
    help:
      "move a layer only if it pays within so many steps (default: always move)",
  },
  {
    name: "token-time",
    value: "US",
    type: "number",
    help: "microseconds a rank takes per token, for --horizon (default: 1)",
  },
  {
    name: "window-steps",
    value: "N",
    type: "count",
    help: "steps that the load was counted in, for --horizon (default: 1)",
  },
  {
    name: "expert-bytes",
    value: "BYTES",
    type: "bytes",
    help: "bytes of one expert (default: DeepSeek-R1's in FP8)",
  },
];

/** What the gate weighs; undefined without `--horizon`. */
export function readGate(flags: Flags): GateOptions | undefined {
  const horizonSteps = flags.number("horizon");
  if (horizonSteps === undefined) return undefined;
  return {
    horizonSteps,
    secondsPerCost: 1e-6 * (flags.number("token-time") ?? 1),
    windowSteps: flags.number("window-steps") ?? 1,
    expertBytes: flags.number("expert-bytes") ?? EXPERT_BYTES,
  };
}

/** The ranks of a plan, and their slots. */
export interface Sizes {
  readonly topology: Topology;
  readonly slotsPerRank: number;
}

/** Reads the sizes; experts and redundant slots must divide among the ranks. */
export async function readSizes(flags: Flags, experts: number): Promise<Sizes> {
  const ranks = flags.number("ranks");
  if (ranks === undefined) throw new UsageError("--ranks is needed");
  const redundant = readRedundant(flags);
  const slots = experts + redundant;
  if (slots % ranks !== 0) {
    throw new UsageError(
      `${experts} experts and ${redundant} redundant slots do not divide among ${ranks} ranks`,
    );
  }
  const nodes = flags.number("nodes") ?? 1;
  const rates = linkRates(flags);
  const topology = await fromOptions(() =>
    Topology.uniform({ ranks, nodes, rates })
  );
  return { topology, slotsPerRank: slots / ranks };
}

function readRedundant(flags: Flags): number {
  const text = flags.text("redundant") ?? "0";
  const redundant = Number(text);
  if (!Number.isInteger(redundant) || redundant < 0 || text.trim() === "") {
    throw new UsageError(
      `--redundant must be a whole number from 0: it is "${text}"`,
    );
  }
  return redundant;
}

function linkRates(flags: Flags): LinkRates {
  const intra = flags.number("link-rate");
  const inter = flags.number("node-rate");
  return {
    ...(intra === undefined ? {} : { intraNode: intra * 1e9 }),
    ...(inter === undefined ? {} : { interNode: inter * 1e9 }),
  };
}

/** Names of all policies, for help and errors. */
export const POLICY_NAMES = Object.keys(policies) as readonly PolicyName[];

/** Reads one or several names, separated by commas. */
export function readPolicies(text: string): PolicyName[] {
  return text.split(",").map((part) => {
    const name = part.trim();
    if (name in policies) return name as PolicyName;
    throw new UsageError(
      `--policy must be of ${POLICY_NAMES.join(", ")}: it is "${name}"`,
    );
  });
}

/** Whole numbers separated by commas. */
export function readList(name: string, text: string): number[] {
  return text.split(",").map((part) => {
    const value = Number(part);
    if (!Number.isInteger(value) || value < 0 || part.trim() === "") {
      throw new UsageError(
        `--${name} must be whole numbers separated by commas: "${part}" is none`,
      );
    }
    return value;
  });
}
