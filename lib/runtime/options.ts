// SPDX-License-Identifier: Apache-2.0

/**
 * What an {@linkcode EplbState} and its models are made of.
 *
 * @module
 */
import { checkInteger, checkRate } from "../_check.ts";
import type { Cluster } from "../cluster/cluster.ts";
import { DEFAULT_TIMEOUT } from "../cluster/wait.ts";
import type { EngineOptions } from "../engine/options.ts";
import type { NativeLibrary } from "../native/library.ts";
import type { ExpertWeights } from "../native/weights.ts";
import type { Placement } from "../placement.ts";
import type { Objective } from "../policies/objective.ts";
import type { Policy } from "../policies/policy.ts";
import { policies, type PolicyName } from "../policies/registry.ts";
import type { Topology } from "../topology.ts";
import type { GateSettings } from "./decision.ts";
import type { EplbEvent } from "./events.ts";

/** Options of {@linkcode EplbState.create}. */
export interface EplbStateOptions {
  /** The native library. */
  readonly library: NativeLibrary;
  /** Which rank is on which node, for all ranks of the job. */
  readonly topology: Topology;
  /**
   * The ranks of this process, ascending.
   *
   * @default {all ranks}
   */
  readonly ranks?: readonly number[];
  /** The other processes of the job; none if this process holds all ranks. */
  readonly cluster?: Cluster;
  /**
   * When weights move:
   *
   * | mode | what a step does when a rearrangement is due |
   * | --- | --- |
   * | `async` | it goes on; weights move in the background, and layers change between steps |
   * | `sync` | it waits until they are in place |
   *
   * @default {"async"}
   */
  readonly mode?: "async" | "sync";
  /**
   * Decides where experts shall be.
   *
   * @default {"quota"}
   */
  readonly policy?: PolicyName | Policy;
  /**
   * What a move must save to be made; `false` accepts whatever the policy decides.
   *
   * @default {{}: a gain that is more than noise}
   */
  readonly gate?: GateSettings | false;
  /**
   * Steps from one rearrangement to the next.
   *
   * @default {3000}
   */
  readonly stepInterval?: number;
  /**
   * Last steps whose load counts.
   *
   * @default {1000}
   */
  readonly windowSteps?: number;
  /**
   * The most layers that change between two forward passes.
   *
   * @default {1 if async, all if sync}
   */
  readonly layersPerStep?: number;
  /**
   * Whether async moves first empty redundant slots that nobody reads and then write them without
   * staging; see {@linkcode directSlots}. Tokens go to the other copies meanwhile. The transport
   * `nccl-put` stages all, and empties none.
   *
   * @default {true for the policies quota and swap}
   */
  readonly drain?: boolean;
  /**
   * The most bytes per second that each rank gathers while weights move; see
   * {@linkcode RateOptions}. It keeps the model at its speed in `async` mode; in `sync` mode steps
   * only wait longer. `cycleTimeout` must leave time for the whole move, `stallTimeout` for the
   * layers of one step.
   *
   * @default {no bound}
   */
  readonly maxRate?: number | undefined;
  /**
   * Limit of one cycle, from its load to its last layer, in milliseconds.
   *
   * @default {600000}
   */
  readonly cycleTimeout?: number;
  /**
   * How long a cycle may go without any progress before it is abandoned, in milliseconds.
   *
   * @default {60000}
   */
  readonly stallTimeout?: number;
  /**
   * How long a step waits for other ranks when a cycle is in progress, in milliseconds.
   *
   * @default {60000}
   */
  readonly stepTimeout?: number;
  /** Ends balancing: the cycle in progress is abandoned, and no other one begins. */
  readonly signal?: AbortSignal;
  /** Is told what happens. What it throws is ignored. */
  readonly onEvent?: (event: EplbEvent) => void;
}

