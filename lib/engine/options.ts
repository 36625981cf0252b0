// SPDX-License-Identifier: Apache-2.0

import type { Cluster } from "../cluster/cluster.ts";
import type { WaitOptions } from "../cluster/wait.ts";
import type { MigrationCounts, MigrationPlan } from "../migration/plan.ts";
import type { SourceChoice } from "../migration/sources.ts";
import type { Traffic } from "../migration/traffic.ts";
import type { NativeLibrary } from "../native/library.ts";
import type { TransportName } from "../native/transport.ts";
import type { ExpertWeights } from "../native/weights.ts";
import type { Placement } from "../placement.ts";
import type { Topology } from "../topology.ts";
import type { Mismatch } from "./canary.ts";
import type { StagingOptions } from "./staging.ts";

/** Options of {@linkcode Engine.connect}. */
export interface EngineOptions {
  /** The native library. */
  readonly library: NativeLibrary;
  /** Which rank is on which node, for all ranks of the job. */
  readonly topology: Topology;
  /** What the weights hold now, for all ranks of the job. */
  readonly placement: Placement;
  /** Expert memory of the ranks of this process. */
  readonly weights: readonly ExpertWeights[];
  /**
   * The ranks that `weights` belong to, ascending.
   *
   * @default {0, 1, … in the order of `weights`}
   */
  readonly ranks?: readonly number[];
  /**
   * How bytes move: `pull` maps peers' memory, on one host or between the GPUs of one node;
   * `nccl` sends and receives, with one GPU per rank; `pull+nccl` pulls between GPUs of one node
   * and host that belong to different processes, and uses NCCL between all others. `auto` is
   * `pull+nccl` for GPUs on several nodes of the topology, else `pull`.
   *
   * `nccl-put` is for the GPUs of one NVLink domain that cannot map each other's memory: in
   * containers of their own, or on several hosts. Copy engines put experts into the staging memory
   * of other ranks, with one GPU per rank and NCCL 2.29 or later; no slot is written directly.
   *
   * @default {"auto"}
   */
  readonly transport?: TransportName | "auto";
  /** Bound on staging memory; default: two sets of as many experts as a rank has slots. */
  readonly staging?: StagingOptions;
  /**
   * Sends and receives of one rank in one NCCL group. Large unbounded groups hang.
   *
   * @default {64}
   */
  readonly maxOpsPerGroup?: number;
  /**
   * Thread blocks that NCCL may use; 0 leaves the choice to NCCL.
   *
   * @default {0}
   */
  readonly maxCtas?: number;
  /**
   * Tensors of up to this many bytes per expert are moved together: one message of NCCL,
   * one kernel where GPUs pull or put.
   *
   * @default {1048576}
   */
  readonly smallBytes?: number;
  /**
   * Whether GPUs that pull or put leave all multiprocessors to others, but for small tensors: all
   * goes by copy engine then. Otherwise bytes that stay on a GPU, also those packed to be put, go by
   * kernels of 32 or 64 thread blocks; and so do bytes for other GPUs with `pull` where there are
   * three and more, as copy engines send to one after the other. What NCCL sends takes what it
   * takes. For moves beside a model that runs.
   *
   * @default {false}
   */
  readonly copyEngineOnly?: boolean;
  /** The other processes of the job; none if this process holds all ranks. */
  readonly cluster?: Cluster;
  /**
   * Limit of the wait for other ranks, in milliseconds.
   *
   * @default {60000}
   */
  readonly timeout?: number;
  /** Ends the wait early. */
  readonly signal?: AbortSignal;
}

