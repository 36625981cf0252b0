// SPDX-License-Identifier: Apache-2.0

/**
 * Checks of numbers that callers pass in.
 *
 * @module
 */

/** The largest value of an int32, the type of every map and program. */
export const INT32_MAX: number = 2 ** 31 - 1;

/** Options of {@linkcode checkInteger}. */
export interface CheckIntegerOptions {
  /** What could not be done, such as `"create topology"`. */
  readonly action: string;
  /** What the number is, such as `"ranks"`. */
  readonly name: string;
  /** The smallest value allowed. */
  readonly min: number;
  /** The largest value allowed, by default that of an int32. */
  readonly max?: number;
}

/**
 * Refuses a value that is not an integer within the given bounds.
 *
 * @param value The value to check.
 * @param options Its bounds, and the words for the error.
 * @throws {RangeError} If the value is anything else.
 */
export function checkInteger(
  value: unknown,
  options: CheckIntegerOptions,
): asserts value is number {
  const { action, name, min, max = INT32_MAX } = options;
  if (
    !Number.isInteger(value) || value as number < min || value as number > max
  ) {
    throw new RangeError(
      `Cannot ${action}: ${name} must be an integer from ${min} to ${max}, got ${
        show(value)
      }`,
    );
  }
}

/**
 * Refuses a value that is not a number of bytes per second.
 *
 * @param value The value to check; undefined is no bound at all.
 * @param options The words for the error.
 * @throws {RangeError} If the value is not between 1 and 2^53 - 1.
 */
export function checkRate(
  value: number | undefined,
  options: Pick<CheckIntegerOptions, "action" | "name">,
): void {
  if (value === undefined) return;
  if (value >= 1 && value <= Number.MAX_SAFE_INTEGER) return;
  throw new RangeError(
    `Cannot ${options.action}: ${options.name} must be from 1 to ${Number.MAX_SAFE_INTEGER} bytes per second, got ${
      show(value)
    }`,
  );
}

/** Writes a value for an error message, short whatever it is. */
export function show(value: unknown): string {
  if (typeof value === "string") return JSON.stringify(value.slice(0, 40));
  if (Array.isArray(value)) return `an array of ${value.length}`;
  if (typeof value === "object" && value !== null) return "an object";
  return String(value);
}
