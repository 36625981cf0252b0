import { assertEquals, assertThrows } from "@std/assert";
import fc from "fast-check";
import {
  bar,
  formatBytes,
  formatRate,
  formatSeconds,
  formatTable,
  sparkline,
} from "../../lib/report/table.ts";

const COLUMNS = [
  { header: "layer", align: "right" },
  { header: "transport" },
] as const;

Deno.test("formatTable() aligns cells and leaves no spaces at line ends", () => {
  assertEquals(
    formatTable([[3, "pull"], [57, "nccl"]], { columns: COLUMNS }),
    "layer  transport\n─────  ─────────\n    3  pull\n   57  nccl",
  );
});

Deno.test("formatTable() widens a column to its longest cell", () => {
  assertEquals(
    formatTable([["1234567", "x"]], { columns: COLUMNS }),
    "  layer  transport\n───────  ─────────\n1234567  x",
  );
});

Deno.test("formatTable() prints the header alone when there are no rows", () => {
  assertEquals(
    formatTable([], { columns: COLUMNS }),
    "layer  transport\n─────  ─────────",
  );
});

Deno.test("formatTable() uses escape codes only when asked", () => {
  const plain = formatTable([[1, "pull"]], { columns: COLUMNS });
  const color = formatTable([[1, "pull"]], { columns: COLUMNS, color: true });
  assertEquals(plain.includes("\x1b"), false);
  assertEquals(
    color,
    "\x1b[1mlayer  transport\x1b[22m\n\x1b[2m─────  ─────────\x1b[22m\n    1  pull",
  );
});

Deno.test("formatTable() refuses a row that does not fit the columns", () => {
  assertThrows(
    () => formatTable([[1, "pull"], [2]], { columns: COLUMNS }),
    RangeError,
    "Cannot format table: row 1 has 1 cells for 2 columns",
  );
});

Deno.test("formatBytes() keeps three digits and moves up a unit when they round", () => {
  const cases: [number, string][] = [
    [0, "0 B"],
    [999, "999 B"],
    [1000, "1.00 kB"],
    [9_994, "9.99 kB"],
    [9_996, "10.0 kB"],
    [99_940, "99.9 kB"],
    [99_960, "100 kB"],
    [999_499, "999 kB"],
    [999_500, "1.00 MB"],
    [44_040_192, "44.0 MB"],
    [10.9e9, "10.9 GB"],
    [671e9, "671 GB"],
    [5e18, "5000 PB"],
  ];
  for (const [bytes, text] of cases) assertEquals(formatBytes(bytes), text);
});

Deno.test("formatBytes() is never off by more than half of the last digit", () => {
  const factors = new Map([["B", 1], ["kB", 1e3], ["MB", 1e6], ["GB", 1e9]]);
  fc.assert(fc.property(fc.integer({ min: 0, max: 9e11 }), (bytes) => {
    const [digits, unit] = formatBytes(bytes).split(" ") as [string, string];
    const value = Number(digits) * factors.get(unit)!;
    return Math.abs(value - bytes) <= 0.00501 * bytes && digits.length <= 4;
  }));
});

Deno.test("formatRate() uses decimal units", () => {
  assertEquals(formatRate(396e9), "396 GB/s");
  assertEquals(formatRate(0.9e9), "900 MB/s");
});

Deno.test("formatSeconds() goes from nanoseconds to minutes", () => {
  const cases: [number, string][] = [
    [0, "0 s"],
    [25e-9, "25.0 ns"],
    [17e-6, "17.0 µs"],
    [0.0276, "27.6 ms"],
    [0.9996, "1.00 s"],
    [11.208, "11.2 s"],
    [119.4, "119 s"],
    [119.6, "2 min 0 s"],
    [3725, "62 min 5 s"],
  ];
  for (const [seconds, text] of cases) {
    assertEquals(formatSeconds(seconds), text);
  }
});

Deno.test("formatBytes() and formatSeconds() refuse what is no quantity", () => {
  for (const value of [-1, NaN, Infinity]) {
    assertThrows(
      () => formatBytes(value),
      RangeError,
      `Cannot format bytes: must be non-negative and finite, it is ${value}`,
    );
    assertThrows(
      () => formatSeconds(value),
      RangeError,
      "Cannot format seconds: must be non-negative and finite",
    );
  }
});

Deno.test("bar() draws eighths and clamps", () => {
  assertEquals(bar(0, 4), "    ");
  assertEquals(bar(1, 4), "████");
  assertEquals(bar(0.25 + 1 / 32, 4), "█▏  ");
  assertEquals(bar(0.99, 1), "█");
  assertEquals(bar(7, 3), "███");
  assertEquals(bar(-7, 3), "   ");
  assertEquals(bar(0.5, 0), "");
});

Deno.test("bar() is always as wide as asked", () => {
  fc.assert(
    fc.property(
      fc.double({ noNaN: true }),
      fc.nat(60),
      (fraction, width) => bar(fraction, width).length === width,
    ),
  );
});

Deno.test("bar() refuses a width or fraction that is no number", () => {
  assertThrows(() => bar(NaN, 3), RangeError, "fraction is not a number");
  assertThrows(
    () => bar(0.5, -1),
    RangeError,
    "Cannot draw bar: width must be a non-negative integer, it is -1",
  );
});

Deno.test("sparkline() scales from zero to the maximum", () => {
  assertEquals(sparkline([0, 50, 100]), "▁▅█");
  assertEquals(sparkline([5, 5]), "██");
  assertEquals(sparkline([0, 0]), "▁▁");
  assertEquals(sparkline(new Float64Array([1e9, 0])), "█▁");
  assertEquals(sparkline([]), "");
});

Deno.test("sparkline() refuses values that cannot be drawn", () => {
  for (const value of [-1, NaN, Infinity]) {
    assertThrows(
      () => sparkline([0, value]),
      RangeError,
      `Cannot draw sparkline: value 1 must be non-negative and finite, it is ${value}`,
    );
  }
});
