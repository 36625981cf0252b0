/**
 * The placement policy of deepseek-ai/EPLB.
 *
 * @module
 */
import { checkInteger } from "../_check.ts";
import { Placement } from "../placement.ts";

/** Options of {@linkcode deepseekPolicy}. */
export interface DeepseekPolicyOptions {
  /** Logical experts per layer. */
  readonly experts: number;
  /** Ranks that share the experts. */
  readonly ranks: number;
  /** Slots of one rank in each layer. */
  readonly slotsPerRank: number;
  /**
   * Nodes that the ranks are on, as many on each.
   *
   * @default {1}
   */
  readonly nodes?: number;
  /**
   * Groups that the experts form, as many in each. If `nodes` divides it, a
   * group and its replicas stay on one node; else nodes and groups are ignored.
   *
   * @default {1}
   */
  readonly groups?: number;
}

/**
 * Places experts anew as deepseek-ai/EPLB's `rebalance_experts` does.
 *
 * Groups are packed onto nodes, the hottest experts of each node get its
 * redundant slots, and the slots are packed onto ranks; each step is greedy, and
 * ties go to the lowest index. Arithmetic is in float32 like the original's.
 * Where today's copies are is not looked at, so most slots move.
 *
 * @param load Tokens per logical expert, [layers, experts], row major.
 * @param options Sizes of the job.
 * @returns The placement; every slot is filled.
 * @throws {RangeError} If a size is not positive, does not divide what it must,
 * or leaves fewer slots than experts, or if a load is negative or not finite.
 *
 * @example
 * ```ts
 * import { deepseekPolicy } from "@eplb/eplb";
 * import { assertEquals } from "@std/assert";
 *
 * const load = new Float64Array([10, 90, 20, 40]);
 * const placement = deepseekPolicy(load, {
 *   experts: 4,
 *   ranks: 2,
 *   slotsPerRank: 3,
 * });
 * assertEquals(
 *   placement.physicalToLogical,
 *   new Int32Array([3, 1, 0, 1, 1, 2]),
 * );
 * ```
 */
export function deepseekPolicy(
  load: Float64Array,
  options: DeepseekPolicyOptions,
): Placement {
  const sizes = checkSizes(load, options);
  const weights = toFloat32(load, sizes.experts);
  const slots = sizes.ranks * sizes.slotsPerRank;
  const layers = load.length / sizes.experts;
  const map = new Int32Array(layers * slots);
  for (let layer = 0; layer < layers; layer++) {
    placeLayer(
      weights.subarray(layer * sizes.experts, (layer + 1) * sizes.experts),
      map.subarray(layer * slots, (layer + 1) * slots),
      sizes,
    );
  }
  return Placement.from(map, {
    layers,
    ranks: sizes.ranks,
    experts: sizes.experts,
  });
}

/** Bits of the largest float32. */
const INFINITY_BITS = 0x7f800000;

type Sizes = Required<DeepseekPolicyOptions>;

/** Fills the slots of one layer. */
function placeLayer(load: Float32Array, map: Int32Array, sizes: Sizes): void {
  const { experts, ranks, nodes } = sizes;
  const order = groupByNode(load, sizes);
  const expertsPerNode = experts / nodes;
  const slotsPerNode = map.length / nodes;
  for (let node = 0; node < nodes; node++) {
    const members = order.subarray(
      node * expertsPerNode,
      (node + 1) * expertsPerNode,
    );
    const local = replicate(load, { members, slots: slotsPerNode });
    const places = pack(local.load, ranks / nodes);
    const target = map.subarray(node * slotsPerNode, (node + 1) * slotsPerNode);
    for (let i = 0; i < slotsPerNode; i++) {
      target[places[i]!] = local.expert[i]!;
    }
  }
}

/** Packs groups onto nodes: experts [experts] in the order of their nodes. */
function groupByNode(load: Float32Array, sizes: Sizes): Int32Array {
  const { experts, groups, nodes } = sizes;
  const groupSize = experts / groups;
  const groupLoad = new Float32Array(groups);
  for (let group = 0; group < groups; group++) {
    let sum = 0;
    for (let i = 0; i < groupSize; i++) sum += load[group * groupSize + i]!;
    groupLoad[group] = sum;
  }
  const places = pack(groupLoad, nodes);
  const order = new Int32Array(experts);
  for (let expert = 0; expert < experts; expert++) {
    const group = Math.floor(expert / groupSize);
    const place = places[group]! * groupSize + expert % groupSize;
    order[place] = expert;
  }
  return order;
}

/**
 * Gives one copy to each member and the other slots, one by one, to the member
 * whose copies carry most.
 *
 * @returns Expert and load of each copy, [slots].
 */
