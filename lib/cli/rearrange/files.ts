// SPDX-License-Identifier: Apache-2.0
// JSON files that the command line names.

/** Reads a file of JSON; errors name the file. */
export async function readJSON(path: string): Promise<unknown> {
  let text: string;
  try {
    text = await Deno.readTextFile(path);
  } catch (cause) {
    const { message } = cause as Error;
    const missing = cause instanceof Deno.errors.NotFound;
    const state = missing ? "no such file" : message;
    throw new Error(`Cannot read "${path}": ${state}`, { cause });
  }
  try {
    return JSON.parse(text);
  } catch (cause) {
    const { message } = cause as Error;
    throw new SyntaxError(`Cannot read "${path}": ${message}`, { cause });
  }
}
