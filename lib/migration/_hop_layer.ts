// SPDX-License-Identifier: Apache-2.0

/**
 * One layer on its way through several hops.
 *
 * @module
 */
import type { Placement } from "../placement.ts";
import type { Topology } from "../topology.ts";

/**
 * Groups of slots in which copies of an expert are counted: those of the slot's rank, those of its
 * node, and all.
 */
export const Group = { rank: 0, node: 1, all: 2 } as const;

/** One of the values of {@linkcode Group}. */
export type Group = typeof Group[keyof typeof Group];

/**
 * What the slots of a layer hold, and what they wait for.
 *
 * Within a hop, all changes take place at once, so that `content` is what slots hold *after* the hop.
 * A slot that is to hold another expert than it does is *waiting*; one whose expert has arrived is
 * *settled*. A slot that is to be empty is neither: until the last hop, it may hold anything.
 */
export class HopLayer {
  /** Number of ranks. */
  readonly ranks: number;
  /** Slots of all ranks. */
  readonly slots: number;
  /** Number of logical experts. */
  readonly experts: number;
  /** Experts that may arrive on a rank in one hop, or be copied inside it. */
  readonly cells: number;
  /** Where the ranks are. */
  readonly topology: Topology;
  /** Expert in each slot, [slots]; -1 is an empty slot. */
  readonly content: Int32Array;
  /** Expert that each slot shall hold in the end, [slots]. */
  target: Int32Array;
  /** Number of waiting slots. */
  waiting = 0;
  /** Experts that arrive on each rank in this hop, [ranks]. */
  readonly arrivals: Int32Array;
  /** 1 for each slot that this hop changes, [slots]. */
  readonly changed: Uint8Array;
  /** 1 for each slot whose expert may arrive in this hop, [slots]. */
  readonly ready: Uint8Array;
  // The rank, the node and "all" of each slot, [3, slots], as rows of the two tables that follow.
  readonly #groups: Int32Array;
  // Slots of a group that hold each expert, and that wait for it, [ranks + nodes + 1, experts].
  readonly #holding: Int32Array;
  readonly #waitingFor: Int32Array;
  // Slots in which an expert arrives on a rank, [ranks, experts].
  readonly #arriving: Int32Array;
  // The slots that shall hold each expert: where each one's begin, [experts + 1], and all, [slots].
  readonly #targetStart: Int32Array;
  readonly #targetSlots: Int32Array;
  // Slots changed in this hop and what they held, for undo().
  readonly #log: number[] = [];

  constructor(
    shape: Placement,
    options: { readonly topology: Topology; readonly cells: number },
  ) {
    const { ranks, slots, experts, slotsPerRank } = shape;
    const { topology, cells } = options;
    this.ranks = ranks;
    this.slots = slots;
    this.experts = experts;
    this.cells = cells;
    this.topology = topology;
    this.content = new Int32Array(slots);
    this.target = new Int32Array(slots);
    this.arrivals = new Int32Array(ranks);
    this.changed = new Uint8Array(slots);
    this.ready = new Uint8Array(slots);
    this.#groups = new Int32Array(3 * slots);
    for (let slot = 0; slot < slots; slot++) {
      const rank = Math.floor(slot / slotsPerRank);
      this.#groups[slot] = rank;
      this.#groups[slots + slot] = ranks + topology.nodeOf[rank]!;
      this.#groups[2 * slots + slot] = ranks + topology.nodes;
    }
    const groups = ranks + topology.nodes + 1;
    this.#holding = new Int32Array(groups * experts);
    this.#waitingFor = new Int32Array(groups * experts);
    this.#arriving = new Int32Array(ranks * experts);
    this.#targetStart = new Int32Array(experts + 1);
    this.#targetSlots = new Int32Array(slots);
  }

  /** Turns to another layer: what its slots hold, and what they shall hold. */
  load(content: Int32Array, target: Int32Array): void {
    this.content.fill(-1);
    this.target = target;
    this.#holding.fill(0);
    this.#waitingFor.fill(0);
    this.#listTargets();
    this.waiting = 0;
    for (let slot = 0; slot < this.slots; slot++) {
      if (this.isWaiting(slot)) this.#countWaiting(slot, 1);
      this.#set(slot, content[slot]!);
    }
  }