function replicate(
  load: Float32Array,
  options: { readonly members: Int32Array; readonly slots: number },
): { readonly expert: Int32Array; readonly load: Float32Array } {
  const { members, slots } = options;
  const copies = new Int32Array(members.length).fill(1);
  const share = new Float32Array(members.length);
  for (let i = 0; i < members.length; i++) share[i] = load[members[i]!]!;
  const memberOf = new Int32Array(slots);
  for (let i = 0; i < members.length; i++) memberOf[i] = i;
  for (let i = members.length; i < slots; i++) {
    const member = indexOfMax(share);
    memberOf[i] = member;
    copies[member]! += 1;
    share[member] = load[members[member]!]! / copies[member]!;
  }
  const copy = { expert: new Int32Array(slots), load: new Float32Array(slots) };
  for (let i = 0; i < slots; i++) {
    copy.expert[i] = members[memberOf[i]!]!;
    copy.load[i] = share[memberOf[i]!]!;
  }
  return copy;
}

function indexOfMax(values: Float32Array): number {
  let best = 0;
  let max = values[0]!;
  for (let i = 1; i < values.length; i++) {
    const value = values[i]!;
    if (value > max) {
      best = i;
      max = value;
    }
  }
  return best;
}

/**
 * Packs items into packs of equal size, heaviest item first, each into the
 * lightest pack that has room.
 *
 * @returns Place of each item, [items]: pack × items per pack + rank in the pack.
 */
function pack(weight: Float32Array, packs: number): Int32Array {
  const perPack = weight.length / packs;
  // As the original does: packs of one item are not sorted.
  if (perPack === 1) return Int32Array.from(weight.keys());
  const order = heaviestFirst(weight);
  const packWeight = new Float32Array(packs);
  const packItems = new Int32Array(packs);
  const places = new Int32Array(weight.length);
  for (const item of order) {
    let lightest = -1;
    for (let i = 0; i < packs; i++) {
      if (packItems[i] === perPack) continue;
      if (lightest < 0 || packWeight[i]! < packWeight[lightest]!) lightest = i;
    }
    places[item] = lightest * perPack + packItems[lightest]!;
    packItems[lightest]! += 1;
    packWeight[lightest]! += weight[item]!;
  }
  return places;
}

/**
 * Indices of the weights in descending order, ties by index.
 *
 * Weight and index become one number, because sorting without a comparator is
 * many times faster. The bits of non-negative float32 values are in the order of
 * the values; with up to 2^22 weights the numbers are exact.
 */
function heaviestFirst(weight: Float32Array): Float64Array {
  const bits = new Uint32Array(weight.buffer, weight.byteOffset, weight.length);
  const keys = new Float64Array(weight.length);
  for (let i = 0; i < keys.length; i++) {
    keys[i] = (INFINITY_BITS - bits[i]!) * keys.length + i;
  }
  keys.sort();
  for (let i = 0; i < keys.length; i++) keys[i]! %= keys.length;
  return keys;
}

/** Refuses sizes that do not fit, and turns those of the global policy into 1. */
function checkSizes(load: Float64Array, options: DeepseekPolicyOptions): Sizes {
  const { nodes = 1, groups = 1, ...rest } = options;
  const { experts, ranks, slotsPerRank } = rest;
  const named = { experts, ranks, slotsPerRank, nodes, groups };
  for (const [name, value] of Object.entries(named)) {
    checkInteger(value, { action: "place experts", name, min: 1 });
  }
  if (load.length === 0 || load.length % experts !== 0) {
    throw new RangeError(
      `Cannot place experts: load must hold whole layers of ${experts} experts, it has ${load.length} values`,
    );
  }
  const slots = ranks * slotsPerRank;
  if (slots < experts) {
    throw new RangeError(
      `Cannot place experts: ${ranks} ranks of ${slotsPerRank} slots are fewer than ${experts} experts`,
    );
  }
  if (groups % nodes !== 0) return { ...named, nodes: 1, groups: 1 };
  if (experts % groups !== 0) {
    throw new RangeError(
      `Cannot place experts: ${experts} experts do not form ${groups} equal groups`,
    );
  }
  if (ranks % nodes !== 0) {
    throw new RangeError(
      `Cannot place experts: ${ranks} ranks do not divide over ${nodes} nodes`,
    );
  }
  return named;
}

function toFloat32(load: Float64Array, experts: number): Float32Array {
  const weights = new Float32Array(load);
  for (let index = 0; index < weights.length; index++) {
    const weight = weights[index]! += 0; // -0 becomes 0
    if (!(weight >= 0 && weight < Infinity)) {
      throw new RangeError(
        `Cannot place experts: load of layer ${
          Math.floor(index / experts)
        }, expert ${
          index % experts
        } must be a non-negative finite float32, it is ${load[index]}`,
      );
    }
  }
  return weights;
}