/**
 * How fast weights may move.
 *
 * @example Eight experts into each rank, in 40 ms
 * ```ts
 * import { Engine, ExpertLayout, ExpertWeights, NativeLibrary, Placement, Topology } from "@eplb/eplb";
 * import { assert } from "@std/assert";
 *
 * const library = NativeLibrary.open();
 * const layout = new ExpertLayout([{ name: "w", dtype: "U8", shape: [1000] }]);
 * const weights = await Promise.all(Array.from({ length: 2 }, () =>
 *   ExpertWeights.allocate(library, { layout, layers: 4, slots: 2 })
 * ));
 * const engine = await Engine.connect({
 *   library,
 *   topology: Topology.uniform({ ranks: 2, nodes: 1 }),
 *   placement: Placement.contiguous({ layers: 4, ranks: 2, slotsPerRank: 2, experts: 4 }),
 *   weights,
 * });
 * const row = [2, 3, 0, 1];
 * const to = Placement.from([row, row, row, row], { ranks: 2 });
 * const { moveSeconds } = await engine.rearrange(to, { maxRate: 200e3 }); // 200 kB/s
 * assert(moveSeconds >= 0.04);
 *
 * await engine.close();
 * for (const one of weights) one.close();
 * ```
 */
export interface RateOptions {
  /**
   * The most bytes per second that each rank gathers, on average over the move, so that a model
   * beside it hardly notices: 20e9 is 20 GB/s. A rank gathers what it receives from others and what
   * it copies inside. A batch of layers begins when the bound allows all before it, and then goes as
   * fast as it can; the move ends when the bound allows all of it. The timeout must leave time for
   * that. Processes may differ: all wait for the slowest.
   *
   * @default {no bound}
   */
  readonly maxRate?: number | undefined;
}

/** Options of {@linkcode Engine.begin}. */
export interface BeginOptions extends WaitOptions, RateOptions {}

/** Options of {@linkcode Engine.rearrange}. */
export interface RearrangeOptions extends RateOptions {
  /**
   * Which holder sends: spread over all of them, or SGLang's contiguous chunks.
   *
   * @default {"balanced"}
   */
  readonly sources?: SourceChoice;
  /**
   * Whether slots that nobody reads, and whose expert lives on elsewhere, are written without
   * staging; see {@linkcode directSlots}. After a failure such slots are empty. With the transport
   * `nccl-put` all are staged nevertheless.
   *
   * @default {false}
   */
  readonly direct?: boolean;
  /**
   * Whether an expert enters a node once and goes on to the other ranks of the node from there.
   *
   * @default {true}
   */
  readonly relay?: boolean;
  /**
   * Whether to compare a digest of every expert before and after.
   *
   * @default {false}
   */
  readonly verify?: boolean;
  /**
   * Limit of the whole call, in milliseconds.
   *
   * @default {60000}
   */
  readonly timeout?: number;
  /** Ends the call early; layers not yet committed stay as they were. */
  readonly signal?: AbortSignal;
  /** Called a few times a second with the layers committed so far, and the layers in all. */
  readonly onProgress?: (committed: number, layers: number) => void;
}

/** What a rearrangement did. */
export interface RearrangeResult {
  /** The plans that were executed, one after the other; several if staging or nodes ask for it. */
  readonly plans: readonly MigrationPlan[];
  /**
   * Slots by where the nearest holder of their expert was at first: on their rank, their node, or
   * another node; whatever way it took.
   */
  readonly moves: MigrationCounts;
  /** Bytes of all plans, per rank and node. */
  readonly traffic: Traffic;
  /** Seconds to compute plan and program. */
  readonly planSeconds: number;
  /**
   * Seconds from the first byte to the last commit, or to the end that `maxRate` sets, of the
   * slowest rank.
   */
  readonly moveSeconds: number;
  /** The least time that the topology's link rates allow; undefined if they are unknown. */
  readonly lowerBoundSeconds: number | undefined;
  /** Bytes into the busiest rank, in gigabytes (1e9) per second of `moveSeconds`. */
  readonly gigabytesPerSecond: number;
  /** Whether the digests were compared and all agree; undefined without `verify`. */
  readonly verified: boolean | undefined;
  /** Tensors whose digest is not their source's. */
  readonly mismatches: readonly Mismatch[];
}
