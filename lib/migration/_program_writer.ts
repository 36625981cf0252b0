// SPDX-License-Identifier: Apache-2.0

/**
 * Writing the operations of a program, batch by batch.
 *
 * @module
 */
import type { DirectSlots } from "./_batches.ts";
import {
  BATCH_WORDS,
  HEADER_WORDS,
  OPERATION_DIRECT,
  OPERATION_WORDS,
  OperationCode,
  PROGRAM_MAGIC,
  PROGRAM_VERSION,
} from "./operation.ts";
import { MigrationCase, type MigrationPlan } from "./plan.ts";

/** Options of {@linkcode ProgramWriter}. */
export interface ProgramWriterOptions {
  /** First layer and one past the last layer of each batch, [batches, 2]. */
  readonly batches: Int32Array;
  /** 1 for each rank whose operations are written, [ranks]. */
  readonly ranks: Uint8Array;
  /** The most transfers that a rank takes part in, in one round. */
  readonly transfersPerGroup: number;
  /** 1 for each slot that is written without staging, [layers, slots]. */
  readonly direct: DirectSlots;
}

/**
 * Writes a program.
 *
 * A batch takes three passes: give each transfer of the whole plan its round, find where each group
 * of operations begins, write the operations. Transfers go in ascending order of layer and slot of
 * the destination, in all three, so that both ends of a pair of ranks have them in the same order.
 */
export class ProgramWriter {
  readonly words: Int32Array<ArrayBuffer>;
  readonly batches: Int32Array;
  readonly operations: Int32Array;
  readonly #plan: MigrationPlan;
  readonly #local: Uint8Array;
  readonly #direct: DirectSlots;
  readonly #transfersPerGroup: number;
  readonly #rankOf: Int32Array;
  // Round of each transfer, [layers, slots].
  readonly #round: Int32Array;
  // The lowest round in which each rank has room, and its operations that are no transfers, [ranks].
  readonly #room: Int32Array;
  readonly #inside: Int32Array;
  // 1 + the index [layers, slots] of the slot that each slot was copied to last, [slots].
  readonly #copied: Int32Array;
  // Transfers of each rank, and place of its next operation, [rounds, ranks]; they grow.
  #transfers: Int32Array;
  #place: Int32Array;
  #rounds = 0;
  #written = 0;

