// Data that is not part of the project: real expert-load traces and the like.

/** Environment variable that names the folder with them. */
export const DATA_VARIABLE = "EPLB_TEST_DATA";

/** URL of a file in the data folder; undefined, with a word about it, if there is none. */
export function dataFile(name: string): URL | undefined {
  const folder = Deno.env.get(DATA_VARIABLE);
  if (!folder) {
    // deno-lint-ignore no-console -- a skipped test should say so
    console.log(`no data folder: set ${DATA_VARIABLE} to test with ${name}`);
    return undefined;
  }
  const base = new URL(
    `${folder.replace(/\/?$/, "/")}`,
    `file://${Deno.cwd()}/`,
  );
  return new URL(name, base);
}
