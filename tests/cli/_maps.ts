// Maps for tests, and what moving from one to another must take, by the meaning
// of the words alone.

/** A physical to logical map, [layers][slots]. */
export type Rows = number[][];

/** The JSON that serving engines write. */
export function jsonOf(rows: Rows): string {
  return JSON.stringify({ physical_to_logical_map: rows });
}

/** A map that depends on the seed: every expert, some of them often, maybe holes. */
export function shuffledMap(
  size: {
    readonly layers: number;
    readonly slots: number;
    readonly experts: number;
    /** Slots of each layer that stay empty. */
    readonly empty?: number;
  },
  seed: number,
): Rows {
  const { layers, slots, experts, empty = 0 } = size;
  let state = seed;
  const below = (limit: number): number => {
    // A Lehmer generator; good enough for a shuffle.
    state = (state * 48_271 + 11) % 2_147_483_647;
    return state % limit;
  };
  return Array.from({ length: layers }, () => {
    const row = Array.from({ length: slots }, (_, slot) => {
      if (slot < experts) return slot;
      return slot >= slots - empty ? -1 : below(experts);
    });
    for (let i = slots - 1; i > 0; i--) {
      const j = below(i + 1);
      [row[i], row[j]] = [row[j]!, row[i]!];
    }
    return row;
  });
}

/** The map that engines start from. */
export function contiguousMap(
  size: {
    readonly layers: number;
    readonly slots: number;
    readonly experts: number;
  },
): Rows {
  return Array.from(
    { length: size.layers },
    () => Array.from({ length: size.slots }, (_, slot) => slot % size.experts),
  );
}

/** What a move takes. */
export interface Needs {
  readonly moves: {
    readonly unchanged: number;
    readonly sameRank: number;
    readonly duplicate: number;
    readonly sameNode: number;
    readonly crossNode: number;
  };
  /** Experts that each rank must receive. */
  readonly received: readonly number[];
}

/** Counts, slot by slot, where the new content can come from at best. */
export function needsOf(
  from: Rows,
  to: Rows,
  world: { readonly ranks: number; readonly nodes: number },
): Needs {
  const moves = {
    unchanged: 0,
    sameRank: 0,
    duplicate: 0,
    sameNode: 0,
    crossNode: 0,
  };
  const received = Array<number>(world.ranks).fill(0);
  const perRank = from[0]!.length / world.ranks;
  const perNode = from[0]!.length / world.nodes;
  const group = (row: number[], slot: number, size: number): number[] => {
    const begin = slot - slot % size;
    return row.slice(begin, begin + size);
  };
  to.forEach((row, layer) => {
    const old = from[layer]!;
    const arrived = new Set<string>();
    row.forEach((expert, slot) => {
      if (expert === -1) return;
      const rank = Math.floor(slot / perRank);
      if (old[slot] === expert) moves.unchanged++;
      else if (group(old, slot, perRank).includes(expert)) moves.sameRank++;
      else if (arrived.has(`${rank} ${expert}`)) moves.duplicate++;
      else {
        arrived.add(`${rank} ${expert}`);
        received[rank]!++;
        const near = group(old, slot, perNode).includes(expert);
        moves[near ? "sameNode" : "crossNode"]++;
      }
    });
  });
  return { moves, received };
}
