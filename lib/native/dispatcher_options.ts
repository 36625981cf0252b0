// SPDX-License-Identifier: Apache-2.0
// What the calls of a dispatcher take and give.

/** Sizes of a `Dispatcher`, and where it is. */
export interface DispatcherOptions {
  /** MoE layers. */
  readonly layers: number;
  /** Logical experts of each layer. */
  readonly experts: number;
  /** Replicas of one expert that the tables have room for. */
  readonly maxReplicas: number;
  /**
   * CUDA device number, or "host".
   *
   * @default {"host"}
   */
  readonly device?: number | "host";
}

/** Options of `Dispatcher.update`. */
export interface UpdateTablesOptions {
  /**
   * The `cudaStream_t` whose later launches use the tables.
   *
   * @default {the default stream}
   */
  readonly stream?: bigint;
  /**
   * Milliseconds to wait while the last update of one of the layers is still queued on its stream.
   *
   * @default {60_000}
   */
  readonly timeout?: number;
}

/** Options of `Dispatcher.dispatch`. */
export interface DispatchOptions {
  /** The layer, 0 … layers-1. */
  readonly layer: number;
  /** Experts of each token. */
  readonly topK: number;
  /**
   * Rows from this one on are padding.
   *
   * @default {all rows are tokens}
   */
  readonly validTokens?: number;
  /**
   * An integer from 0 to 2³² − 1: another one sends the same rows to other replicas.
   *
   * @default {0}
   */
  readonly salt?: number;
  /**
   * Whether tokens are counted.
   *
   * @default {true}
   */
  readonly record?: boolean;
}

/** Options of `Dispatcher.launch`; addresses are on the dispatcher's device. */
export interface DispatchLaunchOptions {
  /** The layer, 0 … layers-1. */
  readonly layer: number;
  /** Address of the logical ids, [tokens, topK]. */
  readonly logical: bigint;
  /** Address of the physical ids, [tokens, topK]; may be that of the logical ones. */
  readonly physical: bigint;
  /** Rows. */
  readonly tokens: number;
  /** Experts of each token. */
  readonly topK: number;
  /**
   * Bytes of one id: int32 or int64.
   *
   * @default {4}
   */
  readonly idBytes?: 4 | 8;
  /**
   * Address of an int32 that is read when the kernel runs: rows from this one on are padding.
   *
   * @default {all rows are tokens}
   */
  readonly validTokens?: bigint;
  /**
   * An integer from 0 to 2³² − 1: another one sends the same rows to other replicas.
   *
   * @default {0}
   */
  readonly salt?: number;
  /**
   * Address of a uint32 that is read when the kernel runs and added to `salt`, so that a captured
   * graph can send the same rows to other replicas in each step.
   *
   * @default {nothing is added}
   */
  readonly stepSalt?: bigint;
  /**
   * The `cudaStream_t` to launch on.
   *
   * @default {the default stream}
   */
  readonly stream?: bigint;
  /**
   * Whether tokens are counted.
   *
   * @default {true}
   */
  readonly record?: boolean;
}

/** Options of `Dispatcher.snapshot`. */
export interface SnapshotLoadsOptions {
  /**
   * The `cudaStream_t` whose launches so far are in the snapshot.
   *
   * @default {the default stream}
   */
  readonly stream?: bigint;
}

/** Options of `Dispatcher.read`. */
export interface ReadLoadsOptions {
  /**
   * Milliseconds to wait for the stream of the snapshot.
   *
   * @default {60_000}
   */
  readonly timeout?: number;
}

/** Where the arrays of a `Dispatcher` are; these addresses never change. */
export interface DispatchAddresses {
  /** int32 [layers, experts, maxReplicas]: slots listed, padded with -1. */
  readonly logicalToPhysical: bigint;
  /** int32 [layers, experts]: how many. */
  readonly replicaCount: bigint;
  /** uint32 [layers, experts, maxReplicas]: running sum of the shares × 2³². */
  readonly thresholds: bigint;
  /** uint64 [layers, experts]: tokens counted since the last snapshot. */
  readonly loads: bigint;
}
