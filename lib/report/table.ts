// SPDX-License-Identifier: Apache-2.0

/**
 * Tables and small plots for people, made of text.
 *
 * @module
 */

/** One column of a table. */
export interface TableColumn {
  /** Text above the column. */
  readonly header: string;
  /**
   * Side to which the cells are moved.
   *
   * @default {"left"}
   */
  readonly align?: "left" | "right";
}

/** Options of {@linkcode formatTable}. */
export interface TableOptions {
  /** Columns, from left to right. */
  readonly columns: readonly TableColumn[];
  /**
   * Whether the header is set off with terminal escape codes.
   *
   * @default {false}
   */
  readonly color?: boolean;
}

/** One line of a table: a cell for each column. */
export type TableRow = readonly (string | number)[];

const GAP = "  ";

/**
 * Formats rows as aligned columns under an underlined header.
 *
 * @param rows Cells, from top to bottom and left to right.
 * @param options Columns.
 * @returns Lines without a line break at the end.
 * @throws {RangeError} If a row has more or fewer cells than there are columns.
 */
export function formatTable(
  rows: readonly TableRow[],
  options: TableOptions,
): string {
  const { columns, color = false } = options;
  for (const [index, row] of rows.entries()) {
    if (row.length !== columns.length) {
      throw new RangeError(
        `Cannot format table: row ${index} has ${row.length} cells for ${columns.length} columns`,
      );
    }
  }
  const headers = columns.map(({ header }) => header);
  const lines = [headers, ...rows.map((row) => row.map(String))];
  const widths = columns.map((_, column) =>
    Math.max(...lines.map((line) => [...line[column]!].length))
  );
  const align = (line: readonly string[]): string =>
    line.map((cell, column) => {
      const room = " ".repeat(widths[column]! - [...cell].length);
      return columns[column]!.align === "right" ? room + cell : cell + room;
    }).join(GAP).trimEnd();
  const [header, ...body] = lines.map(align);
  const rule = widths.map((width) => "─".repeat(width)).join(GAP);
  return [
    color ? `\x1b[1m${header}\x1b[22m` : header,
    color ? `\x1b[2m${rule}\x1b[22m` : rule,
    ...body,
  ].join("\n");
}

/**
 * Formats a number of bytes with three digits and a decimal unit.
 *
 * @param bytes Number of bytes.
 * @returns Text such as `"44.0 MB"`, where 1 MB is 10^6 bytes.
 * @throws {RangeError} If the number is negative or not finite.
 */
export function formatBytes(bytes: number): string {
  return withUnit(bytes, {
    units: ["B", "kB", "MB", "GB", "TB", "PB"],
    whole: "B",
    what: "bytes",
  });
}

/**
 * Formats a rate with three digits and a decimal unit.
 *
 * @param bytesPerSecond Bytes per second.
 * @returns Text such as `"396 GB/s"`, where 1 GB is 10^9 bytes.
 * @throws {RangeError} If the number is negative or not finite.
 */
export function formatRate(bytesPerSecond: number): string {
  return `${formatBytes(bytesPerSecond)}/s`;
}

/**
 * Formats a duration with three digits.
 *
 * @param seconds Duration in seconds.
 * @returns Text such as `"27.6 ms"`, or `"2 min 5 s"` from two minutes on.
 * @throws {RangeError} If the number is negative or not finite.
 */
export function formatSeconds(seconds: number): string {
  if (seconds === 0) return "0 s";
  const rounded = Math.round(seconds);
  if (rounded >= 120 && rounded < Infinity) {
    return `${Math.floor(rounded / 60)} min ${rounded % 60} s`;
  }
  return seconds >= 1
    ? withUnit(seconds, { units: ["s"], what: "seconds" })
    : withUnit(seconds * 1e9, {
      units: ["ns", "µs", "ms", "s"],
      what: "seconds",
    });
}

/** Moves to the next unit where three digits would round to 1000. */
function withUnit(
  value: number,
  options: {
    readonly units: readonly string[];
    readonly what: string;
    /** A unit that has no fractions. */
    readonly whole?: string;
  },
): string {
  const { units, what, whole } = options;
  if (!(value >= 0 && value < Infinity)) {
    throw new RangeError(
      `Cannot format ${what}: must be non-negative and finite, it is ${value}`,
    );
  }
  let index = 0;
  while (value >= 999.5 && index < units.length - 1) {
    value /= 1000;
    index++;
  }
  const unit = units[index]!;
  if (value === 0 || value >= 99.95 || unit === whole) {
    return `${Math.round(value)} ${unit}`;
  }
  return `${value.toFixed(value >= 9.995 ? 1 : 2)} ${unit}`;
}

/**
 * Draws a fraction as a bar, in steps of an eighth of a character.
 *
 * @param fraction Part that is filled; below 0 counts as 0, above 1 as 1.
 * @param width Characters of a full bar.
 * @returns Exactly `width` characters, spaces where the bar is empty.
 * @throws {RangeError} If the fraction is not a number or the width is not a
 * non-negative integer.
 */
export function bar(fraction: number, width: number): string {
  if (Number.isNaN(fraction)) {
    throw new RangeError("Cannot draw bar: fraction is not a number");
  }
  if (!Number.isSafeInteger(width) || width < 0) {
    throw new RangeError(
      `Cannot draw bar: width must be a non-negative integer, it is ${width}`,
    );
  }
  const eighths = Math.round(Math.min(Math.max(fraction, 0), 1) * width * 8);
  const full = "█".repeat(Math.floor(eighths / 8));
  const part = " ▏▎▍▌▋▊▉"[eighths % 8]!;
  return (full + part).padEnd(width).slice(0, width);
}

/**
 * Draws values as a line of small columns, from 0 to their maximum.
 *
 * @param values Non-negative values, such as tokens per rank.
 * @returns One character for each value.
 * @throws {RangeError} If a value is negative or not finite.
 */
export function sparkline(values: ArrayLike<number>): string {
  const list = Array.from(values);
  const max = list.reduce((a, b) => Math.max(a, b), 0);
  return list.map((value, index) => {
    if (!(value >= 0 && value < Infinity)) {
      throw new RangeError(
        `Cannot draw sparkline: value ${index} must be non-negative and finite, it is ${value}`,
      );
    }
    return "▁▂▃▄▅▆▇█"[max === 0 ? 0 : Math.round(value / max * 7)]!;
  }).join("");
}
