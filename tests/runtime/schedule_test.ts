import { assertEquals, assertThrows } from "@std/assert";
import fc from "fast-check";
import { LoadSegments } from "../../lib/runtime/segments.ts";
import { StepSchedule } from "../../lib/runtime/schedule.ts";

/** Steps, from 1, at whose end a rearrangement is due. */
function dueSteps(
  options: { interval: number; window: number },
  steps: number,
): number[] {
  const schedule = new StepSchedule(options);
  const due: number[] = [];
  for (let step = 1; step <= steps; step++) {
    if (schedule.advance().rearrange) due.push(step);
  }
  return due;
}

Deno.test("StepSchedule is first due after a quarter of the interval, then after each whole one", () => {
  assertEquals(dueSteps({ interval: 20, window: 5 }, 70), [5, 25, 45, 65]);
  assertEquals(dueSteps({ interval: 3000, window: 1000 }, 7000), [
    750,
    3750,
    6750,
  ]);
  assertEquals(dueSteps({ interval: 1, window: 1 }, 3), [1, 2, 3]);
  assertEquals(dueSteps({ interval: 2, window: 1 }, 5), [1, 3, 5]);
});

Deno.test("StepSchedule refuses intervals and windows below 1", () => {
  assertThrows(
    () => new StepSchedule({ interval: 0, window: 1 }),
    RangeError,
    "stepInterval",
  );
  assertThrows(
    () => new StepSchedule({ interval: 1, window: 1.5 }),
    RangeError,
    "windowSteps",
  );
});

Deno.test("StepSchedule and LoadSegments add up exactly the last steps of the window", async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.integer({ min: 1, max: 12 }),
      fc.integer({ min: 1, max: 40 }),
      fc.array(fc.nat({ max: 9 }), { minLength: 60, maxLength: 60 }),
      async (interval, window, loads) => {
        const schedule = new StepSchedule({ interval, window });
        const segments = new LoadSegments({ window, size: 1 });
        let counted = 0;
        for (const [i, load] of loads.entries()) {
          counted += load;
          const due = schedule.advance();
          if (due.boundary) {
            segments.close(i + 1, Promise.resolve(Float64Array.of(counted)));
            counted = 0;
          }
          if (!due.rearrange) continue;
          const last = loads.slice(Math.max(0, i + 1 - window), i + 1);
          const expected = last.reduce((a, b) => a + b, 0);
          assertEquals([...await segments.sum()], [expected]);
        }
      },
    ),
  );
});

Deno.test("LoadSegments take in the whole segment in which a window begins out of turn", async () => {
  const segments = new LoadSegments({ window: 4, size: 2 });
  segments.close(10, Promise.resolve(Float64Array.of(1, 2)));
  assertEquals([...await segments.sum()], [1, 2]);
  segments.close(13, Promise.resolve(Float64Array.of(10, 20)));
  // Of steps 10 to 13, the first belongs to the older segment.
  assertEquals([...await segments.sum()], [11, 22]);
  segments.close(14, Promise.resolve(Float64Array.of(100, 200)));
  assertEquals([...await segments.sum()], [110, 220]);
});

Deno.test("LoadSegments pass on what went wrong while a load was read", async () => {
  const segments = new LoadSegments({ window: 4, size: 1 });
  segments.close(1, Promise.reject(new Error("device lost")));
  let message = "";
  await segments.sum().catch((error) => message = error.message);
  assertEquals(message, "device lost");
});
