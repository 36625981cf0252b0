// Random migrations for property tests: any shape, any node table, empty slots.
import fc from "fast-check";
import { Placement } from "../../lib/placement.ts";
import { SeededRandom } from "../../lib/random.ts";
import { Topology } from "../../lib/topology.ts";

/** Two placements of one shape, and where their ranks are. */
export interface Scenario {
  readonly from: Placement;
  readonly to: Placement;
  readonly topology: Topology;
}

/** The least and the most that a scenario has of each. */
export interface ScenarioBounds {
  readonly layers: readonly [number, number];
  readonly ranks: readonly [number, number];
  readonly slotsPerRank: readonly [number, number];
  /** Experts per 100 slots. */
  readonly percent?: readonly [number, number];
}

/** Scenarios within the given bounds. */
export function scenarios(bounds: ScenarioBounds): fc.Arbitrary<Scenario> {
  // Without bias, since the smallest shapes move nothing.
  return fc.noBias(fc.record({
    layers: between(bounds.layers),
    ranks: between(bounds.ranks),
    slotsPerRank: between(bounds.slotsPerRank),
    nodes: fc.integer({ min: 1, max: 4 }),
    percent: between(bounds.percent ?? [1, 100]),
    empty: fc.constantFrom(0, 0.2, 0.9),
    change: fc.constantFrom(0, 0.1, 1),
    seed: fc.noBias(fc.nat()),
  })).map(({ percent, nodes, seed, ...rest }) => {
    const random = new SeededRandom(seed);
    const { ranks, slotsPerRank } = rest;
    const shape = {
      ...rest,
      experts: Math.ceil(percent / 100 * ranks * slotsPerRank),
    };
    const from = randomRows(shape, random);
    const to = rest.change === 1
      ? randomRows(shape, random)
      : from.map((row) => mutate(row, shape, random));
    return {
      from: Placement.from(from, shape),
      to: Placement.from(to, shape),
      topology: Topology.fromNodes(
        Array.from({ length: ranks }, () => 3 * random.below(nodes)),
      ),
    };
  });
}

function between([min, max]: readonly [number, number]): fc.Arbitrary<number> {
  return fc.integer({ min, max });
}

interface RowShape {
  readonly layers: number;
  readonly ranks: number;
  readonly slotsPerRank: number;
  readonly experts: number;
  // Chance of a slot that no expert depends on to be empty, or to change.
  readonly empty: number;
  readonly change: number;
}

function randomRows(shape: RowShape, random: SeededRandom): number[][] {
  const { layers, ranks, slotsPerRank, experts } = shape;
  return Array.from({ length: layers }, () => {
    const row = Int32Array.from(
      { length: ranks * slotsPerRank },
      (_, slot) => slot < experts ? slot : anyContent(shape, random),
    );
    random.shuffle(row);
    return [...row];
  });
}

// Changes some slots, by swapping them with others or by changing redundant ones.
function mutate(
  row: readonly number[],
  shape: RowShape,
  random: SeededRandom,
): number[] {
  const next = [...row];
  for (let slot = 0; slot < next.length; slot++) {
    if (random.uint32() / 2 ** 32 >= shape.change) continue;
    const other = random.below(next.length);
    [next[slot], next[other]] = [next[other]!, next[slot]!];
    const content = next[slot]!;
    const redundant = content < 0 || next.indexOf(content) !== slot ||
      next.lastIndexOf(content) !== slot;
    if (redundant) next[slot] = anyContent(shape, random);
  }
  return next;
}

function anyContent(shape: RowShape, random: SeededRandom): number {
  return random.uint32() / 2 ** 32 < shape.empty
    ? -1
    : random.below(shape.experts);
}
