// deepseek-ai/EPLB's algorithm in the plainest way, with ties going to the lowest index.

/** Sizes of a job whose nodes are equally populated and divide the groups. */
export interface NaiveSizes {
  readonly ranks: number;
  readonly slotsPerRank: number;
  readonly nodes: number;
  readonly groups: number;
}

/** Index of the first of the largest values. */
function hottest(values: readonly number[]): number {
  return values.indexOf(Math.max(...values));
}

/** Puts the heaviest item first into the lightest pack with room; lists each pack's items. */
function pack(weights: readonly number[], packs: number): number[][] {
  const size = weights.length / packs;
  if (size === 1) return weights.map((_, item) => [item]);
  const order = [...weights.keys()].sort((a, b) =>
    weights[b]! - weights[a]! || a - b
  );
  const filled = Array.from({ length: packs }, () => [] as number[]);
  const sums = Array<number>(packs).fill(0);
  for (const item of order) {
    const open = [...filled.keys()].filter((i) => filled[i]!.length < size);
    const lightest = open.reduce((a, b) => sums[b]! < sums[a]! ? b : a);
    filled[lightest]!.push(item);
    sums[lightest] = Math.fround(sums[lightest]! + weights[item]!);
  }
  return filled;
}

/** Expert of each slot of one layer. */
export function naiveDeepseek(
  row: readonly number[],
  { ranks, slotsPerRank, nodes, groups }: NaiveSizes,
): number[] {
  const load = row.map(Math.fround);
  const size = load.length / groups;
  const experts = [...load.keys()];
  const groupsOf = pack(
    Array.from({ length: groups }, (_, group) =>
      Math.fround(
        load.slice(group * size, (group + 1) * size).reduce((a, b) => a + b),
      )),
    nodes,
  );
  return groupsOf.flatMap((its) => {
    const members = its.flatMap((group) =>
      experts.slice(group * size, (group + 1) * size)
    );
    const copies = members.map(() => 1);
    const shares = (): number[] =>
      members.map((expert, i) => Math.fround(load[expert]! / copies[i]!));
    const slots = [...members.keys()];
    while (slots.length < ranks / nodes * slotsPerRank) {
      const hot = hottest(shares());
      slots.push(hot);
      copies[hot]!++;
    }
    const final = shares();
    return pack(slots.map((member) => final[member]!), ranks / nodes)
      .flat().map((slot) => members[slots[slot]!]!);
  });
}
