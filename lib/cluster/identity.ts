// SPDX-License-Identifier: Apache-2.0

/**
 * Which rank this process is, as its launcher says.
 *
 * @module
 */

/** Who started the ranks. */
export type IdentitySource = "eplb" | "torchrun" | "openmpi" | "slurm";

/** What a process must know to join the others. */
export interface RankIdentity {
  /** This rank, 0 … worldSize - 1. */
  readonly rank: number;
  /** Number of ranks. */
  readonly worldSize: number;
  /** This rank among those of its machine; usually also its GPU. */
  readonly localRank: number;
  /** Host of the store: the machine of rank 0, or of the launcher. */
  readonly storeHost: string;
  /** Port of the store. */
  readonly storePort: number;
  /** The secret that the store expects. */
  readonly token: string;
  /** Who said so. */
  readonly source: IdentitySource;
}

/**
 * Port of the store where nothing says otherwise: one above the default of
 * `MASTER_PORT`, 29500.
 */
export const DEFAULT_STORE_PORT = 29501;

/** Reads one environment variable. */
type Read = (name: string) => string | undefined;

/** The variables of one launcher. */
interface Launcher {
  readonly source: IdentitySource;
  readonly rank: string;
  readonly worldSize: string;
  readonly localRank: string;
  /** Variables that name the job, the first one that is set counts. */
  readonly job: readonly string[];
  /** Host of rank 0 where neither `EPLB_STORE` nor `MASTER_ADDR` says it. */
  readonly host?: (read: Read) => string | undefined;
}

/**
 * Launchers, inner ones first: `torchrun` and `mpirun` start ranks inside a
 * Slurm job, whose variables then count their daemons, not the ranks.
 */
const LAUNCHERS: readonly Launcher[] = [
  {
    source: "eplb",
    rank: "EPLB_RANK",
    worldSize: "EPLB_WORLD_SIZE",
    localRank: "EPLB_LOCAL_RANK",
    job: [],
  },
  {
    source: "torchrun",
    rank: "RANK",
    worldSize: "WORLD_SIZE",
    localRank: "LOCAL_RANK",
    job: ["TORCHELASTIC_RUN_ID"],
  },
  {
    source: "openmpi",
    rank: "OMPI_COMM_WORLD_RANK",
    worldSize: "OMPI_COMM_WORLD_SIZE",
    localRank: "OMPI_COMM_WORLD_LOCAL_RANK",
    job: ["PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid", "SLURM_JOB_ID"],
    host: openMpiHost,
  },
  {
    source: "slurm",
    rank: "SLURM_PROCID",
    worldSize: "SLURM_NTASKS",
    localRank: "SLURM_LOCALID",
    job: ["SLURM_JOB_ID"],
    host: slurmHost,
  },
];

/**
 * Reads this process' rank from its environment.
 *
 * The first launcher whose rank variable is set counts:
 *
 * | source | rank | world size | local rank | job |
 * |---|---|---|---|---|
 * | `eplb` | `EPLB_RANK` | `EPLB_WORLD_SIZE` | `EPLB_LOCAL_RANK` | |
 * | `torchrun` | `RANK` | `WORLD_SIZE` | `LOCAL_RANK` | `TORCHELASTIC_RUN_ID` |
 * | `openmpi` | `OMPI_COMM_WORLD_RANK` | `OMPI_COMM_WORLD_SIZE` | `OMPI_COMM_WORLD_LOCAL_RANK` | `PMIX_NAMESPACE`, … |
 * | `slurm` | `SLURM_PROCID` | `SLURM_NTASKS` | `SLURM_LOCALID` | `SLURM_JOB_ID` |
 *
 * The store is at `EPLB_STORE` (`host:port`) if that is set. Else its host is
 * `MASTER_ADDR`; or under Slurm the first host of the step or the job; or under
 * Open MPI this machine, if all ranks are on it. Its port is `EPLB_STORE_PORT`;
 * or one above `MASTER_PORT`, where torchrun has a store of its own; or
 * {@linkcode DEFAULT_STORE_PORT}.
 *
 * The token is `EPLB_TOKEN`. Without it one is made from the job's name, which
 * keeps jobs from meeting by mistake, but is no secret.
 *
 * @param env Reads one variable: `(name) => Deno.env.get(name)`.
 * @returns The identity, or `undefined` where no launcher is at work.
 * @throws {RangeError} If a variable that is needed is not set, is not what it
 * should be, or contradicts another one.
 *
 * @example Under torchrun
 * ```ts
 * import { rankIdentity } from "@eplb/eplb";
 * import { assertEquals } from "@std/assert";
 *
 * const env = new Map([
 *   ["RANK", "3"],
 *   ["WORLD_SIZE", "8"],
 *   ["LOCAL_RANK", "3"],
 *   ["MASTER_ADDR", "node0"],
 *   ["MASTER_PORT", "29500"],
 * ]);
 * const identity = rankIdentity((name) => env.get(name));
 * assertEquals(identity?.rank, 3);
 * assertEquals(identity?.storePort, 29501);
 * assertEquals(rankIdentity(() => undefined), undefined);
 * ```
 */
