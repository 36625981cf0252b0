import {
  assert,
  assertAlmostEquals,
  assertEquals,
  assertThrows,
} from "@std/assert";
import fc from "fast-check";
import { LoadWindow, type LoadWindowOptions } from "../../lib/load/window.ts";
import { Placement } from "../../lib/placement.ts";
import { SeededRandom } from "../../lib/random.ts";

const MOST = Number.MAX_SAFE_INTEGER;

/** Options of a window, and the counts of some steps. */
const recordings = fc.record({
  layers: fc.integer({ min: 1, max: 2 }),
  experts: fc.integer({ min: 1, max: 3 }),
  steps: fc.option(fc.integer({ min: 1, max: 4 }), { nil: Infinity }),
  decay: fc.constantFrom(1, 0.5, 0.9),
}).chain((options) => {
  const length = options.layers * options.experts;
  const step = fc.array(fc.oneof(fc.nat(9), fc.nat(2 ** 40)), {
    minLength: length,
    maxLength: length,
  });
  return fc.tuple(fc.constant(options), fc.array(step, { maxLength: 9 }));
});

/** The load by the definition: each step times decay to the power of its age. */
function naiveLoad(options: LoadWindowOptions, all: number[][]): number[] {
  const { layers, experts, steps = Infinity, decay = 1 } = options;
  const last = all.slice(steps === Infinity ? 0 : -steps);
  return Array.from({ length: layers * experts }, (_, i) =>
    last.reduce(
      (sum, counts, step) =>
        sum + counts[i]! * decay ** (last.length - 1 - step),
      0,
    ));
}

function windowOf(options: LoadWindowOptions, all: number[][]): LoadWindow {
  const window = new LoadWindow(options);
  for (const counts of all) window.record(new Float64Array(counts));
  return window;
}

Deno.test("LoadWindow.load() adds up the last steps, each decayed by its age", () => {
  fc.assert(fc.property(recordings, ([options, all]) => {
    const window = windowOf(options, all);
    assertEquals(window.recorded, Math.min(all.length, options.steps));
    const expected = naiveLoad(options, all);
    window.load().forEach((tokens, i) => {
      assertAlmostEquals(tokens, expected[i]!, expected[i]! * 1e-14);
    });
    if (options.decay === 1) assertEquals([...window.load()], expected);
  }));
});

Deno.test("LoadWindow.load() gives a copy and can be asked for again", () => {
  const window = windowOf({ layers: 1, experts: 2 }, [[1, 2]]);
  window.load().fill(9);
  assertEquals([...window.load()], [1, 2]);
});

Deno.test("LoadWindow.record() copies what it is given", () => {
  for (const steps of [2, Infinity]) {
    const window = new LoadWindow({ layers: 1, experts: 2, steps });
    const counts = new Int32Array([1, 2]);
    window.record(counts);
    counts.fill(9);
    window.record(counts);
    assertEquals([...window.load()], [10, 11]);
  }
});

Deno.test("LoadWindow.record() takes a step without tokens as a step", () => {
  const window = windowOf({ layers: 1, experts: 1, steps: 2 }, [[5], [7], [0]]);
  assertEquals([...window.load()], [7]);
  window.record(new Int32Array(1));
  assertEquals([...window.load()], [0]);
});

Deno.test("LoadWindow.record() adds int32 counts without overflow", () => {
  const counts = new Int32Array([2 ** 31 - 1]);
  for (const steps of [4, Infinity]) {
    const window = new LoadWindow({ layers: 1, experts: 1, steps });
    for (let step = 0; step < 4; step++) window.record(counts);
    assertEquals([...window.load()], [4 * (2 ** 31 - 1)]);
  }
});

Deno.test("LoadWindow refuses sums that would not be exact", () => {
  const message = `layer 0, expert 1 has ${
    2 ** 53
  } tokens, more than ${MOST} are not exact`;
  const all = windowOf({ layers: 1, experts: 2 }, [[1, MOST]]);
  assertThrows(
    () => all.record(new Int32Array([1, 1])),
    RangeError,
    `Cannot record counts: ${message}`,
  );
  // Nothing of the refused step was recorded.
  assertEquals([...all.load()], [1, MOST]);
  assertEquals(all.recorded, 1);
  const last = windowOf({ layers: 1, experts: 2, steps: 2 }, [[1, MOST], [
    0,
    1,
  ]]);
  assertThrows(() => last.load(), RangeError, `Cannot add up load: ${message}`);
  last.record(new Int32Array(2));
  assertEquals([...last.load()], [0, 1]);
});

