import { assertEquals } from "@std/assert";
import { NATIVE_SOURCES } from "../../lib/native/sources.ts";

const FOLDER = new URL("../../cpp/", import.meta.url);

async function list(folder: URL, prefix = ""): Promise<string[]> {
  const names: string[] = [];
  for await (const { name, isDirectory } of Deno.readDir(folder)) {
    if (isDirectory && prefix + name === "tests") continue;
    if (isDirectory) {
      const below = new URL(`${name}/`, folder);
      names.push(...await list(below, `${prefix}${name}/`));
    } else names.push(prefix + name);
  }
  return names;
}

Deno.test("NATIVE_SOURCES lists every file that a build from the network must fetch", async () => {
  assertEquals([...NATIVE_SOURCES].sort(), (await list(FOLDER)).sort());
});
