// SPDX-License-Identifier: Apache-2.0
// The structs of cpp/include/eplb.h. Each begins with its size and version; the
// sizes here are compared with the library's own when it is loaded.

/** Kinds as in `EPLB_STRUCT_*`, and the size in bytes this file was written for. */
export const STRUCTS: Readonly<
  Record<string, { readonly kind: number; readonly bytes: number }>
> = {
  eplb_device_info: { kind: 1, bytes: 200 },
  eplb_weights_config: { kind: 2, bytes: 24 },
  eplb_engine_config: { kind: 3, bytes: 48 },
  eplb_engine_info: { kind: 4, bytes: 24 },
  eplb_run_result: { kind: 5, bytes: 24 },
  eplb_copy_measure: { kind: 6, bytes: 40 },
  eplb_product_measure: { kind: 7, bytes: 32 },
  eplb_run_config: { kind: 8, bytes: 32 },
  eplb_dispatch_config: { kind: 9, bytes: 24 },
  eplb_dispatch_call: { kind: 10, bytes: 72 },
};

const VERSION = 1;

function struct(name: string): DataView<ArrayBuffer> {
  const { bytes } = STRUCTS[name]!;
  const view = new DataView(new ArrayBuffer(bytes));
  view.setUint32(0, bytes, true);
  view.setUint32(4, VERSION, true);
  return view;
}

/** A CUDA device. */
export interface DeviceInfo {
  /** CUDA device number. */
  readonly ordinal: number;
  /** Marketing name. */
  readonly name: string;
  /** PCI bus id. */
  readonly pciBusId: string;
  /** Compute capability, such as "9.0". */
  readonly computeCapability: string;
  /** Streaming multiprocessors. */
  readonly multiprocessors: number;
  /** Memory in bytes. */
  readonly totalBytes: number;
  /** Free memory in bytes. */
  readonly freeBytes: number;
}

/** An empty `eplb_device_info`, and its reader. */
export function deviceInfo(): {
  view: DataView<ArrayBuffer>;
  read: () => DeviceInfo;
} {
  const view = struct("eplb_device_info");
  const text = (offset: number, bytes: number): string => {
    const chars = new Uint8Array(view.buffer, offset, bytes);
    const end = chars.indexOf(0);
    return new TextDecoder().decode(
      chars.subarray(0, end < 0 ? bytes : end),
    );
  };
  const read = (): DeviceInfo => ({
    ordinal: view.getInt32(8, true),
    computeCapability: `${view.getInt32(12, true)}.${view.getInt32(16, true)}`,
    multiprocessors: view.getInt32(20, true),
    totalBytes: Number(view.getBigUint64(24, true)),
    freeBytes: Number(view.getBigUint64(32, true)),
    name: text(40, 128),
    pciBusId: text(168, 32),
  });
  return { view, read };
}

/** `eplb_weights_config`. */
export function weightsConfig(config: {
  ordinal: number;
  layers: number;
  slots: number;
  tensors: number;
}): DataView<ArrayBuffer> {
  const view = struct("eplb_weights_config");
  view.setInt32(8, config.ordinal, true);
  view.setUint32(12, config.layers, true);
  view.setUint32(16, config.slots, true);
  view.setUint32(20, config.tensors, true);
  return view;
}

/** `eplb_engine_config`. */
export function engineConfig(config: {
  world: number;
  locals: number;
  transport: number;
  stagingCells: number;
  stagingSets: number;
  maxCtas: number;
  smallBytes: number;
  copyEngineOnly: boolean;
}): DataView<ArrayBuffer> {
  const view = struct("eplb_engine_config");
  view.setUint32(8, config.world, true);
  view.setUint32(12, config.locals, true);
  view.setUint32(16, config.transport, true);
  view.setUint32(20, config.stagingCells, true);
  view.setUint32(24, config.stagingSets, true);
  view.setInt32(28, config.maxCtas, true);
  view.setBigUint64(32, BigInt(config.smallBytes), true);
  view.setUint32(40, config.copyEngineOnly ? 1 : 0, true);
  return view;
}

