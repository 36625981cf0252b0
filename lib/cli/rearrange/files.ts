// JSON files that the command line names.

/** Reads a file of JSON; errors name the file. */
export async function readJSON(path: string): Promise<unknown> {
  let text: string;
  try {
    text = await Deno.readTextFile(path);
  } catch (cause) {
    if (cause instanceof Deno.errors.NotFound) {
      throw new Deno.errors.NotFound(`Cannot read "${path}": no such file`);
    }
    throw cause;
  }
  try {
    return JSON.parse(text);
  } catch (cause) {
    const { message } = cause as Error;
    throw new SyntaxError(`Cannot read "${path}": ${message}`, { cause });
  }
}
