// From the command line to a job: devices, ranks, nodes, sizes, maps.

import type { Cluster } from "../../cluster/cluster.ts";
import type { RankIdentity } from "../../cluster/identity.ts";
import type { TransportName } from "../../native/engine.ts";
import { NativeLibrary } from "../../native/library.ts";
import type { DeviceInfo } from "../../native/structs.ts";
import { INT32_MAX } from "../../_check.ts";
import { type LinkRates, Topology } from "../../topology.ts";
import { UsageError } from "../command.ts";
import type { Flags } from "../flags.ts";
import type { Job } from "./job.ts";
import { readJSON, readLoad, startPlacement } from "./maps.ts";
import { openSource, type WeightsSource } from "./source.ts";

/** Ranks when there are no GPUs to count. */
const DEFAULT_RANKS = 8;

/** Copy-engine rates into one GPU over NVLink, measured, in bytes per second. */
const MEASURED_RATES: Readonly<Record<string, number>> = {
  "NVIDIA H200": 396e9,
};

/** The part of the job that does not need the weights' sizes. */
export interface World {
  readonly library: NativeLibrary;
  readonly ranks: number;
  readonly device: "host" | "cuda";
  readonly gpus: readonly DeviceInfo[];
}

/** Counts ranks and chooses the device. */
export function chooseWorld(
  flags: Flags,
  identity: RankIdentity | undefined,
): World {
  const library = NativeLibrary.open();
  const { devices: gpus, reason } = library.devices();
  const asked = identity?.worldSize ?? flags.number("ranks");
  const wanted = flags.text("device") ?? "auto";
  const ranks = asked ??
    (wanted !== "host" && gpus.length > 0 ? gpus.length : DEFAULT_RANKS);
  if (ranks < 1 || ranks > INT32_MAX) {
    throw new UsageError(`--ranks must be at least 1: it is ${ranks}`);
  }
  // One rank of a bigger job sees only its own node's GPUs.
  const enough = identity === undefined
    ? gpus.length >= ranks
    : gpus.length > 0;
  if (wanted === "cuda" && !enough) {
    throw new UsageError(
      `--device cuda needs a GPU for each of ${ranks} ranks: ` +
        (gpus.length === 0 ? reason : `there are ${gpus.length}`),
    );
  }
  const device = wanted !== "host" && enough ? "cuda" : "host";
  const transport = flags.text("transport");
  if (transport === "nccl" && device === "host") {
    throw new UsageError(
      `--transport nccl needs a GPU for each of ${ranks} ranks: ${
        wanted === "host"
          ? "--device is host"
          : reason || `there are ${gpus.length}`
      }`,
    );
  }
  if (transport === "pull" && device === "cuda") {
    throw new UsageError(
      "--transport pull moves host memory: add --device host, or use nccl",
    );
  }
  return { library, ranks, device, gpus };
}

/** Works out the whole job of this process. */
export async function setUp(
  flags: Flags,
  world: World,
  member: {
    readonly identity: RankIdentity | undefined;
    readonly cluster: Cluster | undefined;
  },
): Promise<Job> {
  const { ranks, device, gpus } = world;
  const { identity, cluster } = member;
  const file = await startFile(flags);
  const source = await openSource(flags, { layers: file?.layers });
  try {
    const shape = {
      layers: source.layers,
      ranks,
      slotsPerRank: slotsPerRank(flags, { ranks, source, file }),
      experts: source.experts,
    };
    const locals = identity === undefined
      ? Array.from({ length: ranks }, (_, rank) => rank)
      : [identity.rank];
    const firstDevice = identity?.localRank ?? 0;
    return {
      library: world.library,
      topology: await chooseTopology(flags, world, cluster),
      shape,
      source,
      from: startPlacement(file?.value, shape),
      to: flags.text("to") ?? "random:1",
      load: await readLoad(flags.text("load"), shape),
      locals,
      devices: locals.map((_, i) =>
        device === "host" ? "host" : (firstDevice + i) % gpus.length
      ),
      transport: (flags.text("transport") ?? "auto") as TransportName | "auto",
      sources: (flags.text("sources") ?? "balanced") as "balanced" | "chunked",
      staging: staging(flags),
      maxOpsPerGroup: flags.number("max-ops"),
      maxCtas: flags.number("max-ctas"),
      verify: !flags.has("no-verify"),
      repeat: Math.max(1, flags.number("repeat") ?? 1),
      timeout: Math.round(1e3 * (flags.number("timeout") ?? 60)),
      save: flags.text("save"),
      cluster,
    };
  } catch (error) {
    source[Symbol.dispose]();
    throw error;
  }
}

interface StartFile {
  readonly value: unknown;
  readonly layers: number;
  readonly slots: number;
}

/** The file of `--from`, with the sizes it implies. */
async function startFile(flags: Flags): Promise<StartFile | undefined> {
  const path = flags.text("from");
  if (path === undefined || path === "contiguous") return undefined;
  const value = await readJSON(path);
  const rows = (value as { physical_to_logical_map?: unknown[][] })
    ?.physical_to_logical_map;
  return { value, layers: rows?.length ?? 0, slots: rows?.[0]?.length ?? 0 };
}

function slotsPerRank(
  flags: Flags,
  sizes: {
    readonly ranks: number;
    readonly source: WeightsSource;
    readonly file: StartFile | undefined;
  },
): number {
  const { ranks, source, file } = sizes;
  const given = flags.number("slots");
  if (given !== undefined) return given;
  if (file !== undefined && file.slots > 0) {
    return Math.ceil(file.slots / ranks);
  }
  // Room for one redundant expert on each rank.
  return Math.ceil(source.experts / ranks) + 1;
}

function staging(flags: Flags): Job["staging"] {
  const bytes = flags.number("staging");
  const sets = flags.number("staging-sets");
  if (sets !== undefined && sets !== 1 && sets !== 2) {
    throw new UsageError(`--staging-sets must be 1 or 2: it is ${sets}`);
  }
  return {
    ...(bytes === undefined ? {} : { bytes }),
    ...(sets === undefined ? {} : { sets }),
  };
}

/** `--nodes` equal nodes; else one per host name among the processes. */
async function chooseTopology(
  flags: Flags,
  world: World,
  cluster: Cluster | undefined,
): Promise<Topology> {
  const { ranks } = world;
  const rates = linkRates(flags, world);
  const nodes = flags.number("nodes");
  if (nodes !== undefined || cluster === undefined) {
    return Topology.uniform({ ranks, nodes: nodes ?? 1, rates });
  }
  const name = new TextEncoder().encode(Deno.hostname());
  const names = (await cluster.gather("host names", name))
    .map((bytes) => new TextDecoder().decode(bytes));
  return Topology.fromNodes(names.map((one) => names.indexOf(one)), rates);
}

function linkRates(flags: Flags, { device, gpus }: World): LinkRates {
  const intra = flags.number("link-rate");
  const inter = flags.number("node-rate");
  const measured = device === "cuda"
    ? MEASURED_RATES[gpus[0]?.name ?? ""]
    : undefined;
  const intraNode = intra === undefined ? measured : intra * 1e9;
  return {
    ...(intraNode === undefined ? {} : { intraNode }),
    ...(inter === undefined ? {} : { interNode: inter * 1e9 }),
  };
}
