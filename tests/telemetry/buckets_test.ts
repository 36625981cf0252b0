import { assertEquals, assertThrows } from "@std/assert";
import { EplbMetrics } from "../../lib/telemetry/metrics.ts";

function refuse(
  buckets: unknown,
  error: new (message: string) => Error,
  message: string,
): void {
  const overrides = { eplb_plan_seconds: buckets as number[] };
  assertThrows(
    () => new EplbMetrics({ buckets: overrides }),
    error,
    `Cannot set buckets of eplb_plan_seconds: ${message}`,
  );
}

Deno.test("EplbMetrics() refuses buckets that are empty, not ascending or not finite", () => {
  refuse([], RangeError, "there must be at least one bound");
  refuse([1, 1], RangeError, "bound 1 must be above 1, got 1");
  refuse([1, 2, 1.5], RangeError, "bound 2 must be above 2, got 1.5");
  refuse(
    [1, Infinity],
    RangeError,
    "bound 1 must be a finite number, got Infinity",
  );
  refuse([NaN], RangeError, "bound 0 must be a finite number, got NaN");
  refuse(["1"], RangeError, 'bound 0 must be a finite number, got "1"');
  refuse(5, TypeError, "they must be an array, got 5");
  refuse(undefined, TypeError, "they must be an array, got undefined");
});

Deno.test("EplbMetrics() refuses buckets for what is not a histogram", () => {
  for (const name of ["eplb_cycles_total", "eplb_typo_seconds", "toString"]) {
    assertThrows(
      () => new EplbMetrics({ buckets: { [name]: [1] } }),
      RangeError,
      `Cannot set buckets: "${name}" is not a histogram; those are eplb_`,
    );
  }
});

Deno.test("EplbMetrics() takes a copy of the buckets given, and leaves the others", () => {
  const bounds = [0.1, 1];
  const { metrics } = new EplbMetrics({
    buckets: { eplb_plan_seconds: bounds },
  });
  bounds.push(0);
  const buckets = (name: string): readonly number[] =>
    metrics.find((metric) => metric.name === name)!.buckets;
  assertEquals(buckets("eplb_plan_seconds"), [0.1, 1]);
  assertEquals(buckets("eplb_cycle_steps"), [
    ...[1, 2, 5, 10, 20, 50, 100, 200, 500, 1000],
  ]);
});
