// SPDX-License-Identifier: Apache-2.0
// Whether weights, placement, topology and transport fit each other; asked before
// anything is connected. And what of a move's options fits the transport.

import {
  type TransportName,
  usesNccl,
  writesDirectly,
} from "../native/transport.ts";
import type { ExpertWeights } from "../native/weights.ts";
import type { MoveOptions } from "./move.ts";
import type { EngineOptions } from "./options.ts";

/** Refuses options that contradict each other. */
export function checkFit(
  options: EngineOptions,
  ranks: readonly number[],
): void {
  const { placement, topology, weights } = options;
  if (weights.length === 0) {
    throw new RangeError("Cannot connect ranks: weights is empty");
  }
  if (ranks.length !== weights.length) {
    throw new RangeError(
      `Cannot connect ranks: ${weights.length} weights are given for ` +
        `${ranks.length} ranks`,
    );
  }
  if (placement.ranks !== topology.ranks) {
    throw new RangeError(
      `Cannot connect ranks: placement has ${placement.ranks} ranks, ` +
        `topology ${topology.ranks}`,
    );
  }
  weights.forEach((one, i) => checkWeights(one, ranks[i]!, options));
}

function checkWeights(
  one: ExpertWeights,
  rank: number,
  { placement, weights }: EngineOptions,
): void {
  const fail = (state: string): never => {
    throw new RangeError(`Cannot connect rank ${rank}: ${state}`);
  };
  if (one.layers !== placement.layers) {
    fail(`it has ${one.layers} layers, placement has ${placement.layers}`);
  }
  if (one.slots !== placement.slotsPerRank) {
    fail(
      `it has ${one.slots} slots, placement has ${placement.slotsPerRank} per rank`,
    );
  }
  if (String(one.tensorBytes) !== String(weights[0]!.tensorBytes)) {
    fail(
      `its tensors have ${one.tensorBytes} bytes per expert, ` +
        `those of the first rank ${weights[0]!.tensorBytes}`,
    );
  }
}

/** Chooses the transport, or refuses one that cannot work with these devices. */
export function chooseTransport(options: EngineOptions): TransportName {
  const devices = options.weights.map(({ device }) => device);
  const onHost = devices.filter((device) => device === "host").length;
  if (onHost > 0 && onHost < devices.length) {
    throw new RangeError(
      "Cannot connect ranks: some weights are on the host and some on GPUs",
    );
  }
  const wanted = options.transport ?? "auto";
  const transport = wanted !== "auto"
    ? wanted
    : onHost > 0 || options.topology.nodes === 1
    ? "pull"
    : "pull+nccl";
  if (!usesNccl(transport)) return transport;
  if (onHost > 0) {
    throw new RangeError(
      `Cannot use transport "${transport}": weights are in host memory, use "pull"`,
    );
  }
  if (new Set(devices).size < devices.length) {
    throw new RangeError(
      `Cannot use transport "${transport}": two ranks share a GPU (devices ${devices}), ` +
        'NCCL needs one GPU per rank; use "pull" inside a node',
    );
  }
  return transport;
}

/** A move's options, less what the transport cannot do. */
export function optionsFor(
  transport: TransportName,
  options: MoveOptions,
): MoveOptions {
  return writesDirectly(transport) ? options : { ...options, direct: false };
}
