// SPDX-License-Identifier: Apache-2.0
// Where a command's words go: results to stdout, everything else to stderr.

/** Output of one command. */
export interface Terminal {
  /** Whether stdout takes colour: a terminal, and no `NO_COLOR`. */
  readonly color: boolean;
  /** Prints a line of the result on stdout. */
  print(text: string): void;
  /** Prints a line about the work on stderr. */
  note(text: string): void;
  /** Shows a passing state on stderr, where that is a terminal; "" clears it. */
  progress(text: string): void;
}

/** The terminal of this process. */
export function processTerminal(): Terminal {
  const encoder = new TextEncoder();
  const moving = Deno.stderr.isTerminal();
  const write = (to: typeof Deno.stderr, text: string): void => {
    let bytes = encoder.encode(text);
    while (bytes.length > 0) bytes = bytes.subarray(to.writeSync(bytes));
  };
  return {
    color: Deno.stdout.isTerminal() && !Deno.noColor,
    print: (text) => write(Deno.stdout, `${text}\n`),
    note: (text) => write(Deno.stderr, `${moving ? "\r\x1b[K" : ""}${text}\n`),
    progress: (text) => {
      if (moving) write(Deno.stderr, `\r\x1b[K${text}`);
    },
  };
}