Deno.test("LoadWindow.record() refuses counts that are no numbers of tokens", () => {
  const window = new LoadWindow({ layers: 2, experts: 2 });
  for (const bad of [-1, 0.5, NaN, Infinity, 2 ** 53]) {
    assertThrows(
      () => window.record(new Float64Array([1, 1, 1, bad])),
      RangeError,
      `Cannot record counts: layer 1, expert 1 must have a whole number of tokens from 0 to ${MOST}, it has ${bad}`,
    );
  }
  assertThrows(
    () => window.record(new Float64Array(3)),
    RangeError,
    "Cannot record counts: there must be 2 layers × 2 experts, there are 3 counts",
  );
  assertEquals(window.recorded, 0);
});

Deno.test("LoadWindow.recordPhysical() counts each step under the map of its epoch", () => {
  fc.assert(fc.property(
    fc.array(fc.record({ epoch: fc.nat(2), seed: fc.nat() }), { maxLength: 8 }),
    (records) => {
      const shape = { layers: 2, ranks: 2, slotsPerRank: 3, experts: 4 };
      const maps = [0, 1, 2].map((seed) =>
        Placement.random({ ...shape, seed })
      );
      const window = new LoadWindow({ layers: 2, experts: 4 });
      maps.forEach((map, epoch) => window.addMap(epoch, map));
      const expected = Array<number>(8).fill(0);
      for (const { epoch, seed } of records) {
        const random = new SeededRandom(seed);
        const counts = new Int32Array(12).map(() => random.below(100));
        window.recordPhysical(counts, epoch);
        counts.forEach((count, cell) => {
          const expert = maps[epoch]!.physicalToLogical[cell]!;
          expected[Math.floor(cell / 6) * 4 + expert]! += count;
        });
      }
      assertEquals([...window.load()], expected);
    },
  ));
});

Deno.test("LoadWindow.recordPhysical() refuses an epoch that is not known", () => {
  const window = new LoadWindow({ layers: 1, experts: 2 });
  const record = (): void => window.recordPhysical(new Int32Array(2), 7);
  assertThrows(
    record,
    RangeError,
    "Cannot record counts: the map of epoch 7 is not known, known are none",
  );
  window.addMap(3, Placement.from([[0, 1]], { ranks: 1 }));
  window.addMap(4, Placement.from([[1, 0]], { ranks: 1 }));
  assertThrows(
    record,
    RangeError,
    "Cannot record counts: the map of epoch 7 is not known, known are 3, 4",
  );
  assert(window.removeMap(3));
  assert(!window.removeMap(3));
  assertThrows(() => window.recordPhysical(new Int32Array(2), 3), RangeError);
  window.recordPhysical(new Int32Array([5, 6]), 4);
  assertEquals([...window.load()], [6, 5]);
});

Deno.test("LoadWindow.recordPhysical() refuses counts that do not fit the map", () => {
  const window = new LoadWindow({ layers: 1, experts: 2 });
  window.addMap(0, Placement.from([[0, 1, -1]], { ranks: 1 }));
  const cases: [number[], string][] = [
    [[1, 2], "Cannot add up counts: there must be 1 layers × 3 slots"],
    [[1, 2, 3], "Cannot add up counts: layer 0, slot 2 is empty but has 3"],
    // Their sum would look fine.
    [[1, -2, 0], "Cannot record counts: layer 0, slot 1 must have a whole"],
  ];
  for (const [counts, message] of cases) {
    assertThrows(
      () => window.recordPhysical(new Int32Array(counts), 0),
      RangeError,
      message,
    );
  }
  assertEquals(window.recorded, 0);
});

