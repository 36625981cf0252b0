// SPDX-License-Identifier: Apache-2.0

/**
 * Reading loads from JSON documents, and from JSON lines.
 *
 * @module
 */
import { show } from "../_check.ts";
import { Placement } from "../placement.ts";
import { isCount, MOST_TOKENS, refuse, type StepLoad } from "./_trace.ts";
import { logicalCounts } from "./counts.ts";

type Fields = Readonly<Record<string, unknown>>;

/** Fields that hold counts; those of slots need a map. */
const COUNTS = ["logical_count", "load_history", "expert_load"] as const;

/** Fields that hold the map that counts of slots were taken under. */
const MAPS = ["physical_to_logical_map", "p2l_map"] as const;

/** The record that holds counts, where lines are of several types. */
const STATS_RECORD = "eplb_load_stats";

/**
 * Reads the steps of a JSON document.
 *
 * @param text The document.
 * @param where The file's name in quotes.
 * @returns Its steps.
 */
export function readJsonSteps(text: string, where: string): StepLoad[] {
  return stepsOf(parse(text, where), where);
}

/**
 * Reads the steps of JSON lines.
 *
 * @param text One document per line; empty lines and records of other types are skipped.
 * @param where The file's name in quotes.
 * @returns The steps of all lines.
 */
export function readJsonLines(text: string, where: string): StepLoad[] {
  return text.split("\n").flatMap((line, i) => {
    if (line.trim() === "") return [];
    const place = `${where}, line ${i + 1}`;
    const value = parse(line, place);
    const type = (value as Fields | null)?.record_type;
    if (type !== undefined && type !== STATS_RECORD) return [];
    return stepsOf(value, place);
  });
}

/** Parses JSON; Python's NaN and Infinity become texts, for the count that is one to be named. */
function parse(text: string, where: string): unknown {
  try {
    return JSON.parse(text);
  } catch (cause) {
    try {
      return JSON.parse(
        text.replace(/(?<=[[,:\s])-?(?:NaN|Infinity)(?=[\],}\s])/g, '"$&"'),
      );
    } catch {
      throw new SyntaxError(
        `Cannot read ${where}: ${(cause as Error).message}`,
        { cause },
      );
    }
  }
}

function stepsOf(value: unknown, where: string): StepLoad[] {
  if (typeof value !== "object" || value === null || Array.isArray(value)) {
    refuse(where, `it must hold an object, it holds ${show(value)}`);
  }
  const fields = value as Fields;
  const names = COUNTS.filter((name) => fields[name] !== undefined);
  const [name] = names;
  if (name === undefined || names.length > 1) {
    return refuse(
      where,
      `it must have one of "${COUNTS.join('", "')}", it has ${
        names.length === 0 ? "none" : `"${names.join('" and "')}"`
      }`,
    );
  }
  const rows = fields[name];
  const steps = hasSteps(rows) ? rows : [rows];
  const map = name === "logical_count" ? undefined : mapOf(fields, where);
  if (map === undefined && name === "expert_load") {
    refuse(where, `"${name}" counts slots, but there is no "p2l_map"`);
  }
  return steps.map((step, i) => {
    const what = hasSteps(rows) ? `step ${i}, ` : "";
    const column = map === undefined ? "expert" : "slot";
    const counts = readRows(step, { where, what, column });
    return map === undefined ? counts : toLogical(counts, { map, where, what });
  });
}

/** [steps][layers][experts] has one level more than [layers][experts]. */
function hasSteps(rows: unknown): rows is unknown[] {
  return Array.isArray(rows) && Array.isArray(rows[0]) &&
    Array.isArray(rows[0][0]);
}

function mapOf(fields: Fields, where: string): Placement | undefined {
  const name = MAPS.find((name) => fields[name] !== undefined);
  if (name === undefined) return undefined;
  try {
    return Placement.from(fields[name] as number[][], { ranks: 1 });
  } catch (cause) {
    const { message } = cause as Error;
    // "Cannot create placement: " would only say the same again.
    const state = message.slice(message.indexOf(": ") + 2);
    throw new RangeError(`Cannot use load ${where}: "${name}": ${state}`, {
      cause,
    });
  }
}

/** Reads [layers][experts]; "experts" are slots if a map tells their experts. */
function readRows(
  rows: unknown,
  options: {
    readonly where: string;
    readonly what: string;
    readonly column: "expert" | "slot";
  },
): StepLoad {
  const { where, what, column } = options;
  if (!Array.isArray(rows) || !Array.isArray(rows[0]) || rows[0].length === 0) {
    return refuse(where, `${what}the counts must be an array of layers`);
  }
  const columns = rows[0].length;
  const load = new Float64Array(rows.length * columns);
  rows.forEach((row, layer) => {
    const name = `${what}layer ${layer}`;
    if (!Array.isArray(row) || row.length !== columns) {
      refuse(
        where,
        `${name} must have ${columns} counts, it has ${
          Array.isArray(row) ? row.length : show(row)
        }`,
      );
    }
    for (let i = 0; i < columns; i++) {
      const count: unknown = row[i];
      if (!isCount(count)) {
        refuse(
          where,
          `${name}, ${column} ${i} has count ${
            show(count)
          }, not one from 0 to ${MOST_TOKENS}`,
        );
      }
      load[layer * columns + i] = count;
    }
  });
  return { load, layers: rows.length, experts: columns };
}

function toLogical(
  counts: StepLoad,
  options: {
    readonly map: Placement;
    readonly where: string;
    readonly what: string;
  },
): StepLoad {
  const { map, where, what } = options;
  if (counts.layers !== map.layers || counts.experts !== map.slots) {
    refuse(
      where,
      `${what}there are counts of ${counts.layers} layers × ${counts.experts} slots, the map has ${map.layers} × ${map.slots}`,
    );
  }
  const { layers, experts } = map;
  try {
    return { load: logicalCounts(counts.load, map), layers, experts };
  } catch (cause) {
    const { message } = cause as Error;
    return refuse(where, what + message.slice(message.indexOf(": ") + 2));
  }
}
