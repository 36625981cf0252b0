// SPDX-License-Identifier: Apache-2.0
// All ranks of a job, as one process sees them: some are its own, the others are
// reached through a cluster's store. Alone in the world, every exchange is local.

import type { Cluster } from "../cluster/cluster.ts";
import { describeFailure } from "../cluster/failure.ts";
import type { WaitOptions } from "../cluster/wait.ts";

/** One point in time, and one signal, that bound several waits in a row. */
export class Deadline implements WaitOptions {
  readonly #end: number;
  readonly signal: AbortSignal | undefined;

  constructor(milliseconds: number, signal?: AbortSignal) {
    if (!(milliseconds > 0 && milliseconds <= MAX_TIMEOUT)) {
      throw new RangeError(
        `Cannot wait ${milliseconds} ms: a timeout must be in 1 … ${MAX_TIMEOUT}`,
      );
    }
    this.#end = Date.now() + milliseconds;
    this.signal = signal;
  }

  /** Milliseconds left, at least 1: a wait of 0 would mean something else. */
  get remaining(): number {
    return Math.max(1, Math.ceil(this.#end - Date.now()));
  }

  /** The same, under the name that gathers know it by. */
  get timeout(): number {
    return this.remaining;
  }
}

/** Longest timer that JavaScript runs, about 24 days. */
const MAX_TIMEOUT = 2 ** 31 - 1;

/** The ranks of a job, and the exchange of small payloads between their processes. */
export class World {
  readonly #cluster: Cluster | undefined;
  /** Ranks in the whole job. */
  readonly size: number;
  /** Ranks of this process, ascending. */
  readonly locals: readonly number[];
  /** Ranks of each member process, by member. */
  readonly #members: readonly (readonly number[])[];

  private constructor(
    size: number,
    locals: readonly number[],
    members: readonly (readonly number[])[],
    cluster: Cluster | undefined,
  ) {
    this.size = size;
    this.locals = locals;
    this.#members = members;
    this.#cluster = cluster;
  }

  /** Learns which process holds which ranks; every rank must be held exactly once. */
  static async join(
    locals: readonly number[],
    options: {
      readonly size: number;
      readonly cluster: Cluster | undefined;
      readonly deadline: Deadline;
    },
  ): Promise<World> {
    const { size, cluster, deadline } = options;
    checkRanks(locals, size);
    const members = cluster === undefined
      ? [locals]
      : (await cluster.gather("ranks", encode(locals), deadline)).map(decode);
    const holder = new Int32Array(size).fill(-1);
    for (const [member, ranks] of members.entries()) {
      checkRanks(ranks, size);
      for (const rank of ranks) {
        if (holder[rank] !== -1) {
          throw new RangeError(
            `Cannot join the job: rank ${rank} is held by process ${
              holder[rank]
            } and by process ${member}`,
          );
        }
        holder[rank] = member;
      }
    }
    const missing = holder.indexOf(-1);
    if (missing !== -1) {
      throw new RangeError(
        `Cannot join the job: no process holds rank ${missing} of ${size}`,
      );
    }
    return new World(size, locals, members, cluster);
  }

  /** Whether other processes take part. */
  get distributed(): boolean {
    return this.#members.length > 1;
  }

  /** Gives each process' payload to every process. */
  async exchange(
    name: string,
    payload: Uint8Array,
    deadline: Deadline,
  ): Promise<Uint8Array[]> {
    return this.#cluster === undefined
      ? [payload]
      : await this.#cluster.gather(name, payload, deadline);
  }

  /** Gives each rank's payload to every process; `local` in the order of `locals`. */
  async gather(
    name: string,
    local: readonly Uint8Array[],
    deadline: Deadline,
  ): Promise<Uint8Array[]> {
    const byRank = new Array<Uint8Array>(this.size);
    const packed = await this.exchange(name, pack(local), deadline);
    for (const [member, ranks] of this.#members.entries()) {
      const payloads = unpack(packed[member]!);
      ranks.forEach((rank, i) => byRank[rank] = payloads[i]!);
    }
    return byRank;
  }

  /** Gives one number per process to every process. */
  async gatherNumbers(
    name: string,
    value: number,
    deadline: Deadline,
  ): Promise<number[]> {
    const payloads = await this.exchange(name, encode([value]), deadline);
    return payloads.map((payload) => decode(payload)[0]!);
  }

  /** Gives one number per process to every process that is still alive. */
  async gatherSurvivors(
    name: string,
    value: number,
    deadline: Deadline,
  ): Promise<number[]> {
    if (this.#cluster === undefined) return [value];
    const payloads = await this.#cluster.gatherSurvivors(
      name,
      encode([value]),
      deadline,
    );
    return [...payloads.values()].map((payload) => decode(payload)[0]!);
  }

  /** Tells the others that this process gives up. */
  fail(reason: string): void {
    this.#cluster?.fail(reason);
  }

  /**
   * Calls back when another process is lost or gives up, with the first of its
   * ranks; returns a function that ends the subscription.
   */
  onFailure(callback: (rank: number, reason: string) => void): () => void {
    if (this.#cluster === undefined) return () => {};
    return this.#cluster.onFailure((failure) =>
      callback(this.rankOf(failure.ranks), describeFailure(failure))
    );
  }

  /** First rank of a process, by the order in which {@linkcode exchange} returns payloads. */
  firstRankOf(member: number): number {
    return this.#members[member]![0]!;
  }

  /** The rank to blame when these members are lost; -1 if there are none. */
  rankOf(members: readonly number[]): number {
    const member = members[0];
    if (member === undefined) return -1;
    return this.#members[member]?.[0] ?? member;
  }
}

function checkRanks(ranks: readonly number[], size: number): void {
  ranks.forEach((rank, i) => {
    if (!Number.isInteger(rank) || rank < 0 || rank >= size) {
      throw new RangeError(
        `Cannot join the job: rank ${rank} is outside 0 … ${size - 1}`,
      );
    }
    if (i > 0 && ranks[i - 1]! >= rank) {
      throw new RangeError(
        `Cannot join the job: local ranks ${ranks} are not ascending`,
      );
    }
  });
}

function encode(values: readonly number[]): Uint8Array {
  return new TextEncoder().encode(JSON.stringify(values));
}

function decode(payload: Uint8Array): number[] {
  return JSON.parse(new TextDecoder().decode(payload));
}

/** Several payloads in one: count, lengths (u32 little endian), bytes. */
function pack(payloads: readonly Uint8Array[]): Uint8Array {
  const header = 4 * (payloads.length + 1);
  const total = payloads.reduce((sum, { length }) => sum + length, header);
  const packed = new Uint8Array(total);
  const view = new DataView(packed.buffer);
  view.setUint32(0, payloads.length, true);
  let offset = header;
  payloads.forEach((payload, i) => {
    view.setUint32(4 * (i + 1), payload.length, true);
    packed.set(payload, offset);
    offset += payload.length;
  });
  return packed;
}

function unpack(packed: Uint8Array): Uint8Array[] {
  const view = new DataView(packed.buffer, packed.byteOffset, packed.length);
  const count = view.getUint32(0, true);
  let offset = 4 * (count + 1);
  return Array.from({ length: count }, (_, i) => {
    const length = view.getUint32(4 * (i + 1), true);
    const payload = packed.slice(offset, offset + length);
    offset += length;
    return payload;
  });
}