Deno.test("LoadWindow.addMap() refuses maps that do not belong", () => {
  const window = new LoadWindow({ layers: 1, experts: 2 });
  const map = Placement.from([[0, 1]], { ranks: 1 });
  window.addMap(1, map);
  window.addMap(1, Placement.from([[0, 1]], { ranks: 1 }));
  assertThrows(
    () => window.addMap(1, Placement.from([[1, 0]], { ranks: 1 })),
    RangeError,
    "Cannot add map: epoch 1 is that of another placement",
  );
  assertThrows(
    () => window.addMap(2, Placement.from([[0, 1, 2]], { ranks: 1 })),
    RangeError,
    "Cannot add map: the placement has 1 layers on 1 ranks of 3 slots with 3 experts, the window 1 layers of 2 experts",
  );
  assertThrows(
    () => window.addMap(-1, map),
    RangeError,
    "Cannot add map: the epoch must be an integer from 0",
  );
});

Deno.test("LoadWindow.merge() gives all ranks the same bits, in whatever order", () => {
  const ranks = recordings.chain(([options, all]) =>
    fc.tuple(
      fc.constant(options),
      fc.constant(all),
      fc.array(
        fc.array(
          fc.array(fc.nat(2 ** 30), {
            minLength: options.layers * options.experts,
            maxLength: options.layers * options.experts,
          }),
          { maxLength: 5 },
        ),
        { maxLength: 3 },
      ),
    )
  );
  fc.assert(fc.property(ranks, ([options, first, others]) => {
    const recorded = [first, ...others];
    const windows = recorded.map((all) => windowOf(options, all));
    const sums = windows.map((window) => window.toReduce());
    const loads = windows.map((window, rank) =>
      window.merge(sums.filter((_, other) => other !== rank).toReversed())
    );
    for (const load of loads) assertEquals(load, loads[0]);
    const parts = recorded.map((all) => naiveLoad(options, all));
    loads[0]!.forEach((tokens, i) => {
      const total = parts.reduce((sum, part) => sum + part[i]!, 0);
      // Each rank rounds to whole tokens.
      const slack = 0.5 * recorded.length + total * 1e-14;
      assertAlmostEquals(tokens, total, slack);
      assert(Number.isSafeInteger(tokens));
    });
    // Merging twice counts nothing twice.
    assertEquals(windows[0]!.merge(sums.slice(1)), loads[0]);
  }));
});

Deno.test("LoadWindow.merge() refuses sums that are not those of a rank", () => {
  const window = windowOf({ layers: 1, experts: 2 }, [[1, MOST]]);
  const cases: [number[], string][] = [
    [[1], "there must be 1 layers × 2 experts, there are 1 counts"],
    [[0.5, 1], "layer 0, expert 0 must have a whole number of tokens"],
    [[-1, 1], "layer 0, expert 0 must have a whole number of tokens"],
    [[0, 1], `layer 0, expert 1 has ${2 ** 53} tokens, more than`],
  ];
  for (const [sums, message] of cases) {
    assertThrows(
      () => window.merge([new Float64Array(sums)]),
      RangeError,
      `Cannot merge loads: ${message}`,
    );
  }
});

Deno.test("LoadWindow.clear() forgets steps and keeps maps", () => {
  for (const steps of [2, Infinity]) {
    const options = { layers: 1, experts: 2, steps };
    const window = windowOf(options, [[1, 2], [3, 4], [5, 6]]);
    window.addMap(0, Placement.from([[1, 0]], { ranks: 1 }));
    window.clear();
    assertEquals(window.recorded, 0);
    assertEquals([...window.load()], [0, 0]);
    window.recordPhysical(new Int32Array([7, 8]), 0);
    window.record(new Int32Array([1, 1]));
    assertEquals([...window.load()], [9, 8]);
  }
});

Deno.test("LoadWindow() refuses sizes and decays out of range", () => {
  const fitting = { layers: 1, experts: 1 };
  const cases: [LoadWindowOptions, string][] = [
    [{ ...fitting, layers: 0 }, "layers must be an integer from 1"],
    [{ ...fitting, experts: 1.5 }, "experts must be an integer from 1"],
    [{ ...fitting, steps: 0 }, "steps must be an integer from 1"],
    [{ ...fitting, decay: 0 }, "decay must be above 0 and at most 1, got 0"],
    [
      { ...fitting, decay: 1.1 },
      "decay must be above 0 and at most 1, got 1.1",
    ],
    [
      { ...fitting, decay: NaN },
      "decay must be above 0 and at most 1, got NaN",
    ],
  ];
  for (const [options, message] of cases) {
    assertThrows(
      () => new LoadWindow(options),
      RangeError,
      `Cannot create load window: ${message}`,
    );
  }
});
