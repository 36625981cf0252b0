import { assertEquals, assertStringIncludes } from "@std/assert";
import type { Interference } from "../../lib/cli/bench/interference.ts";
import { benchText } from "../../lib/cli/bench/report.ts";

const ROW: Interference = {
  products: "decode, 64 tokens",
  transport: "pull, copy engine only",
  maxRate: null,
  alone: 61e-6,
  beside: 77e-6,
  slowdown: 1.27,
  movingAlone: 369e9,
  movingBeside: 147e9,
};

Deno.test("benchText() shows the bound of moves beside matrix products", () => {
  const paced = { maxRate: 20e9, slowdown: 1.0149, movingAlone: 10.2e9 };
  const text = benchText({
    ...{ eplb: "0.1.0", date: "", device: "2 x GPU", ranks: 2, nccl: null },
    ...{ ceilings: [], transfers: [], serving: null },
    interference: [ROW, { ...ROW, ...paced }],
  }, false);
  const lines = text.split("\n");
  const title = lines.indexOf("Matrix products beside moving weights");
  assertStringIncludes(lines[title + 2]!, "bound");
  const cells = (line: string): string[] => line.trim().split(/ {2,}/);
  assertEquals(
    lines.slice(title + 4, title + 6).map((line) => cells(line).slice(1)),
    [
      ["pull, copy engine only", "-", "61.0 µs", "77.0 µs", "1.270x"]
        .concat(["369 GB/s", "147 GB/s"]),
      ["pull, copy engine only", "20.0 GB/s", "61.0 µs", "77.0 µs", "1.015x"]
        .concat(["10.2 GB/s", "147 GB/s"]),
    ],
  );
});
