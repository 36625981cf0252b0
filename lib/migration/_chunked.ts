// SPDX-License-Identifier: Apache-2.0

/**
 * SGLang's source choice.
 *
 * @module
 */
import type { LayerDemands, SourceChooser } from "./_demands.ts";

/**
 * Deals the destinations of an expert out to its holders in contiguous chunks.
 *
 * Both ascend; chunk sizes differ by at most one, longer ones first. A node with holders deals its
 * own destinations out to them; the destinations on all other nodes are dealt out to all holders.
 */
export class ChunkedSources implements SourceChooser {
  readonly #demands: LayerDemands;
  // Destinations dealt out together, and those dealt out so far, [experts, nodes + 1]. The last
  // column is for the nodes without a holder.
  readonly #size: Int32Array;
  readonly #dealt: Int32Array;

  constructor(demands: LayerDemands) {
    this.#demands = demands;
    const groups = demands.holderCount.length * (demands.topology.nodes + 1);
    this.#size = new Int32Array(groups);
    this.#dealt = new Int32Array(groups);
  }

  choose(): void {
    const { count, source } = this.#demands;
    this.#size.fill(0);
    this.#dealt.fill(0);
    for (let i = 0; i < count; i++) this.#size[this.#groupOf(i)]!++;
    for (let i = 0; i < count; i++) {
      const group = this.#groupOf(i);
      const index = this.#dealt[group]!++;
      source[i] = this.#deal(i, { index, of: this.#size[group]! });
    }
  }

  #groupOf(i: number): number {
    const { expert, node, topology: { nodes } } = this.#demands;
    return expert[i]! * (nodes + 1) + (node[i]! < 0 ? nodes : node[i]!);
  }

  // The holder whose chunk has the destination at `index`.
  #deal(i: number, { index, of }: { index: number; of: number }): number {
    const { expert, node, holders, holderCount, topology } = this.#demands;
    const row = expert[i]! * topology.ranks;
    const end = row + holderCount[expert[i]!]!;
    const eligible = (k: number) =>
      node[i]! < 0 || topology.nodeOf[holders[k]!] === node[i];
    let chunks = 0;
    for (let k = row; k < end; k++) if (eligible(k)) chunks++;
    let chunk = chunkOf(index, { of, chunks });
    let k = row;
    while (!eligible(k) || chunk-- > 0) k++;
    return holders[k]!;
  }
}

// The chunk of the element at `index`, of elements in contiguous chunks, longer ones first.
function chunkOf(
  index: number,
  { of, chunks }: { of: number; chunks: number },
): number {
  const short = Math.floor(of / chunks);
  const longer = of % chunks;
  const inLonger = longer * (short + 1);
  return index < inLonger
    ? Math.floor(index / (short + 1))
    : longer + Math.floor((index - inLonger) / short);
}
