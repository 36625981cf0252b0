import { assert, assertEquals } from "@std/assert";
import meta from "../../deno.json" with { type: "json" };
import { METRICS } from "../../lib/telemetry/instruments.ts";

/** OTLP's JSON, as far as it is looked at. */
interface Point {
  readonly attributes: readonly {
    readonly key: string;
    readonly value: { readonly stringValue: string };
  }[];
  readonly timeUnixNano: string;
  readonly asDouble?: number;
  readonly count?: string;
  readonly sum?: number;
  readonly bucketCounts?: readonly string[];
  readonly explicitBounds?: readonly number[];
}
interface Data {
  readonly dataPoints: readonly Point[];
  readonly isMonotonic?: boolean;
}
interface OtlpMetric {
  readonly name: string;
  readonly description: string;
  readonly unit: string;
  readonly sum?: Data;
  readonly gauge?: Data;
  readonly histogram?: Data;
}
interface Scope {
  readonly scope: { readonly name: string; readonly version: string };
  readonly metrics: readonly OtlpMetric[];
}

const CONFIG = new URL("../../deno.json", import.meta.url).pathname;

function script(name: string): string {
  return new URL(name, import.meta.url).pathname;
}

/** What a child sent to the collector that this process is. */
interface ChildExports {
  /** All metrics of each export of the scope, in order of arrival. */
  readonly scopes: readonly Scope[];
  /** When the child ended its export, in milliseconds since 1970. */
  readonly disposed: number;
}

async function runChild(): Promise<ChildExports> {
  const scopes: Scope[] = [];
  await using server = Deno.serve(
    { port: 0, hostname: "127.0.0.1", onListen: () => {} },
    async (request) => {
      const body = await request.json();
      if (new URL(request.url).pathname === "/v1/metrics") {
        for (const resource of body.resourceMetrics) {
          scopes.push(...resource.scopeMetrics);
        }
      }
      return Response.json({});
    },
  );
  const { code, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
    // No permission at all: the exporter is Deno's own.
    args: ["run", "--no-prompt", "--config", CONFIG, script("_otel_child.ts")],
    env: {
      OTEL_DENO: "true",
      OTEL_EXPORTER_OTLP_PROTOCOL: "http/json",
      OTEL_EXPORTER_OTLP_ENDPOINT: `http://127.0.0.1:${server.addr.port}`,
      OTEL_METRIC_EXPORT_INTERVAL: "50",
    },
  }).output();
  assertEquals(code, 0, new TextDecoder().decode(stderr));
  return {
    scopes: scopes.filter(({ scope }) => scope.name === "@eplb/eplb"),
    disposed: Number(new TextDecoder().decode(stdout)),
  };
}

/** When the points of an export were read, in milliseconds since 1970. */
function timeOf({ sum, gauge, histogram }: OtlpMetric): number {
  const [point] = (sum ?? gauge ?? histogram)!.dataPoints;
  return Number(BigInt(point!.timeUnixNano) / 1_000_000n);
}

/** Values of a sum or gauge by their attributes, joined. */
function values({ sum, gauge }: OtlpMetric): Record<string, number> {
  return Object.fromEntries(
    (sum ?? gauge)!.dataPoints.map(({ attributes, asDouble }) => [
      attributes.map(({ key, value }) => `${key}=${value.stringValue}`)
        .sort().join(" "),
      asDouble!,
    ]),
  );
}

Deno.test("exportMetrics() lets Deno send every metric over OTLP", async (t) => {
  const { scopes, disposed } = await runChild();
  const whole = scopes.findLast(({ metrics }) =>
    metrics.some(({ sum }) => sum)
  );
  const { scope, metrics } = whole!;
  const byName = new Map(metrics.map((metric) => [metric.name, metric]));

  await t.step("under the table's names, kinds and units", () => {
    assertEquals([scope.name, scope.version], [meta.name, meta.version]);
    assertEquals(
      [...byName.keys()].sort(),
      METRICS.map(({ name }) => name as string).sort(),
    );
    for (const { name, kind, help } of METRICS) {
      const { description, sum, gauge, histogram } = byName.get(name)!;
      assertEquals(description, help);
      assert({ counter: sum, gauge, histogram }[kind], `${name} is a ${kind}`);
      if (kind === "counter") assertEquals(sum!.isMonotonic, true);
    }
    const unit = (name: string): string => byName.get(name)!.unit;
    assertEquals(unit("eplb_moved_bytes_total"), "By");
    assertEquals(unit("eplb_plan_seconds"), "s");
    assertEquals(unit("eplb_balancedness_ratio"), "1");
    assertEquals(unit("eplb_window_tokens"), "{token}");
  });

  await t.step("with the values of counters and gauges", () => {
    assertEquals(values(byName.get("eplb_moved_bytes_total")!), {
      "case=same-rank model=main": 300,
      "case=same-node model=main": 3000,
      "case=cross-node model=main": 4000,
    });
    assertEquals(values(byName.get("eplb_layer_balancedness_ratio")!), {
      "layer=0 model=main": 0.5,
      "layer=1 model=main": 0.25,
    });
    assertEquals(values(byName.get("eplb_cycles_skipped_total")!), { "": 1 });
    // The cycle that was skipped tells that step 6000 is reached: 6000 − 3002.
    assertEquals(values(byName.get("eplb_cycle_age_steps")!), {
      "model=main": 2998,
    });
  });

  await t.step("with the buckets of histograms", () => {
    const point = (name: string): Point =>
      byName.get(name)!.histogram!.dataPoints[0]!;
    const stall = point("eplb_commit_stall_seconds");
    assertEquals(stall.explicitBounds, [0.25, 0.5, 1]);
    // 0.25 lies on a bound, 4 above all.
    assertEquals(stall.bucketCounts, ["2", "0", "1", "1"]);
    assertEquals([stall.sum, stall.count], [5.125, "4"]);
    assertEquals(
      point("eplb_cycle_steps").explicitBounds,
      [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000],
    );
  });

  await t.step("until it is disposed", () => {
    const all = scopes.flatMap(({ metrics }) => metrics);
    // An export that has read the values may still be stamping them.
    const end = disposed + 100;
    const live = all.filter(({ histogram }) => histogram === undefined);
    assertEquals(live.filter((metric) => timeOf(metric) > end), []);
    const late = all.filter((metric) =>
      metric.name === "eplb_commit_stall_seconds" && timeOf(metric) > end
    );
    assert(late.length > 1, "exports go on");
    for (const { histogram } of late) {
      assertEquals(histogram!.dataPoints[0]!.count, "4");
    }
  });
});

Deno.test("exportMetrics() with a meter needs no package", async () => {
  const cache = await Deno.makeTempDir();
  try {
    const { code, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
      args: [
        ...["run", "--cached-only", "--no-prompt", "--no-lock"],
        ...["--config", CONFIG, script("_offline_child.ts")],
      ],
      env: { DENO_DIR: cache },
    }).output();
    assertEquals(code, 0, new TextDecoder().decode(stderr));
    assertEquals(new TextDecoder().decode(stdout), String(METRICS.length));
  } finally {
    await Deno.remove(cache, { recursive: true });
  }
});