export function rankIdentity(
  env: (name: string) => string | undefined,
): RankIdentity | undefined {
  // A variable that is set to nothing says nothing.
  const read: Read = (name) => env(name)?.trim() || undefined;
  const launcher = LAUNCHERS.find(({ rank }) => read(rank) !== undefined);
  if (launcher === undefined) return refuseHalf(read);
  const worldSize = readInteger(read, launcher.worldSize, 1);
  const rank = readInteger(read, launcher.rank, 0);
  const localRank = readInteger(read, launcher.localRank, 0);
  if (rank >= worldSize || localRank >= worldSize) {
    throw new RangeError(
      `Cannot read rank: ${launcher.rank} is ${rank} and ` +
        `${launcher.localRank} is ${localRank} but ${launcher.worldSize} is ` +
        `${worldSize}`,
    );
  }
  const [storeHost, storePort] = readStore(read, launcher);
  const token = readToken(read, launcher, `${storeHost}:${storePort}`);
  const { source } = launcher;
  return { rank, worldSize, localRank, storeHost, storePort, token, source };
}

/** A world without a rank is a launcher's mistake, not the absence of one. */
function refuseHalf(read: Read): undefined {
  for (const { rank, worldSize, source } of LAUNCHERS) {
    // Slurm sets its number of tasks for the job, outside of any rank.
    if (source === "slurm" || read(worldSize) === undefined) continue;
    throw new RangeError(
      `Cannot read rank: ${worldSize} is "${read(worldSize)}" but ${rank} ` +
        `is not set`,
    );
  }
}

function readInteger(read: Read, name: string, least: number): number {
  const text = read(name);
  if (text === undefined) {
    throw new RangeError(`Cannot read rank: ${name} is not set`);
  }
  if (/^\d{1,10}$/.test(text) && Number(text) >= least) return Number(text);
  throw new RangeError(
    `Cannot read rank: ${name} must be an integer >= ${least}: ` +
      `current value is "${text}"`,
  );
}

function readStore(read: Read, launcher: Launcher): [string, number] {
  const store = read("EPLB_STORE");
  if (store !== undefined) return parseAddress(store);
  if (launcher.source === "eplb") {
    throw new RangeError("Cannot read rank: EPLB_STORE is not set");
  }
  const host = read("MASTER_ADDR") ?? launcher.host?.(read);
  if (host === undefined) {
    throw new RangeError(
      "Cannot read rank: MASTER_ADDR is not set: it must name the host of " +
        "rank 0",
    );
  }
  return [host, readPort(read)];
}

function readPort(read: Read): number {
  if (read("EPLB_STORE_PORT") !== undefined) {
    return checkPort(read("EPLB_STORE_PORT")!, "EPLB_STORE_PORT");
  }
  const master = read("MASTER_PORT");
  if (master === undefined) return DEFAULT_STORE_PORT;
  const port = checkPort(master, "MASTER_PORT") + 1;
  if (port < 65536) return port;
  throw new RangeError(
    `Cannot read rank: MASTER_PORT is ${master}, which leaves no port above ` +
      `it for the store: set EPLB_STORE_PORT`,
  );
}

function checkPort(text: string, name: string): number {
  const port = /^\d{1,5}$/.test(text) ? Number(text) : 0;
  if (port >= 1 && port <= 65535) return port;
  throw new RangeError(
    `Cannot read rank: ${name} must hold a port from 1 to 65535: ` +
      `current value is "${text}"`,
  );
}

/** Takes "host:port" apart; an IPv6 address stands in brackets. */
function parseAddress(address: string): [string, number] {
  const parts = /^(?:\[([^\]]+)\]|([^:]+)):(\d+)$/.exec(address);
  const host = parts?.[1] ?? parts?.[2];
  if (host !== undefined) return [host, checkPort(parts![3]!, "EPLB_STORE")];
  throw new RangeError(
    `Cannot read rank: EPLB_STORE must be "host:port": ` +
      `current value is "${address}"`,
  );
}

function readToken(read: Read, launcher: Launcher, address: string): string {
  const token = read("EPLB_TOKEN");
  if (token !== undefined) return token;
  if (launcher.source === "eplb") {
    throw new RangeError("Cannot read rank: EPLB_TOKEN is not set");
  }
  const job = launcher.job.find((name) => read(name) !== undefined);
  return `${launcher.source} ${job ? read(job) : address}`;
}

/** Open MPI does not say where rank 0 is, unless everyone is here. */
function openMpiHost(read: Read): string | undefined {
  const local = read("OMPI_COMM_WORLD_LOCAL_SIZE");
  return local === read("OMPI_COMM_WORLD_SIZE") ? "127.0.0.1" : undefined;
}

/** Rank 0 is on the first host of its step, in the usual distributions. */
function slurmHost(read: Read): string | undefined {
  for (const name of ["SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST"]) {
    const list = read(name);
    if (list !== undefined) return firstHost(list, name);
  }
  return read("SLURM_LAUNCH_NODE_IPADDR");
}

/** The first host of a list such as "gpu[03-05,7],cpu1". */
function firstHost(list: string, name: string): string {
  const first = /^((?:[^,[\]]|\[[^[\]]*\])+)(?:,|$)/.exec(list)?.[1] ?? "";
  const host = first.replace(/\[(\w+)[^\]]*\]/g, "$1");
  if (/^[\w.-]+$/.test(host)) return host;
  throw new RangeError(
    `Cannot read rank: ${name} must begin with a host: current value is ` +
      `"${list}": set MASTER_ADDR`,
  );
}