/** An empty `eplb_engine_info`, and its reader. */
export function engineInfo(): {
  view: DataView<ArrayBuffer>;
  read: () => { cellBytes: number; stagingBytes: number };
} {
  const view = struct("eplb_engine_info");
  const read = (): { cellBytes: number; stagingBytes: number } => ({
    cellBytes: Number(view.getBigUint64(8, true)),
    stagingBytes: Number(view.getBigUint64(16, true)),
  });
  return { view, read };
}

/** `eplb_run_config`. */
export function runConfig(config: {
  timeoutMs: number;
  held: boolean;
  bytesPerSecond: number;
}): DataView<ArrayBuffer> {
  const view = struct("eplb_run_config");
  view.setBigUint64(8, BigInt(config.timeoutMs), true);
  view.setUint32(16, config.held ? 1 : 0, true);
  view.setBigUint64(24, BigInt(config.bytesPerSecond), true);
  return view;
}

/** What a run reports, also when it failed. */
export interface RunOutcome {
  /** Batches whose weights are in place on every local rank. */
  readonly committedBatches: number;
  /** The rank to blame for a failure, -1 if none is known. */
  readonly failedRank: number;
  /** Wall time from the first byte to the last commit. */
  readonly seconds: number;
}

/** An empty `eplb_run_result`, and its reader. */
export function runResult(): {
  view: DataView<ArrayBuffer>;
  read: () => RunOutcome;
} {
  const view = struct("eplb_run_result");
  view.setInt32(12, -1, true);
  const read = (): RunOutcome => ({
    committedBatches: view.getUint32(8, true),
    failedRank: view.getInt32(12, true),
    seconds: view.getFloat64(16, true),
  });
  return { view, read };
}

/** `eplb_copy_measure`. */
export function copyMeasure(what: {
  ordinal: number;
  peer: number;
  bothWays: boolean;
  engine: number;
  pieces: number;
  repeats: number;
  pieceBytes: number;
}): DataView<ArrayBuffer> {
  const view = struct("eplb_copy_measure");
  view.setInt32(8, what.ordinal, true);
  view.setInt32(12, what.peer, true);
  view.setUint32(16, what.bothWays ? 1 : 0, true);
  view.setUint32(20, what.engine, true);
  view.setUint32(24, what.pieces, true);
  view.setUint32(28, what.repeats, true);
  view.setBigUint64(32, BigInt(what.pieceBytes), true);
  return view;
}

/** `eplb_product_measure`. */
export function productMeasure(what: {
  ordinal: number;
  m: number;
  n: number;
  k: number;
  count: number;
}): DataView<ArrayBuffer> {
  const view = struct("eplb_product_measure");
  view.setInt32(8, what.ordinal, true);
  view.setUint32(12, what.m, true);
  view.setUint32(16, what.n, true);
  view.setUint32(20, what.k, true);
  view.setUint32(24, what.count, true);
  return view;
}

/** `eplb_dispatch_config`. */
export function dispatchConfig(config: {
  ordinal: number;
  layers: number;
  experts: number;
  maxReplicas: number;
}): DataView<ArrayBuffer> {
  const view = struct("eplb_dispatch_config");
  view.setInt32(8, config.ordinal, true);
  view.setUint32(12, config.layers, true);
  view.setUint32(16, config.experts, true);
  view.setUint32(20, config.maxReplicas, true);
  return view;
}

/** Fields of `eplb_dispatch_call`, as indices of 32-bit words. */
export const CALL_WORD = {
  layer: 2,
  tokens: 3,
  topK: 4,
  idBytes: 5,
  salt: 6,
  record: 7,
} as const;

/** Fields of `eplb_dispatch_call`, as indices of 64-bit words. */
export const CALL_ADDRESS = {
  logical: 4,
  physical: 5,
  validTokens: 6,
  stepSalt: 7,
  stream: 8,
} as const;

/** An empty `eplb_dispatch_call`, to be filled anew for each call: by word, as views cost more. */
export function dispatchCall(): {
  words: Uint32Array<ArrayBuffer>;
  addresses: BigUint64Array<ArrayBuffer>;
} {
  const { buffer } = struct("eplb_dispatch_call");
  return {
    words: new Uint32Array(buffer),
    addresses: new BigUint64Array(buffer),
  };
}
