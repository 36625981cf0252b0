// SPDX-License-Identifier: Apache-2.0

/**
 * Moving slots so that no rank costs more than a threshold.
 *
 * @module
 */
import { dropCopy, exchangePrimaries } from "./_slot_changes.ts";
import { NONE, type SplitLayer } from "./_split_layer.ts";
import type { TokenFlow } from "./_token_flow.ts";

/** Part of what a move must gain at least of the room between the ideal and the threshold. */
export const LEAST_GAIN = 1 / 50;

/** What a gain counts if work leaves its node thereby, or the primary does. */
const ACROSS_NODES = 1 / 2;

/** What a gain counts if two slots move for it. */
const TWO_SLOTS = 1 / 2;

/** Ranks that are looked at for each move, those with most to relieve, if there is any. */
const SOURCES = 4;

/** Gains closer than this part of them are alike. */
const ALIKE = 1e-6;

/** Limits of {@linkcode SlotMoves}. */
export interface SlotMovesLimits {
  /** The most slots of a layer that may change. */
  readonly maxMoves: number;
  /** Whether primaries may change places. */
  readonly movePrimaries: boolean;
}

/**
 * Finds and makes moves, the one that gains most for each slot first.
 *
 * There are two kinds. A copy of an expert of a rank with too much work goes to a rank with room,
 * into an empty slot or over a redundant copy; what that copy carried goes back to the other
 * copies of its expert. Or a primary of the one and a primary of the other change places. The gain
 * is by how much the work above the ranks' capacities shrinks, and after each move the flow spreads
 * what it can, so the excess falls with every step.
 */
export class SlotMoves {
  readonly #layer: SplitLayer;
  readonly #flow: TokenFlow;
  readonly #limits: SlotMovesLimits;
  /** What each slot held before the plan, [slots]. */
  readonly #before: Int32Array;
  /** Slots of the rank that is looked at, those that carry most first, [slots of a rank]. */
  readonly #heaviest: Int32Array;
  /** Slots that are neither empty nor hold what they held before the plan. */
  #moved = 0;
  /** How many there may be. */
  #most = 0;
  /** What a move must gain. */
  #leastGain = 0;
  /** The rank to be relieved, and its work above capacity. */
  #source = NONE;
  #excess = 0;
  #listed = 0;
  /** The best move: its gain, the slot that sheds work, the one that takes it. */
  #gain = 0;
  #from = NONE;
  #to = NONE;
  #exchange = false;
  /** Work of the expert that the best move drops a copy of. */
  #dropped = 0;

  /**
   * Reserves memory.
   *
   * @param layer The layer.
   * @param flow What spreads its work.
   * @param limits What may move.
   */
  constructor(layer: SplitLayer, flow: TokenFlow, limits: SlotMovesLimits) {
    this.#layer = layer;
    this.#flow = flow;
    this.#limits = limits;
    this.#before = new Int32Array(layer.slots);
    this.#heaviest = new Int32Array(layer.slotsPerRank);
  }

  /**
   * Moves slots until no rank costs more than a threshold.
   *
   * @param threshold What a rank may cost.
   * @param before Expert of each slot of the job before the plan; undefined if it was nowhere.
   * @returns True if the threshold is reached; false if no move was worth it any more.
   */
  reach(threshold: number, before: Int32Array | undefined): boolean {
    const layer = this.#layer;
    this.#remember(before);
    layer.allow(threshold);
    const mean = layer.ideal * this.#meanSpeed();
    this.#leastGain = Math.max(
      layer.epsilon,
      LEAST_GAIN * (threshold - layer.ideal) / layer.ideal * mean,
    );
    let excess = this.#flow.relieve();
    while (excess > 0) {
      if (!this.#choose()) return false;
      this.#make();
      const left = this.#flow.relieve();
      // A rank that holds an expert twice may be counted on twice.
      if (left >= excess - layer.epsilon) return false;
      excess = left;
    }
    return true;
  }

