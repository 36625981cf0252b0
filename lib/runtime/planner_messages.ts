// SPDX-License-Identifier: Apache-2.0

/**
 * Requests and answers of a planner in another thread, as plain data.
 *
 * @module
 */
import type { Move, MoveSettings } from "../engine/move.ts";
import { type Program, readProgram } from "../migration/program.ts";
import type { MigrationPlan } from "../migration/plan.ts";
import { Placement, type PlacementShape } from "../placement.ts";
import { policies, type PolicyName } from "../policies/registry.ts";
import { Topology } from "../topology.ts";
import type { Decision, DecisionInput } from "./decision.ts";
import type { Planned, PlanRequest } from "./planner.ts";

/** A placement that can go to another thread. */
interface PlacementData extends PlacementShape {
  readonly map: Int32Array;
}

/** A topology that can go to another thread. */
interface TopologyData {
  readonly nodeOf: Int32Array;
  readonly intraNode: Float64Array | undefined;
  readonly interNode: Float64Array | undefined;
  readonly uplink: Float64Array | undefined;
}

/** What goes to the other thread. */
export interface RequestMessage {
  readonly id: number;
  readonly input: Omit<DecisionInput, "placement" | "topology" | "policy"> & {
    readonly placement: PlacementData;
    readonly policy: PolicyName;
  };
  readonly settings: Omit<MoveSettings, "topology">;
  readonly topology: TopologyData;
}

/** What comes back. */
export type AnswerMessage =
  | { readonly id: number; readonly error: string }
  | {
    readonly id: number;
    readonly decision: Omit<Decision, "placement"> & {
      readonly placement: PlacementData;
    };
    readonly plan: Omit<MigrationPlan, "topology">;
    readonly drained: PlacementData;
    readonly words: Program["words"];
    readonly digest: string;
  };

/** Writes a request down. */
export function packRequest(
  id: number,
  { input, settings }: PlanRequest,
  policy: PolicyName,
): RequestMessage {
  const { placement, topology, policy: _, ...rest } = input;
  const { topology: __, ...move } = settings;
  return {
    id,
    input: { ...rest, policy, placement: packPlacement(placement) },
    settings: move,
    topology: packTopology(topology),
  };
}

/** Reads a request. */
export function unpackRequest(message: RequestMessage): PlanRequest {
  const topology = unpackTopology(message.topology);
  const { placement, policy, ...rest } = message.input;
  return {
    input: {
      ...rest,
      topology,
      placement: unpackPlacement(placement),
      policy: policies[policy],
    },
    settings: { ...message.settings, topology },
  };
}

/** Writes an answer down. */
export function packAnswer(
  id: number,
  { decision, move }: Planned,
): AnswerMessage {
  const { topology: _, ...plan } = move.plan;
  return {
    id,
    decision: { ...decision, placement: packPlacement(decision.placement) },
    plan,
    drained: packPlacement(move.drained),
    words: move.program.words,
    digest: move.digest,
  };
}

/** Reads an answer to a request. */
export function unpackAnswer(
  message: Exclude<AnswerMessage, { error: string }>,
  { input }: PlanRequest,
): Planned {
  const { plan, words, digest } = message;
  const to = unpackPlacement(message.decision.placement);
  const drained = unpackPlacement(message.drained);
  const from = input.placement;
  const move: Move = {
    from,
    // One object for both says that nothing is drained.
    drained: drained.equals(from) ? from : drained,
    to,
    plan: Object.freeze({ ...plan, topology: input.topology }),
    program: readProgram(words),
    digest,
  };
  return { decision: { ...message.decision, placement: to }, move };
}

function packPlacement(placement: Placement): PlacementData {
  const { layers, ranks, slotsPerRank, experts } = placement;
  const map = placement.physicalToLogical;
  return { layers, ranks, slotsPerRank, experts, map };
}

function unpackPlacement({ map, ...shape }: PlacementData): Placement {
  return Placement.from(map, shape);
}

function packTopology(topology: Topology): TopologyData {
  const { nodeOf, intraNode, interNode, uplink } = topology;
  return { nodeOf, intraNode, interNode, uplink };
}

function unpackTopology({ nodeOf, ...rates }: TopologyData): Topology {
  const lists = Object.entries(rates).flatMap(([name, values]) =>
    values === undefined ? [] : [[name, Array.from(values)]]
  );
  return Topology.fromNodes(nodeOf, Object.fromEntries(lists));
}
