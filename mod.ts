// SPDX-License-Identifier: Apache-2.0

/**
 * Expert parallelism load balancer (EPLB) for mixture-of-experts inference.
 *
 * Plans where copies of experts should live, and physically moves their weights
 * between ranks, in place. Everything that plans is pure and needs no permission;
 * what touches memory needs the native library and `--allow-ffi`, and is loaded by
 * {@linkcode NativeLibrary.open} only.
 *
 * ```ts
 * import { Placement, planMigration, Topology } from "@eplb/eplb";
 * import { assertEquals } from "@std/assert";
 *
 * const topology = Topology.uniform({ ranks: 2, nodes: 1 });
 * const from = Placement.from([[0, 1, 2, 3]], { ranks: 2 });
 * const to = Placement.from([[0, 2, 1, 3]], { ranks: 2 });
 * const plan = planMigration(from, to, { topology });
 * assertEquals(plan.counts.sameNode, 2);
 * ```
 *
 * @module
 */

export {
  type CheckpointModel,
  type ExpertCheckpoint,
  openCheckpoint,
  type ReadExpertOptions,
} from "./lib/weights/checkpoint.ts";
export { type Dtype } from "./lib/weights/dtype.ts";
export {
  ExpertLayout,
  type ExpertTensor,
  type ExpertTensorSpec,
  type TensorRole,
} from "./lib/weights/layout.ts";
export {
  openSafetensors,
  type ReadIntoOptions,
  type SafetensorsInfo,
  type SafetensorsReader,
  type SafetensorsSpec,
  writeSafetensors,
  type WriteSafetensorsOptions,
} from "./lib/weights/safetensors.ts";
export {
  type ModelName,
  type ModelShape,
  modelShape,
  type ModelShapeOptions,
} from "./lib/weights/shapes.ts";

export {
  Placement,
  type PlacementFromJSONOptions,
  type PlacementFromOptions,
  type PlacementJSON,
  type PlacementShape,
  type RandomPlacementOptions,
} from "./lib/placement.ts";
export {
  type LinkRates,
  Topology,
  type UniformTopologyOptions,
} from "./lib/topology.ts";
export {
  type Balancedness,
  balancedness,
  type BalancednessOptions,
} from "./lib/metrics.ts";
export {
  MigrationCase,
  type MigrationCounts,
  type MigrationPlan,
  planMigration,
  type PlanMigrationOptions,
} from "./lib/migration/plan.ts";
export {
  compileProgram,
  type CompileProgramOptions,
  type Program,
  stagingCellsNeeded,
} from "./lib/migration/program.ts";
export { directSlots, drained } from "./lib/migration/direct.ts";
export { planHops, type PlanHopsOptions } from "./lib/migration/hops.ts";
export { OperationCode } from "./lib/migration/operation.ts";
export { type SourceChoice } from "./lib/migration/sources.ts";
export {
  lowerBoundSeconds,
  type Traffic,
  traffic,
  type TrafficOptions,
} from "./lib/migration/traffic.ts";
export { planDigest, type PlanDigestInput } from "./lib/migration/digest.ts";

export { type Cluster } from "./lib/cluster/cluster.ts";
export {
  GatherTimeoutError,
  type RankFailure,
  RankFailureError,
  type RankFailureKind,
} from "./lib/cluster/failure.ts";
export {
  type IdentitySource,
  type RankIdentity,
  rankIdentity,
} from "./lib/cluster/identity.ts";
export {
  type LaunchOptions,
  launchRanks,
  type RankExit,
  type StoreAddress,
} from "./lib/cluster/launch.ts";
export { type Heartbeat } from "./lib/cluster/channel.ts";
export { StoreClient } from "./lib/cluster/store_client.ts";
export { type StoreClientOptions } from "./lib/cluster/handshake.ts";
export {
  StoreServer,
  type StoreServerOptions,
} from "./lib/cluster/store_server.ts";
export { type WaitOptions } from "./lib/cluster/wait.ts";

export { deepseekPolicy } from "./lib/policies/deepseek.ts";
export { type Objective } from "./lib/policies/objective.ts";
export {
  type Policy,
  type PolicyInput,
  type PolicyPlan,
} from "./lib/policies/policy.ts";
export { preservePolicy } from "./lib/policies/preserve.ts";
export { policies, type PolicyName } from "./lib/policies/registry.ts";
export { type SwapOptions, swapPolicy } from "./lib/policies/swap.ts";

export {
  type Counts,
  countTokens,
  type CountTokensOptions,
  logicalCounts,
} from "./lib/load/counts.ts";
export {
  type LoadFormat,
  type LoadTrace,
  parseLoad,
  type ParseLoadOptions,
  readLoad,
  type ReadLoadOptions,
  totalLoad,
} from "./lib/load/files.ts";
export { LoadWindow, type LoadWindowOptions } from "./lib/load/window.ts";