/** Options of {@linkcode EplbState.addModel}. */
export interface ModelOptions
  extends Pick<EngineOptions, "transport" | "staging"> {
  /** Name, unique in its state. */
  readonly name: string;
  /** Expert memory of the ranks of this process, in their order. */
  readonly weights: readonly ExpertWeights[];
  /** Logical experts per layer. */
  readonly experts: number;
  /**
   * What the weights hold now.
   *
   * @default {slot i holds expert i, and redundant slot i holds expert i mod experts}
   */
  readonly placement?: Placement;
  /** How tokens find a replica. */
  readonly dispatch?: DispatchSettings;
  /**
   * Whether GPUs move weights without multiprocessors, see {@linkcode EngineOptions}: slower among
   * three and more GPUs, but the model keeps what it computes with.
   *
   * @default {true if async, false if sync}
   */
  readonly copyEngineOnly?: boolean;
  /**
   * The `cudaStream_t` on which each rank of this process launches its dispatch kernels: new maps and
   * what was counted are ordered by it.
   *
   * @default {the default stream}
   */
  readonly streams?: readonly bigint[];
  /** What is balanced; default: tokens. */
  readonly objective?: Objective;
  /**
   * Groups that the experts form, for policies that keep a group on one node.
   *
   * @default {1}
   */
  readonly groups?: number;
}

/** How tokens find a replica of their expert. */
export interface DispatchSettings {
  /**
   * How a token chooses:
   *
   * | value | rule |
   * | --- | --- |
   * | `shares` | each replica gets the share that the policy gives it |
   * | `uniform` | all replicas alike, as SGLang's "dynamic" |
   * | `static` | one replica for each rank and expert, as SGLang's "static" |
   *
   * @default {"shares"}
   */
  readonly replicas?: "shares" | "uniform" | "static";
  /**
   * Whether replicas of the same rank, then of the same node, go before others.
   *
   * @default {false}
   */
  readonly nearest?: boolean;
  /**
   * The most replicas of one expert that the device's maps have room for: 8 bytes each for every
   * layer and expert. A decision that needs more is given up.
   *
   * @default {redundant slots + 1, at most 256}
   */
  readonly maxReplicas?: number;
}

const STEP_INTERVAL = 3000;
const WINDOW_STEPS = 1000;
const CYCLE_TIMEOUT = 600_000;
/** No limit. */
const MOST_LAYERS = 2 ** 31 - 1;

/** What was asked for, or else is the default. */
export interface StateSettings extends
  Required<
    Pick<
      EplbStateOptions,
      | "policy"
      | "mode"
      | "gate"
      | "stepInterval"
      | "windowSteps"
      | "drain"
      | "layersPerStep"
      | "cycleTimeout"
      | "stallTimeout"
      | "stepTimeout"
    >
  > {
  /** The bound on the rate of moves; undefined: none. */
  readonly maxRate: number | undefined;
}

/** Fills in the defaults. */
export function settingsOf(options: EplbStateOptions): StateSettings {
  const { policy = "quota", mode = "async" } = options;
  return {
    policy,
    mode,
    gate: options.gate ?? {},
    stepInterval: options.stepInterval ?? STEP_INTERVAL,
    windowSteps: options.windowSteps ?? WINDOW_STEPS,
    drain: options.drain ?? (policy === "quota" || policy === "swap"),
    layersPerStep: options.layersPerStep ??
      (mode === "async" ? 1 : MOST_LAYERS),
    maxRate: options.maxRate,
    cycleTimeout: options.cycleTimeout ?? CYCLE_TIMEOUT,
    stallTimeout: options.stallTimeout ?? DEFAULT_TIMEOUT,
    stepTimeout: options.stepTimeout ?? DEFAULT_TIMEOUT,
  };
}

/** Refuses options that cannot be meant. */
export function checkOptions(options: EplbStateOptions): void {
  const { policy = "quota", layersPerStep, mode = "async" } = options;
  if (typeof policy === "string" && !Object.hasOwn(policies, policy)) {
    throw new TypeError(
      `Cannot create state: there is no policy "${policy}", only ${
        Object.keys(policies).join(", ")
      }`,
    );
  }
  if (mode !== "async" && mode !== "sync") {
    throw new TypeError(
      `Cannot create state: mode must be "async" or "sync", got "${mode}"`,
    );
  }
  const limits = {
    layersPerStep: layersPerStep ?? 1,
    cycleTimeout: options.cycleTimeout ?? 1,
    stallTimeout: options.stallTimeout ?? 1,
    stepTimeout: options.stepTimeout ?? 1,
  };
  for (const [name, value] of Object.entries(limits)) {
    checkInteger(value, { action: "create state", name, min: 1 });
  }
  checkRate(options.maxRate, { action: "create state", name: "maxRate" });
}
