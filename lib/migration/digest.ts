// SPDX-License-Identifier: Apache-2.0

/**
 * A fingerprint of everything a migration follows from.
 *
 * @module
 */
import type { Placement } from "../placement.ts";
import type { Topology } from "../topology.ts";

/** What {@linkcode planDigest} digests. */
export interface PlanDigestInput {
  /** The placement as it is. */
  readonly from: Placement;
  /** The placement as it is to be. */
  readonly to: Placement;
  /** Where the ranks are; link rates do not count. */
  readonly topology: Topology;
  /** Bytes of one expert in each of its tensors. */
  readonly tensorBytes: readonly number[];
  /**
   * What else the plan and its program follow from, such as the source choice and staging cells.
   *
   * @default {{}}
   */
  readonly options?: Readonly<Record<string, string | number>>;
}

/**
 * Digests what a plan and its program follow from, to compare across ranks before bytes move.
 *
 * It guards against ranks that differ by mistake, not against an attacker.
 *
 * @param input Placements, topology, tensor sizes and options.
 * @returns 64 bits as 16 hexadecimal digits.
 *
 * @example Usage
 * ```ts
 * import { Placement, planDigest, Topology } from "@eplb/eplb";
 * import { assertMatch, assertNotEquals } from "@std/assert";
 *
 * const from = Placement.from([[0, 1]], { ranks: 2 });
 * const to = Placement.from([[1, 0]], { ranks: 2 });
 * const topology = Topology.uniform({ ranks: 2, nodes: 1 });
 * const digest = planDigest({ from, to, topology, tensorBytes: [4096] });
 *
 * assertMatch(digest, /^[0-9a-f]{16}$/);
 * assertNotEquals(digest, planDigest({ from, to, topology, tensorBytes: [8192] }));
 * ```
 */
export function planDigest(input: PlanDigestInput): string {
  const { from, to, topology, tensorBytes, options = {} } = input;
  const digest = new Digest();
  for (const placement of [from, to]) {
    const { layers, ranks, slotsPerRank, experts } = placement;
    digest.add(Int32Array.of(layers, ranks, slotsPerRank, experts));
    digest.add(placement.physicalToLogical);
  }
  digest.add(topology.nodeOf);
  digest.add(textWords(JSON.stringify(tensorBytes)));
  // Sorted, because the order in which options were written does not count.
  digest.add(textWords(JSON.stringify(Object.entries(options).sort())));
  return digest.toString();
}

// Two independent 32-bit hashes over the same words, each a multiply-rotate chain with a finaliser
// as in MurmurHash3, which is what keeps 64-bit integers out of the loop.
class Digest {
  #a = 0x243f6a88;
  #b = 0x85a308d3;
  #words = 0;

  // Adds a section. Its length goes first, so that no two lists of sections look alike.
  add(words: Int32Array): void {
    let a = mixA(this.#a, words.length);
    let b = mixB(this.#b, words.length);
    for (let i = 0; i < words.length; i++) {
      const word = words[i]!;
      a = mixA(a, word);
      b = mixB(b, word);
    }
    this.#a = a;
    this.#b = b;
    this.#words += 1 + words.length;
  }

  toString(): string {
    const lanes = [
      finish(this.#a ^ this.#words),
      finish(this.#b + this.#words),
    ];
    return lanes.map((lane) => lane.toString(16).padStart(8, "0")).join("");
  }
}

function mixA(hash: number, word: number): number {
  let k = Math.imul(word, 0xcc9e2d51);
  k = Math.imul((k << 15) | (k >>> 17), 0x1b873593);
  hash ^= k;
  return (Math.imul((hash << 13) | (hash >>> 19), 5) + 0xe6546b64) | 0;
}

function mixB(hash: number, word: number): number {
  let k = Math.imul(word, 0x239b961b);
  k = Math.imul((k << 16) | (k >>> 16), 0xab0e9789);
  hash ^= k;
  return (Math.imul((hash << 17) | (hash >>> 15), 5) + 0x561ccd1b) | 0;
}

function finish(hash: number): number {
  hash = Math.imul(hash ^ (hash >>> 16), 0x85ebca6b);
  hash = Math.imul(hash ^ (hash >>> 13), 0xc2b2ae35);
  return (hash ^ (hash >>> 16)) >>> 0;
}

function textWords(text: string): Int32Array {
  return Int32Array.from(new TextEncoder().encode(text));
}