export {
  buildLibrary,
  type BuildOptions,
  type BuiltLibrary,
} from "./lib/native/build.ts";
export {
  EplbError,
  type EplbErrorCode,
  EplbLibraryError,
  type LibraryAttempt,
} from "./lib/native/errors.ts";
export {
  NativeLibrary,
  type NcclInfo,
  type OpenLibraryOptions,
} from "./lib/native/library.ts";
export {
  measureCopies,
  type MeasureCopiesOptions,
  measureProducts,
  Products,
  type ProductsOptions,
} from "./lib/native/measure.ts";
export { type DeviceInfo } from "./lib/native/structs.ts";
export { type TransportName } from "./lib/native/transport.ts";
export {
  type AllocateOptions,
  type ExpertPosition,
  ExpertWeights,
  type RegisterOptions,
  type TensorMemory,
  type WeightsShape,
} from "./lib/native/weights.ts";

export {
  loadExperts,
  type LoadExpertsOptions,
  saveExperts,
} from "./lib/engine/checkpoint.ts";
export { Engine } from "./lib/engine/engine.ts";
export {
  type Move,
  type MoveOptions,
  type MoveSettings,
  planJourney,
  planMove,
} from "./lib/engine/move.ts";
export { Rearrangement } from "./lib/engine/rearrangement.ts";
export {
  PlanMismatchError,
  RearrangeError,
  type RearrangeFailure,
} from "./lib/engine/errors.ts";
export {
  type BeginOptions,
  type EngineOptions,
  type RateOptions,
  type RearrangeOptions,
  type RearrangeResult,
} from "./lib/engine/options.ts";
export { type Mismatch } from "./lib/engine/canary.ts";
export { type StagingOptions } from "./lib/engine/staging.ts";
export {
  type PhaseResult,
  simulate,
  type SimulateOptions,
  type SimulationPhase,
} from "./lib/simulate.ts";
export {
  type GateDecision,
  type GatedPlan,
  type GateOptions,
  gatePlan,
  type GateReason,
} from "./lib/policies/gate.ts";
export { type QuotaOptions, quotaPolicy } from "./lib/policies/quota.ts";
export { resplit, type ResplitInput } from "./lib/policies/resplit.ts";
export {
  type Imbalance,
  imbalance,
  type ImbalanceOptions,
  movedSlots,
} from "./lib/metrics.ts";

export { EplbState, type ReservedMemory } from "./lib/runtime/state.ts";
export { type ServedModel } from "./lib/runtime/model.ts";
export {
  type DispatchSettings,
  type EplbStateOptions,
  type ModelOptions,
} from "./lib/runtime/options.ts";
export { type GateSettings } from "./lib/runtime/decision.ts";
export {
  type BytesByCase,
  type CycleDecided,
  type CycleEnded,
  type CycleEvent,
  type CycleOutcome,
  type CycleSkipped,
  type CycleStarted,
  type CycleTrigger,
  describeCycle,
  type EplbEvent,
  type LayersCommitted,
} from "./lib/runtime/events.ts";
export { Dispatcher } from "./lib/native/dispatcher.ts";
export {
  type DispatchAddresses,
  type DispatcherOptions,
  type DispatchLaunchOptions,
  type DispatchOptions,
  type ReadLoadsOptions,
  type SnapshotLoadsOptions,
  type UpdateTablesOptions,
} from "./lib/native/dispatcher_options.ts";
export {
  buildDispatchTables,
  type DispatchTables,
  type DispatchTablesOptions,
  type ReplicaChoice,
} from "./lib/dispatch/tables.ts";

export {
  type Metric,
  type MetricKind,
  type MetricLabel,
  type MetricName,
  METRICS,
  type MetricUnit,
} from "./lib/telemetry/instruments.ts";
export {
  EplbMetrics,
  type EplbMetricsOptions,
} from "./lib/telemetry/metrics.ts";
export { type BucketOverrides } from "./lib/telemetry/buckets.ts";
export { type MetricSeries } from "./lib/telemetry/family.ts";
export {
  type MetricLabels,
  type MetricSample,
} from "./lib/telemetry/samples.ts";
export {
  type OpenTelemetryCallback,
  type OpenTelemetryMeter,
  type OpenTelemetryObservable,
  type OpenTelemetryOptions,
} from "./lib/telemetry/meter.ts";
export {
  exportMetrics,
  type ExportMetricsOptions,
} from "./lib/telemetry/open_telemetry.ts";
export {
  type MetricsServer,
  serveMetrics,
  type ServeMetricsOptions,
} from "./lib/telemetry/serve.ts";
