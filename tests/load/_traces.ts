// Traces as nested arrays, which tests write down.
import type { LoadTrace } from "../../lib/load/files.ts";

/** [steps][layers][experts] */
export type Steps = number[][][];

/** The trace that they mean. */
export function traceOf(steps: Steps): LoadTrace {
  return {
    load: new Float64Array(steps.flat(2)),
    steps: steps.length,
    layers: steps[0]!.length,
    experts: steps[0]![0]!.length,
  };
}
