// SPDX-License-Identifier: Apache-2.0

/**
 * Putting together the steps of a load file, whatever its format.
 *
 * @module
 */
import type { LoadTrace, ReadLoadOptions } from "./files.ts";

/** Counts above this are no longer exact. */
export const MOST_TOKENS: number = Number.MAX_SAFE_INTEGER;

/** The most layers, and the most experts, that a file may have: a mistake beyond. */
export const MOST_ROWS = 65536;

/** Load of one step. */
export interface StepLoad {
  /** Tokens per logical expert, [layers, experts], row major. */
  readonly load: Float64Array;
  /** Number of layers. */
  readonly layers: number;
  /** Number of logical experts. */
  readonly experts: number;
}

/** Throws the error of a file that cannot be used. */
export function refuse(where: string, state: string): never {
  throw new RangeError(`Cannot use load ${where}: ${state}`);
}

/** Tells whether a value can be a number of tokens. */
export function isCount(value: unknown): value is number {
  return typeof value === "number" && value >= 0 && value <= MOST_TOKENS;
}

/**
 * Joins the steps of a file.
 *
 * @param steps The steps in order, at least one.
 * @param options The file's name in quotes, and the sizes that are wanted.
 * @returns All steps.
 * @throws {RangeError} If their sizes differ from each other or from those wanted.
 */
export function joinSteps(
  steps: readonly StepLoad[],
  options: ReadLoadOptions & { readonly where: string },
): LoadTrace {
  const { where } = options;
  if (steps.length === 0) refuse(where, "it holds no step");
  const { layers, experts } = steps[0]!;
  checkSizes({ layers, experts }, options);
  const load = new Float64Array(steps.length * layers * experts);
  steps.forEach((step, i) => {
    if (step.layers !== layers || step.experts !== experts) {
      refuse(
        where,
        `step ${i} has ${step.layers} layers of ${step.experts} experts, step 0 has ${layers} of ${experts}`,
      );
    }
    load.set(step.load, i * layers * experts);
  });
  return { load, steps: steps.length, layers, experts };
}

/**
 * Refuses sizes other than those wanted.
 *
 * @param sizes What a file holds.
 * @param options The file's name in quotes, and the sizes that are wanted.
 * @throws {RangeError} If they differ.
 */
export function checkSizes(
  sizes: { readonly layers: number; readonly experts: number },
  options: ReadLoadOptions & { readonly where: string },
): void {
  for (const name of ["layers", "experts"] as const) {
    const wanted = options[name];
    if (wanted !== undefined && wanted !== sizes[name]) {
      refuse(
        options.where,
        `it has ${sizes[name]} ${name} instead of ${wanted}`,
      );
    }
  }
}
