// SPDX-License-Identifier: Apache-2.0
// The transports: what the library calls them, and what sets them apart.

/**
 * How bytes move: `pull` maps peers' memory, `nccl` sends and receives, `pull+nccl` does the one
 * between processes of a node and the other elsewhere, `nccl-put` puts into peers' staging memory
 * inside one NVLink domain.
 */
export type TransportName = "pull" | "nccl" | "pull+nccl" | "nccl-put";

/** `EPLB_TRANSPORT_*` */
const VALUES: Readonly<Record<TransportName, number>> = {
  pull: 1,
  nccl: 2,
  "pull+nccl": 3,
  "nccl-put": 4,
};

/** Every transport. */
export const TRANSPORT_NAMES = Object.keys(VALUES) as readonly TransportName[];

/** The library's number of a transport. */
export function valueOf(transport: TransportName): number {
  return VALUES[transport];
}

/** Whether NCCL moves bytes: of GPU memory only, and with a GPU for each rank. */
export function usesNccl(transport: TransportName): boolean {
  return transport !== "pull";
}

/** Whether slots can be written without staging; what is put reaches staging memory only. */
export function writesDirectly(transport: TransportName): boolean {
  return transport !== "nccl-put";
}