  #listTargets(): void {
    const { target } = this;
    const start = this.#targetStart.fill(0);
    for (const expert of target) if (expert >= 0) start[expert + 1]!++;
    for (let e = 0; e < this.experts; e++) start[e + 1]! += start[e]!;
    const next = start.slice();
    target.forEach((expert, slot) => {
      if (expert >= 0) this.#targetSlots[next[expert]!++] = slot;
    });
  }

  /** Begins a hop: nothing arrives yet. */
  begin(): void {
    this.arrivals.fill(0);
    this.changed.fill(0);
    this.#arriving.fill(0);
    this.#log.length = 0;
  }

  /** Number of changes in this hop so far. */
  get changes(): number {
    return this.#log.length / 2;
  }

  /** The rank that a slot is on. */
  rankOf(slot: number): number {
    return this.#groups[slot]!;
  }

  /** Whether the slot shall hold another expert than it does. */
  isWaiting(slot: number): boolean {
    const expert = this.target[slot]!;
    return expert >= 0 && this.content[slot] !== expert;
  }

  /** Whether two slots are in the same group. */
  together(group: Group, a: number, b: number): boolean {
    const row = group * this.slots;
    return this.#groups[row + a] === this.#groups[row + b];
  }

  /** Slots of a slot's group that hold an expert. */
  holding(group: Group, slot: number, expert: number): number {
    const row = this.#groups[group * this.slots + slot]!;
    return this.#holding[row * this.experts + expert]!;
  }

  /** Slots of a slot's group that wait for an expert. */
  waitingFor(group: Group, slot: number, expert: number): number {
    const row = this.#groups[group * this.slots + slot]!;
    return this.#waitingFor[row * this.experts + expert]!;
  }

  /** The slots that shall hold an expert, ascending. */
  targetsOf(expert: number): Int32Array {
    return this.#targetSlots.subarray(
      this.#targetStart[expert]!,
      this.#targetStart[expert + 1]!,
    );
  }

  /** Whether the slot's rank has a cell left for an expert; what arrives there anyway needs none. */
  hasCell(slot: number, expert: number): boolean {
    const rank = this.#groups[slot]!;
    return this.arrivals[rank]! < this.cells ||
      this.#arriving[rank * this.experts + expert]! > 0;
  }

  /** Lets an expert arrive in a slot, for which there must be a cell. */
  put(slot: number, expert: number): void {
    const rank = this.#groups[slot]!;
    if (this.#arriving[rank * this.experts + expert]!++ === 0) {
      this.arrivals[rank]!++;
    }
    this.#log.push(slot, this.content[slot]!);
    this.changed[slot] = 1;
    this.#set(slot, expert);
  }

  /** Takes the latest change back. */
  undo(): void {
    const before = this.#log.pop()!;
    const slot = this.#log.pop()!;
    const rank = this.#groups[slot]!;
    const entry = rank * this.experts + this.content[slot]!;
    if (--this.#arriving[entry]! === 0) this.arrivals[rank]!--;
    this.changed[slot] = 0;
    this.#set(slot, before);
  }

  #set(slot: number, expert: number): void {
    const before = this.content[slot]!;
    const waited = this.isWaiting(slot);
    this.content[slot] = expert;
    for (let row = slot; row < this.#groups.length; row += this.slots) {
      const entries = this.#groups[row]! * this.experts;
      if (before >= 0) this.#holding[entries + before]!--;
      if (expert >= 0) this.#holding[entries + expert]!++;
    }
    const waits = this.isWaiting(slot);
    if (waited !== waits) this.#countWaiting(slot, waits ? 1 : -1);
  }

  #countWaiting(slot: number, change: 1 | -1): void {
    const expert = this.target[slot]!;
    for (let row = slot; row < this.#groups.length; row += this.slots) {
      this.#waitingFor[this.#groups[row]! * this.experts + expert]! += change;
    }
    this.waiting += change;
  }
}
