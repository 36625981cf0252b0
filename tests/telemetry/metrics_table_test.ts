import { assertEquals, assertThrows } from "@std/assert";
import { withTables } from "../../scripts/metrics_table.ts";

Deno.test("docs/metrics.md has the tables of the source", async () => {
  const path = new URL("../../docs/metrics.md", import.meta.url);
  const document = await Deno.readTextFile(path);
  assertEquals(
    document,
    withTables(document),
    "Run: deno run -RW scripts/metrics_table.ts",
  );
});

Deno.test("withTables() writes between the marks only, and again the same", () => {
  const mark = (name: string): string =>
    `<!-- Written by scripts/metrics_table.ts: ${name} -->`;
  const empty = `before\n${mark("begin")}old${mark("end")}\nafter\n`;
  const written = withTables(empty);
  assertEquals(
    written.startsWith(`before\n${mark("begin")}\n\n| Metric`),
    true,
  );
  assertEquals(written.endsWith(`|\n\n${mark("end")}\nafter\n`), true);
  assertEquals(written.includes("old"), false);
  assertEquals(withTables(written), written);
  const row = written.split("\n").find((line) =>
    line.includes("| `eplb_moved_bytes_total`")
  )!;
  assertEquals(row.split("|").map((cell) => cell.trim()).slice(1, 5), [
    "`eplb_moved_bytes_total`",
    "counter",
    "bytes",
    "`model`, `case`",
  ]);
});

Deno.test("withTables() refuses a document without marks", () => {
  assertThrows(
    () => withTables("# Metrics\n"),
    SyntaxError,
    "Cannot write tables: the document lacks",
  );
});
