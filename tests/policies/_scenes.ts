// Random jobs for policies.
import fc from "fast-check";
import { Placement } from "../../lib/placement.ts";
import type { PolicyInput } from "../../lib/policies/policy.ts";
import { Topology } from "../../lib/topology.ts";

/** What to vary. */
export interface SceneOptions {
  /** Whether there always is a placement of today, never is, or sometimes. */
  readonly current: "always" | "never" | "sometimes";
  /** Whether some ranks may be inactive. */
  readonly subsets: boolean;
}

/** A job whose active ranks have slots enough. */
export function scenes(options: SceneOptions): fc.Arbitrary<PolicyInput> {
  return fc.record({
    nodes: fc.integer({ min: 1, max: 3 }),
    ranksPerNode: fc.integer({ min: 1, max: 3 }),
    slotsPerRank: fc.integer({ min: 1, max: 5 }),
    layers: fc.integer({ min: 1, max: 3 }),
    idle: options.subsets ? fc.nat(3) : fc.constant(0),
    seed: fc.nat(),
    placed: fc.boolean(),
  }).chain(({ nodes, ranksPerNode, slotsPerRank, layers, ...rest }) => {
    const ranks = nodes * ranksPerNode;
    const activeCount = Math.max(1, ranks - rest.idle);
    const slots = activeCount * slotsPerRank;
    const min = Math.max(1, Math.floor(slots / 3));
    return fc.integer({ min, max: slots }).chain((experts) => {
      const length = layers * experts;
      const shape = { layers, ranks, slotsPerRank, experts };
      const placed = options.current === "always" ||
        options.current === "sometimes" && rest.placed;
      return fc.record({
        load: fc.array(tokens, { minLength: length, maxLength: length }),
        current: placed ? placements(shape, rest.seed) : fc.constant(undefined),
        active: fc.shuffledSubarray([...Array(ranks).keys()], {
          minLength: activeCount,
          maxLength: activeCount,
        }),
      }).map(({ load, current, active }) => ({
        load: new Float64Array(load),
        experts,
        slotsPerRank,
        topology: Topology.uniform({ ranks, nodes }),
        active: active.sort((a, b) => a - b),
        ...(current === undefined ? {} : { current }),
      }));
    });
  });
}

const tokens = fc.oneof(
  { weight: 3, arbitrary: fc.nat(1_000_000) },
  { weight: 1, arbitrary: fc.nat(20) },
  { weight: 1, arbitrary: fc.constant(0) },
);

/** A random placement with some empty slots. */
function placements(
  shape: {
    readonly layers: number;
    readonly ranks: number;
    readonly slotsPerRank: number;
    readonly experts: number;
  },
  seed: number,
): fc.Arbitrary<Placement> {
  const full = Placement.random({ ...shape, seed });
  return fc.array(fc.nat(full.physicalToLogical.length - 1), { maxLength: 8 })
    .map((cells) => {
      const map = full.physicalToLogical.slice();
      for (const cell of cells) {
        const layer = Math.floor(cell / full.slots);
        const row = map.subarray(layer * full.slots, (layer + 1) * full.slots);
        const expert = map[cell]!;
        // The only copy stays.
        if (row.filter((other) => other === expert).length > 1) map[cell] = -1;
      }
      return Placement.from(map, shape);
    });
}
