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
    readonly moves: readonly MoveData[];
    readonly cases: Uint8Array;
  };

/** A move that can go to another thread; where it begins is known there. */
interface MoveData {
  readonly plan: Omit<MigrationPlan, "topology">;
  readonly drained: PlacementData;
  readonly to: PlacementData;
  readonly words: Program["words"];
  readonly digest: string;
}

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
  { decision, moves, cases }: Planned,
): AnswerMessage {
  return {
    id,
    decision: { ...decision, placement: packPlacement(decision.placement) },
    moves: moves.map(packMove),
    cases,
  };
}

/** Reads an answer to a request. */
export function unpackAnswer(
  message: Exclude<AnswerMessage, { error: string }>,
  { input }: PlanRequest,
): Planned {
  const { decision, cases } = message;
  const moves: Move[] = [];
  for (const data of message.moves) {
    const from = moves.at(-1)?.to ?? input.placement;
    moves.push(unpackMove(data, from, input.topology));
  }
  return {
    decision: { ...decision, placement: moves.at(-1)!.to },
    moves,
    cases,
  };
}

function packMove({ plan, drained, to, program, digest }: Move): MoveData {
  const { topology: _, ...rest } = plan;
  return {
    plan: rest,
    drained: packPlacement(drained),
    to: packPlacement(to),
    words: program.words,
    digest,
  };
}

function unpackMove(
  { plan, words, digest, ...data }: MoveData,
  from: Placement,
  topology: Topology,
): Move {
  const drained = unpackPlacement(data.drained);
  return {
    from,
    // One object for both says that nothing is drained.
    drained: drained.equals(from) ? from : drained,
    to: unpackPlacement(data.to),
    plan: Object.freeze({ ...plan, topology }),
    program: readProgram(words),
    digest,
  };
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
