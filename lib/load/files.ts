// SPDX-License-Identifier: Apache-2.0

/**
 * Reading recorded loads from files.
 *
 * @module
 */
import { extname } from "@std/path";
import { readCsvSteps } from "./_csv.ts";
import { readJsonLines, readJsonSteps } from "./_json.ts";
import { readTensorrtSteps } from "./_tensorrt_llm.ts";
import { joinSteps, MOST_TOKENS, refuse } from "./_trace.ts";

/**
 * Format of a load file:
 *
 * | format | what is read |
 * | --- | --- |
 * | `json` | SGLang's `{"logical_count": [layers][experts]}`, or `[steps][layers][experts]`. Also `{"load_history": …}` of the same shapes; beside a `"physical_to_logical_map"` or `"p2l_map"`, [layers][slots], its counts are those of slots |
 * | `jsonl` | such an object on each line; or vLLM's load statistics, `{"record_type": "eplb_load_stats", "expert_load": [layers][slots], "p2l_map": [layers][slots]}`, where records of other types are skipped |
 * | `csv` | a header `layer,expert,count`, or `step,layer,expert,count`, in any order; what is left out is 0, steps are put in order |
 * | `tensorrt-llm` | a folder as TensorRT-LLM writes it for `EXPERT_STATISTIC_PATH`: `meta_info.json` with `num_experts`, and `rank0.safetensors` and so on with a tensor `ITERATION_LAYER` of counts each, which are summed over ranks; layers without tensors are 0 |
 */
export type LoadFormat = "json" | "jsonl" | "csv" | "tensorrt-llm";

/** A recorded load. */
export interface LoadTrace {
  /** Tokens per logical expert, [steps, layers, experts], row major. */
  readonly load: Float64Array;
  /** Number of steps. */
  readonly steps: number;
  /** Number of layers. */
  readonly layers: number;
  /** Number of logical experts. */
  readonly experts: number;
}

/** Options of {@linkcode readLoad}. */
export interface ReadLoadOptions {
  /**
   * Format of the file.
   *
   * @default {by its extension, else by what it begins with}
   */
  readonly format?: LoadFormat;
  /**
   * Number of layers it must have; formats that leave out layers without tokens are filled up.
   *
   * @default {what the file has}
   */
  readonly layers?: number;
  /**
   * Number of logical experts it must have; CSV, which may leave out experts without tokens, is
   * filled up.
   *
   * @default {what the file has}
   */
  readonly experts?: number;
}

/** Options of {@linkcode parseLoad}. */
export interface ParseLoadOptions extends ReadLoadOptions {
  /**
   * Name of the file, for errors and for its extension.
   *
   * @default {"text"}
   */
  readonly name?: string;
}

/**
 * Reads a recorded load; needs `--allow-read`.
 *
 * @param path Path of a file, or of a folder of TensorRT-LLM's.
 * @param options Its format and sizes, where they are known.
 * @returns The load of each step.
 * @throws {SyntaxError} If the file is not of its format.
 * @throws {RangeError} If a count is negative, not a number or above 2⁵³ − 1, rows are not of the
 * same length, or sizes are not those wanted; the message names file, row and value.
 *
 * @example
 * ```ts
 * import { readLoad } from "@eplb/eplb";
 * import { assertEquals } from "@std/assert";
 *
 * const path = await Deno.makeTempFile({ suffix: ".csv" });
 * await Deno.writeTextFile(path, "layer,expert,count\n0,0,7\n1,1,9\n");
 * const { load, steps, layers, experts } = await readLoad(path);
 * assertEquals([steps, layers, experts], [1, 2, 2]);
 * assertEquals([...load], [7, 0, 0, 9]);
 * await Deno.remove(path);
 * ```
 */
export async function readLoad(
  path: string,
  options: ReadLoadOptions = {},
): Promise<LoadTrace> {
  const where = JSON.stringify(path);
  let isFolder: boolean;
  try {
    isFolder = (await Deno.stat(path)).isDirectory;
  } catch (cause) {
    if (!(cause instanceof Deno.errors.NotFound)) throw cause;
    throw new Deno.errors.NotFound(`Cannot read ${where}: no such file`);
  }
  const format = options.format ?? (isFolder ? "tensorrt-llm" : undefined);
  if (isFolder !== (format === "tensorrt-llm")) {
    refuse(where, `it is ${isFolder ? "a folder" : "no folder"}`);
  }
  if (isFolder) {
    const steps = await readTensorrtSteps(path, { ...options, where });
    return joinSteps(steps, { ...options, where });
  }
  return parseLoad(await Deno.readTextFile(path), { ...options, name: path });
}

/**
 * Reads a recorded load from the text of a file.
 *
 * @param text What the file holds.
 * @param options Its name, format and sizes, where they are known.
 * @returns The load of each step.
 * @throws {SyntaxError} If the text is not of its format.
 * @throws {RangeError} If a count is negative, not a number or above 2⁵³ − 1, rows are not of the
 * same length, sizes are not those wanted, or the format is that of a folder.
 *
 * @example
 * ```ts
 * import { parseLoad } from "@eplb/eplb";
 * import { assertEquals } from "@std/assert";
 *
 * const { load, steps } = parseLoad('{"logical_count": [[[1, 2]], [[3, 4]]]}');
 * assertEquals(steps, 2);
 * assertEquals([...load], [1, 2, 3, 4]);
 * ```
 */
export function parseLoad(
  text: string,
  options: ParseLoadOptions = {},
): LoadTrace {
  const { name = "text" } = options;
  const where = JSON.stringify(name);
  const format = options.format ?? formatOf(text, name);
  const all = { ...options, where };
  switch (format) {
    case "json":
      return joinSteps(readJsonSteps(text, where), all);
    case "jsonl":
      return joinSteps(readJsonLines(text, where), all);
    case "csv":
      return joinSteps(readCsvSteps(text, all), all);
    case "tensorrt-llm":
      return refuse(where, `format ${format} is that of a folder`);
  }
}

/**
 * Adds up the steps of a recorded load.
 *
 * @param trace The load.
 * @returns Tokens per logical expert, [layers, experts], row major.
 * @throws {RangeError} If a sum is above 2⁵³ − 1.
 *
 * @example
 * ```ts
 * import { parseLoad, totalLoad } from "@eplb/eplb";
 * import { assertEquals } from "@std/assert";
 *
 * const trace = parseLoad("step,layer,expert,count\n0,0,0,7\n0,0,1,1\n1,0,1,2\n");
 * assertEquals([...totalLoad(trace)], [7, 3]);
 * ```
 */
export function totalLoad(trace: LoadTrace): Float64Array {
  const { load, layers, experts } = trace;
  const total = new Float64Array(layers * experts);
  for (let i = 0; i < load.length; i++) {
    const cell = i % total.length;
    total[cell]! += load[i]!;
    if (total[cell]! > MOST_TOKENS) {
      throw new RangeError(
        `Cannot add up load: layer ${Math.floor(cell / experts)}, expert ${
          cell % experts
        } has ${total[cell]} tokens, more than ${MOST_TOKENS} are not exact`,
      );
    }
  }
  return total;
}

/** Format of a file by its extension, else by its first letter. */
function formatOf(text: string, name: string): LoadFormat {
  const extension = extname(name).toLowerCase();
  if (extension === ".json") return "json";
  if (extension === ".jsonl" || extension === ".ndjson") return "jsonl";
  if (extension === ".csv") return "csv";
  if (!/^\s*[[{]/.test(text)) return "csv";
  try {
    JSON.parse(text);
    return "json";
  } catch {
    return text.trim().includes("\n") ? "jsonl" : "json";
  }
}