  constructor(plan: MigrationPlan, options: ProgramWriterOptions) {
    const { layers, ranks, slots, slotsPerRank } = plan;
    this.#plan = plan;
    this.#local = options.ranks;
    this.#direct = options.direct;
    this.#transfersPerGroup = options.transfersPerGroup;
    this.#rankOf = Int32Array.from(
      { length: slots },
      (_, slot) => Math.floor(slot / slotsPerRank),
    );
    this.#round = new Int32Array(layers * slots);
    this.#room = new Int32Array(ranks);
    this.#inside = new Int32Array(ranks);
    this.#copied = new Int32Array(slots);
    this.#transfers = new Int32Array(ranks);
    this.#place = new Int32Array(ranks);
    const table = options.batches.length;
    const operations = this.#countOperations();
    this.words = new Int32Array(
      HEADER_WORDS + table + operations * OPERATION_WORDS,
    );
    this.batches = this.words.subarray(HEADER_WORDS, HEADER_WORDS + table);
    this.operations = this.words.subarray(HEADER_WORDS + table);
    const count = table / BATCH_WORDS;
    this.words.set([
      PROGRAM_MAGIC,
      PROGRAM_VERSION,
      count,
      operations,
      layers,
      slotsPerRank,
      ranks,
    ]);
    this.batches.set(options.batches);
  }

  /** Writes the operations of one batch; to be called for each, in order. */
  write(batch: number): void {
    const { slots } = this.#plan;
    const first = this.batches[batch * BATCH_WORDS]! * slots;
    const end = this.batches[batch * BATCH_WORDS + 1]! * slots;
    this.#giveRounds(first, end);
    this.#layOut();
    for (let base = first; base < end; base += slots) {
      this.#writeLayer(batch, base);
    }
  }

  #countOperations(): number {
    const { layers, slots, cases, source } = this.#plan;
    const [rankOf, local] = [this.#rankOf, this.#local];
    let count = 0;
    for (let base = 0; base < layers * slots; base += slots) {
      for (let slot = 0; slot < slots; slot++) {
        const kind = cases[base + slot]!;
        if (kind < MigrationCase.sameRank) continue;
        count += local[rankOf[slot]!]!;
        if (kind >= MigrationCase.sameNode) {
          count += local[rankOf[source[base + slot]!]!]!;
        }
      }
    }
    return count;
  }

  #giveRounds(first: number, end: number): void {
    const { slots, cases, source } = this.#plan;
    const [rankOf, inside] = [this.#rankOf, this.#inside.fill(0)];
    this.#transfers.fill(0);
    this.#room.fill(0);
    this.#rounds = 1;
    for (let base = first; base < end; base += slots) {
      for (let slot = 0; slot < slots; slot++) {
        const kind = cases[base + slot]!;
        if (kind < MigrationCase.sameRank) continue;
        const rank = rankOf[slot]!;
        if (kind < MigrationCase.sameNode) inside[rank]!++;
        else {this.#round[base + slot] = this.#join(
            rankOf[source[base + slot]!]!,
            rank,
          );}
      }
    }
  }

  // Adds a transfer to the first round in which both ranks have room.
  #join(from: number, to: number): number {
    const { ranks } = this.#plan;
    const [room, most] = [this.#room, this.#transfersPerGroup];
    let round = Math.max(room[from]!, room[to]!);
    for (;; round++) {
      if (round >= this.#rounds) this.#addRound();
      const row = round * ranks;
      if (
        this.#transfers[row + from]! < most && this.#transfers[row + to]! < most
      ) break;
    }
    for (const rank of [from, to]) {
      if (++this.#transfers[round * ranks + rank]! < most) continue;
      while (
        room[rank]! < this.#rounds &&
        this.#transfers[room[rank]! * ranks + rank]! >= most
      ) {
        room[rank]!++;
      }
    }
    return round;
  }

  #addRound(): void {
    const needed = ++this.#rounds * this.#plan.ranks;
    if (needed <= this.#transfers.length) return;
    const larger = new Int32Array(needed * 2);
    larger.set(this.#transfers);
    this.#transfers = larger;
    this.#place = new Int32Array(needed * 2);
  }

  // Finds where the operations of each round and rank begin.
  #layOut(): void {
    const { ranks } = this.#plan;
    for (let round = 0; round < this.#rounds; round++) {
      for (let rank = 0; rank < ranks; rank++) {
        const group = round * ranks + rank;
        this.#place[group] = this.#written;
        if (!this.#local[rank]) continue;
        this.#written += this.#transfers[group]!;
        if (round === 0) this.#written += this.#inside[rank]!;
      }
    }
  }

  #writeLayer(batch: number, base: number): void {
    const { slots, slotsPerRank, cases, source } = this.#plan;
    const { send, receive, copy, duplicate } = OperationCode;
    const [rankOf, copied] = [this.#rankOf, this.#copied];
    const layer = base / slots;
    for (let cell = base; cell < base + slots; cell++) {
      const kind = cases[cell]!;
      if (kind < MigrationCase.sameRank) continue;
      const rank = rankOf[cell - base]!;
      const peer = rankOf[source[cell]!]!;
      const slot = cell - base - rank * slotsPerRank;
      const peerSlot = source[cell]! - peer * slotsPerRank;
      const direct = this.#direct?.[cell] ? OPERATION_DIRECT : 0;
      if (kind >= MigrationCase.sameNode) {
        const round = this.#round[cell]!;
        const code = receive | direct;
        this.#put(batch, round, rank, code, layer, slot, peer, peerSlot);
        this.#put(batch, round, peer, send, layer, peerSlot, rank, slot);
      } else if (kind === MigrationCase.duplicate) {
        this.#put(batch, 0, rank, duplicate, layer, slot, rank, peerSlot);
      } else if (copied[source[cell]!]! > base) {
        // Only the first copy is staged; the others share it.
        const first = copied[source[cell]!]! - 1 - base - rank * slotsPerRank;
        this.#put(batch, 0, rank, duplicate, layer, slot, rank, first);
      } else {
        copied[source[cell]!] = cell + 1;
        this.#put(batch, 0, rank, copy | direct, layer, slot, rank, peerSlot);
      }
    }
  }

  // Positional, because it is called for every operation.
  #put(
    batch: number,
    round: number,
    rank: number,
    code: number,
    layer: number,
    slot: number,
    peer: number,
    peerSlot: number,
  ): void {
    if (!this.#local[rank]) return;
    const { operations } = this;
    const at = this.#place[round * this.#plan.ranks + rank]!++ *
      OPERATION_WORDS;
    operations[at] = batch;
    operations[at + 1] = round;
    operations[at + 2] = rank;
    operations[at + 3] = code;
    operations[at + 4] = layer;
    operations[at + 5] = slot;
    operations[at + 6] = peer;
    operations[at + 7] = peerSlot;
  }
}
