// SPDX-License-Identifier: Apache-2.0
// The ranks of a job: how many, where, and which of them this process holds.

import type { Cluster } from "../../cluster/cluster.ts";
import type { RankIdentity } from "../../cluster/identity.ts";
import type { DeviceInfo } from "../../native/structs.ts";
import { usesNccl } from "../../native/transport.ts";
import { type LinkRates, Topology } from "../../topology.ts";
import { fromOptions, UsageError } from "../command.ts";
import type { Flags } from "../flags.ts";
import { transportOf } from "./flags.ts";

/** Ranks when there are no GPUs to count. */
const DEFAULT_RANKS = 8;

/** Copy-engine rates into one GPU over NVLink, measured, in bytes per second. */
const MEASURED_RATES: Readonly<Record<string, number>> = {
  "NVIDIA H200": 396e9,
};

/** One rank among others that run in processes of their own. */
export interface Member {
  /** Which one. */
  readonly identity: RankIdentity;
  /** The way to the others. */
  readonly cluster: Cluster;
}

/** The ranks of a job, as one of its processes sees them. */
export interface World {
  /** All ranks, and their nodes. */
  readonly topology: Topology;
  /** Ranks of this process, ascending. */
  readonly locals: readonly number[];
  /** Device of each of `locals`. */
  readonly devices: readonly (number | "host")[];
}

/** Where a rank runs. */
interface Seat {
  readonly host: string;
  /** Bus id of the GPU that it may use, perhaps with other ranks; "" if there is none. */
  readonly gpu: string;
}

/** What one process sees of its machine. */
export interface Machine {
  /** Name of the host. */
  readonly host: string;
  /** Its GPUs, as far as this process may use them. */
  readonly gpus: readonly DeviceInfo[];
  /** Why there are none. */
  readonly reason: string;
}

/** Counts ranks, and gives each a device and a node; every process decides alike. */
export async function chooseWorld(
  flags: Flags,
  options: {
    readonly machine: Machine;
    readonly member: Member | undefined;
    /** Milliseconds. */
    readonly timeout: number;
  },
): Promise<World> {
  const { machine, member, timeout } = options;
  const { gpus } = machine;
  const seats = member === undefined
    ? seatsHere(flags, machine)
    : await seatsOfAll(member, { machine, timeout });
  const device = chooseDevice(flags, { seats, reason: machine.reason });
  const locals = member === undefined
    ? seats.map((_, rank) => rank)
    : [member.identity.rank];
  return {
    topology: await fromOptions(() =>
      chooseTopology(flags, { seats, device, gpus })
    ),
    locals,
    devices: locals.map((rank) => {
      if (device === "host") return device;
      return gpus.findIndex(({ pciBusId }) => pciBusId === seats[rank]!.gpu);
    }),
  };
}

function seatsHere(flags: Flags, { host, gpus }: Machine): Seat[] {
  const counted = flags.text("device") === "host" ? 0 : gpus.length;
  const ranks = flags.number("ranks") ?? (counted || DEFAULT_RANKS);
  return Array.from(
    { length: ranks },
    (_, rank) => ({ host, gpu: gpus[rank % gpus.length]?.pciBusId ?? "" }),
  );
}

/** Tells all ranks where this one runs. */
async function seatsOfAll(
  { identity, cluster }: Member,
  options: { readonly machine: Machine; readonly timeout: number },
): Promise<Seat[]> {
  const { machine: { host, gpus }, timeout } = options;
  // A launcher may show each rank its own GPU only, which is then number 0.
  const gpu = gpus[identity.localRank % gpus.length];
  const seat: Seat = { host, gpu: gpu?.pciBusId ?? "" };
  const payload = new TextEncoder().encode(JSON.stringify(seat));
  const all = await cluster.gather("seats", payload, { timeout });
  return all.map((bytes) => JSON.parse(new TextDecoder().decode(bytes)));
}

function chooseDevice(
  flags: Flags,
  options: { readonly seats: readonly Seat[]; readonly reason: string },
): "host" | "cuda" {
  const { seats, reason } = options;
  const device = flags.text("device") ?? "auto";
  const transport = transportOf(flags);
  const without = firstWithoutGpu(seats);
  const lack = `a GPU for each of ${seats.length} ranks: rank ${without} ` +
    `has none of its own${reason === "" ? "" : ` (${reason})`}`;
  // Ranks that only pull may share GPUs.
  const nccl = transport !== "auto" && usesNccl(transport);
  const enough = nccl ? without < 0 : seats.every(({ gpu }) => gpu !== "");
  if (device === "cuda" && !enough) {
    throw new UsageError(`--device cuda needs ${lack}`);
  }
  const chosen = device === "cuda" || (device === "auto" && without < 0)
    ? "cuda"
    : "host";
  if (nccl && chosen === "host") {
    throw new UsageError(
      device === "host"
        ? `--transport ${transport} moves GPU memory, and --device is host`
        : `--transport ${transport} needs ${lack}`,
    );
  }
  return chosen;
}

/** The first rank that has no GPU, or one that a rank before it has; -1 if all have. */
function firstWithoutGpu(seats: readonly Seat[]): number {
  const taken = new Set<string>();
  return seats.findIndex(({ host, gpu }) => {
    const name = `${host} ${gpu}`;
    if (gpu === "" || taken.has(name)) return true;
    taken.add(name);
    return false;
  });
}

/** `--nodes` equal nodes; else one per host. */
function chooseTopology(
  flags: Flags,
  options: {
    readonly seats: readonly Seat[];
    readonly device: "host" | "cuda";
    readonly gpus: readonly DeviceInfo[];
  },
): Topology {
  const { seats, device, gpus } = options;
  const measured = device === "cuda"
    ? MEASURED_RATES[gpus[0]!.name]
    : undefined;
  const intraNode = flags.rate("link-rate") ?? measured;
  const interNode = flags.rate("node-rate");
  const rates: LinkRates = {
    ...(intraNode === undefined ? {} : { intraNode }),
    ...(interNode === undefined ? {} : { interNode }),
  };
  const nodes = flags.number("nodes");
  if (nodes !== undefined) {
    return Topology.uniform({ ranks: seats.length, nodes, rates });
  }
  const hosts = seats.map(({ host }) => host);
  return Topology.fromNodes(hosts.map((host) => hosts.indexOf(host)), rates);
}
