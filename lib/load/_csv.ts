// SPDX-License-Identifier: Apache-2.0

/**
 * Reading loads from comma separated values.
 *
 * @module
 */
import { MOST_ROWS, MOST_TOKENS, refuse, type StepLoad } from "./_trace.ts";
import type { ReadLoadOptions } from "./files.ts";

/** One row: the numbers of its columns. */
interface Row {
  readonly line: number;
  readonly step: number;
  readonly layer: number;
  readonly expert: number;
  readonly count: number;
}

const COLUMNS = ["step", "layer", "expert", "count"] as const;

/**
 * Reads the steps of a table of counts.
 *
 * @param text A header, and one row per step, layer and expert that has tokens.
 * @param options The file's name in quotes, and the sizes that are wanted.
 * @returns Its steps, in the order of their numbers.
 */
export function readCsvSteps(
  text: string,
  options: ReadLoadOptions & { readonly where: string },
): StepLoad[] {
  const { where } = options;
  const rows = parseRows(text, where);
  const numbers = [...new Set(rows.map(({ step }) => step))].sort((a, b) =>
    a - b
  );
  const indexOf = new Map(numbers.map((step, index) => [step, index]));
  const most = (key: "layer" | "expert"): number =>
    rows.reduce((most, row) => Math.max(most, row[key] + 1), 0);
  // Rows without tokens may be left out, so the highest id may not tell the size.
  const layers = Math.max(most("layer"), options.layers ?? 0);
  const experts = Math.max(most("expert"), options.experts ?? 0);
  const steps = numbers.map(() => ({
    load: new Float64Array(layers * experts).fill(NaN),
    layers,
    experts,
  }));
  for (const { line, step, layer, expert, count } of rows) {
    const { load } = steps[indexOf.get(step)!]!;
    const cell = layer * experts + expert;
    if (!Number.isNaN(load[cell])) {
      refuse(
        `${where}, line ${line}`,
        `layer ${layer}, expert ${expert} has a count already, ${load[cell]}`,
      );
    }
    load[cell] = count;
  }
  for (const { load } of steps) {
    for (let i = 0; i < load.length; i++) {
      if (Number.isNaN(load[i])) load[i] = 0;
    }
  }
  return steps;
}

function parseRows(text: string, where: string): Row[] {
  const [header = "", ...lines] = text.replace(/^\uFEFF/, "").split(/\r?\n/);
  const names = header.split(",").map((name) => name.trim());
  const known = (name: string): boolean =>
    (COLUMNS as readonly string[]).includes(name);
  const complete = COLUMNS.slice(1).every((name) => names.includes(name));
  if (
    !complete || !names.every(known) || new Set(names).size !== names.length
  ) {
    refuse(
      `${where}, line 1`,
      `the header must be "layer,expert,count", "step" beside them if there are several, it is ${
        JSON.stringify(header.slice(0, 60))
      }`,
    );
  }
  const at = (name: string): number => names.indexOf(name);
  const [step, layer, expert, count] = COLUMNS.map(at) as [
    number,
    number,
    number,
    number,
  ];
  return lines.flatMap((text, i) => {
    if (text.trim() === "") return [];
    const line = i + 2;
    const place = `${where}, line ${line}`;
    const cells = text.split(",").map((cell) => cell.trim());
    if (cells.length !== names.length) {
      refuse(place, `it has ${cells.length} values instead of ${names.length}`);
    }
    const id = (column: number, max: number): number =>
      readNumber(cells[column]!, {
        place,
        name: names[column]!,
        pattern: /^\d+$/,
        max,
      });
    return [{
      line,
      step: step < 0 ? 0 : id(step, MOST_TOKENS),
      layer: id(layer, MOST_ROWS - 1),
      expert: id(expert, MOST_ROWS - 1),
      count: readNumber(cells[count]!, {
        place,
        name: "count",
        pattern: /^\d+(\.\d+)?(e[+-]?\d+)?$/i,
        max: MOST_TOKENS,
      }),
    }];
  });
}

function readNumber(
  text: string,
  options: {
    readonly place: string;
    readonly name: string;
    readonly pattern: RegExp;
    readonly max: number;
  },
): number {
  const { place, name, pattern, max } = options;
  const value = pattern.test(text) ? Number(text) : NaN;
  if (!(value <= max)) {
    refuse(
      place,
      `${name} must be a number from 0 to ${max}, it is "${text.slice(0, 40)}"`,
    );
  }
  return value;
}
