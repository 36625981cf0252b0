// SPDX-License-Identifier: Apache-2.0

/**
 * Lines of text from a child process.
 *
 * @module
 */

import { settledWithin } from "./wait.ts";

/** A longer line is handed over in pieces: memory stays bounded. */
const LONGEST_LINE = 1 << 16;

/** How long output may keep coming once the process has ended, in ms. */
const PATIENCE = 1000;

/**
 * Hands over a process' output line by line, until the output or, with a
 * little patience for what is still in the pipe, the process ends: something
 * else that the process started may hold the pipe open for ever.
 *
 * @param stream The output, UTF-8.
 * @param ended Settles when the process has ended.
 * @param onLine Called with each line, without its line break.
 */
export async function forwardLines(
  stream: ReadableStream<Uint8Array>,
  ended: Promise<unknown>,
  onLine: (line: string) => void,
): Promise<void> {
  const reader = stream.getReader();
  const read = readLines(reader, onLine);
  await Promise.race([read, ended]);
  if (!await settledWithin(read, PATIENCE)) await reader.cancel();
  await read;
}

async function readLines(
  reader: ReadableStreamDefaultReader<Uint8Array>,
  onLine: (line: string) => void,
): Promise<void> {
  const decoder = new TextDecoder();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    rest += decoder.decode(value, { stream: !done });
    const lines = rest.split(/\r?\n/);
    rest = lines.pop()!;
    for (const line of lines) onLine(line);
    if (rest !== "" && (done || rest.length > LONGEST_LINE)) {
      onLine(rest);
      rest = "";
    }
    if (done) return;
  }
}