  #meanSpeed(): number {
    return this.#layer.speed.reduce((a, b) => a + b, 0) / this.#layer.ranks;
  }

  #remember(before: Int32Array | undefined): void {
    const { slots, slotsPerRank, rankOf, rankAt, expertAt } = this.#layer;
    this.#moved = 0;
    this.#most = before === undefined ? Infinity : this.#limits.maxMoves;
    for (let slot = 0; slot < slots; slot++) {
      const rank = rankOf[slot]!;
      const place = slot + (rankAt[rank]! - rank) * slotsPerRank;
      this.#before[slot] = before === undefined ? NONE : before[place]!;
      this.#moved += this.#isMoved(slot, expertAt[slot]!);
    }
  }

  /** 1 if a slot with that expert would count as moved, else 0. */
  #isMoved(slot: number, expert: number): number {
    return expert >= 0 && expert !== this.#before[slot] ? 1 : 0;
  }

  /** By how much the count of moved slots would change if a slot held another expert. */
  #movesOf(slot: number, expert: number): number {
    return this.#isMoved(slot, expert) -
      this.#isMoved(slot, this.#layer.expertAt[slot]!);
  }

  /** Looks for the best move; false if none is worth it. */
  #choose(): boolean {
    this.#gain = this.#leastGain;
    this.#from = NONE;
    this.#source = NONE;
    this.#excess = Infinity;
    // From the highest excess down, as no move gains more than its source has.
    for (let tried = 0; this.#nextSource(); tried++) {
      if (tried >= SOURCES && this.#from !== NONE) break;
      this.#relieveSource();
    }
    return this.#from !== NONE;
  }

  /** Goes on to the rank with the next lower excess; false if it is too low to gain more. */
  #nextSource(): boolean {
    const { ranks, load, capacity } = this.#layer;
    let next = NONE;
    let most = this.#gain;
    for (let rank = 0; rank < ranks; rank++) {
      const excess = load[rank]! - capacity[rank]!;
      if (excess <= most || excess > this.#excess) continue;
      if (excess === this.#excess && rank <= this.#source) continue;
      next = rank;
      most = excess;
    }
    if (next === NONE) return false;
    this.#source = next;
    this.#excess = most;
    return true;
  }

  /** Looks for better moves that relieve the source. */
  #relieveSource(): void {
    const { ranks, load, capacity, nodeAt } = this.#layer;
    this.#sortSlots();
    for (let rank = 0; rank < ranks; rank++) {
      const room = capacity[rank]! - load[rank]!;
      if (room <= this.#leastGain) continue;
      this.#tryCopies(rank, room);
      if (!this.#limits.movePrimaries) continue;
      const factor = nodeAt[this.#source] === nodeAt[rank]
        ? TWO_SLOTS
        : TWO_SLOTS * ACROSS_NODES;
      if (Math.min(this.#excess, room) * factor > this.#gain) {
        this.#tryExchanges(rank, room, factor);
      }
    }
  }

  /** Lists the source's slots that carry anything, the heaviest first. */
  #sortSlots(): void {
    const { slotsPerRank, expertAt, epsilon } = this.#layer;
    const list = this.#heaviest;
    this.#listed = 0;
    const end = (this.#source + 1) * slotsPerRank;
    for (let slot = end - slotsPerRank; slot < end; slot++) {
      if (expertAt[slot]! < 0) continue;
      const weighs = this.#weighs(slot);
      if (weighs <= epsilon) continue;
      let at = this.#listed++;
      for (; at > 0 && this.#weighs(list[at - 1]!) < weighs; at--) {
        list[at] = list[at - 1]!;
      }
      list[at] = slot;
    }
  }

  #weighs(slot: number): number {
    return this.#layer.carried[slot]! * this.#layer.weight[slot]!;
  }

  /** Tries each slot of a rank that is empty or holds a redundant copy. */
  #tryCopies(rank: number, room: number): void {
    const { slotsPerRank, expertAt, primary, rankOf } = this.#layer;
    const first = rank * slotsPerRank;
    // From behind: primaries come first.
    for (let slot = first + slotsPerRank - 1; slot >= first; slot--) {
      const expert = expertAt[slot]!;
      if (expert < 0) {
        this.#tryCopy(slot, { excess: this.#excess, room, homeless: 0 });
        continue;
      }
      if (primary[expert] === slot) continue;
      const freed = room + this.#weighs(slot);
      const most = Math.min(this.#excess, freed);
      if (most < this.#gain * (1 - ALIKE)) continue;
      const homeless = this.#homeless(slot);
      const back = rankOf[primary[expert]!] === this.#source ? homeless : 0;
      const excess = this.#excess + back;
      this.#tryCopy(slot, { excess, room: freed, homeless });
    }
  }

  /**
   * Tries copies of the source's experts in one slot. The rank holds none of them: if it did, the
   * flow would have filled its room.
   */
  #tryCopy(
    slot: number,
    bounds: {
      readonly excess: number;
      readonly room: number;
      readonly homeless: number;
    },
  ): void {
    const layer = this.#layer;
    const { excess, room, homeless } = bounds;
    const rank = layer.rankOf[slot]!;
    const old = layer.expertAt[slot]!;
    const dropped = old < 0 ? -1 : layer.work[old]!;
    for (let i = 0; i < this.#listed; i++) {
      const from = this.#heaviest[i]!;
      const weighs = this.#weighs(from);
      const most = Math.min(weighs, excess, room) - homeless;
      if (most < this.#gain * (1 - ALIKE)) return;
      const expert = layer.expertAt[from]!;
      const ratio = layer.weightOn(rank, expert) / layer.weight[from]!;
      const taken = Math.min(weighs, excess, room / ratio);
      const home = layer.nodeAt[layer.rankOf[layer.primary[expert]!]!];
      const factor = home === layer.nodeAt[rank] ? 1 : ACROSS_NODES;
      const gain = (taken - homeless) * factor;
      if (!this.#isBetter(gain, dropped)) continue;
      if (!this.#mayMove(this.#movesOf(slot, expert))) continue;
      this.#keep(from, slot, { gain, dropped, exchange: false });
    }
  }

  /** Tries to exchange primaries of the source and of a rank. */
  #tryExchanges(rank: number, room: number, factor: number): void {
    const layer = this.#layer;
    const { slotsPerRank, expertAt, primary, nodeAt, copies } = layer;
    const near = nodeAt[this.#source] === nodeAt[rank];
    const end = (rank + 1) * slotsPerRank;
    for (let i = 0; i < this.#listed; i++) {
      const from = this.#heaviest[i]!;
      const weighs = this.#weighs(from);
      if (weighs * factor <= this.#gain) return;
      const expert = expertAt[from]!;
      if (primary[expert] !== from) continue;
      // Redundant copies stay on the node of their primary.
      if (!near && copies[expert]! > 1) continue;
      for (let slot = end - slotsPerRank; slot < end; slot++) {
        const other = expertAt[slot]!;
        if (other < 0 || primary[other] !== slot) continue;
        const shift = weighs - this.#weighs(slot);
        const gain = factor * (this.#excess -
          Math.max(0, this.#excess - shift) - Math.max(0, shift - room));
        if (!(gain > this.#gain * (1 + ALIKE))) continue;
        if (copies[other]! > 1) {
          if (!near || layer.holds(this.#source, other)) continue;
        }
        const moves = this.#movesOf(from, other) + this.#movesOf(slot, expert);
        if (!this.#mayMove(moves)) continue;
        this.#keep(from, slot, { gain, dropped: Infinity, exchange: true });
      }
    }
  }

  /** What would be left of the work of a redundant copy if others took what they have room for. */
  #homeless(slot: number): number {
    const { expertAt, carried, rankOf, load, capacity } = this.#layer;
    const { firstSlot, nextSlot, weight, epsilon } = this.#layer;
    let left = carried[slot]!;
    if (left <= epsilon) return 0;
    let other = firstSlot[expertAt[slot]!]!;
    for (; other !== NONE && left > 0; other = nextSlot[other]!) {
      const rank = rankOf[other]!;
      if (rank === rankOf[slot]) continue;
      const room = capacity[rank]! - load[rank]!;
      if (room > 0) left -= Math.min(left, room / weight[other]!);
    }
    return left;
  }

  #mayMove(slots: number): boolean {
    return slots <= 0 || this.#moved + slots <= this.#most;
  }

  /** Of gains that are alike, the one is better that drops the copy of a colder expert. */
  #isBetter(gain: number, dropped: number): boolean {
    if (gain > this.#gain * (1 + ALIKE)) return true;
    return this.#from !== NONE && gain >= this.#gain * (1 - ALIKE) &&
      dropped < this.#dropped;
  }

  #keep(
    from: number,
    to: number,
    move: {
      readonly gain: number;
      readonly dropped: number;
      readonly exchange: boolean;
    },
  ): void {
    this.#from = from;
    this.#to = to;
    this.#gain = move.gain;
    this.#dropped = move.dropped;
    this.#exchange = move.exchange;
  }

  /** Makes the chosen move. */
  #make(): void {
    const from = this.#from;
    const to = this.#to;
    const expert = this.#layer.expertAt[from]!;
    if (this.#exchange) {
      const other = this.#layer.expertAt[to]!;
      this.#moved += this.#movesOf(from, other) + this.#movesOf(to, expert);
      exchangePrimaries(this.#layer, from, to);
    } else {
      this.#moved += this.#movesOf(to, expert);
      if (this.#layer.expertAt[to]! >= 0) dropCopy(this.#layer, to);
      this.#layer.link(to, expert);
    }
  }
}
