// Run by open_telemetry_test.ts: tells a few events, so that Deno exports them.
import { EplbMetrics } from "../../lib/telemetry/metrics.ts";
import { exportMetrics } from "../../lib/telemetry/open_telemetry.ts";
import { committed, decided, ended, started } from "./_events.ts";

const metrics = new EplbMetrics({
  buckets: { eplb_commit_stall_seconds: [0.25, 0.5, 1] },
});
const exported = await exportMetrics(metrics);
metrics.observe(started());
metrics.observe(decided());
for (const stallSeconds of [0.125, 0.25, 0.75, 4]) {
  metrics.observe(committed({ stallSeconds }));
}
metrics.observe(ended());
metrics.observe({ type: "cycle-skipped", step: 6000, cycle: 1 });
// Long enough for several exports.
await new Promise((resolve) => setTimeout(resolve, 500));
exported[Symbol.dispose]();
const disposed = Date.now();
metrics.observe(committed({ stallSeconds: 1 }));
await new Promise((resolve) => setTimeout(resolve, 500));
await Deno.stdout.write(new TextEncoder().encode(String(disposed)));
