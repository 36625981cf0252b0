// The part of jsr:@std/cli/parse-args that this project uses.

/** Options of {@linkcode parseArgs}. */
export interface ParseOptions {
  readonly boolean?: readonly string[];
  readonly string?: readonly string[];
  readonly collect?: readonly string[];
  readonly negatable?: readonly string[];
  readonly alias?: Readonly<Record<string, string | readonly string[]>>;
  readonly default?: Readonly<Record<string, unknown>>;
  readonly stopEarly?: boolean;
  readonly "--"?: boolean;
  readonly unknown?: (arg: string, key?: string, value?: unknown) => unknown;
}

export declare function parseArgs(
  args: string[],
  options?: ParseOptions,
): { _: Array<string | number>; [key: string]: unknown };
