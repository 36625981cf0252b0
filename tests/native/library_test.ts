import {
  assert,
  assertEquals,
  assertStringIncludes,
  assertThrows,
} from "@std/assert";
import { join } from "@std/path";
import { EplbLibraryError } from "../../lib/native/errors.ts";
import { NativeLibrary, symbolsOf } from "../../lib/native/library.ts";
import { STRUCTS } from "../../lib/native/structs.ts";
import { SYMBOLS } from "../../lib/native/symbols.ts";
import { library } from "../_native.ts";
import meta from "../../deno.json" with { type: "json" };

const HEADER = new URL("../../cpp/include/eplb.h", import.meta.url);

Deno.test("SYMBOLS has every function of the header, with as many parameters", async () => {
  const text = (await Deno.readTextFile(HEADER)).replace(/\/\/.*$/gm, "");
  const declared = new Map(
    [...text.matchAll(/EPLB_API \w+ (eplb_\w+)\(([^)]*)\)/g)].map((
      [, name, parameters],
    ) => [
      name!,
      parameters!.trim() === "void" ? 0 : parameters!.split(",").length,
    ]),
  );
  const known = Object.entries(SYMBOLS).map(([name, symbol]) =>
    ["name" in symbol ? symbol.name : name, symbol.parameters.length] as const
  );
  assertEquals(new Map(known), declared);
  assert(declared.size > 20);
});

Deno.test("structs have the size the library says", () => {
  for (const [name, { kind, bytes }] of Object.entries(STRUCTS)) {
    assertEquals(symbolsOf(library).eplb_struct_size(kind), bytes, name);
  }
  assertEquals(symbolsOf(library).eplb_struct_size(99), 0);
});

Deno.test("NativeLibrary.version is the package's", () => {
  assertEquals(library.version, meta.version);
});

Deno.test("NativeLibrary.open() returns the library that is loaded already", () => {
  assert(NativeLibrary.open() === library);
});

Deno.test("NativeLibrary.open() lists where it looked", () => {
  const error = assertThrows(
    () => NativeLibrary.open({ path: "/no/such/libeplb.so" }),
    EplbLibraryError,
  );
  assertEquals(error.tried.map(({ path }) => path), ["/no/such/libeplb.so"]);
  assertStringIncludes(error.message, "/no/such/libeplb.so");
  assertStringIncludes(error.message, "eplb build");
});

Deno.test("NativeLibrary.open() refuses a library with another ABI", async () => {
  const folder = await Deno.makeTempDir();
  const source = join(folder, "old.c");
  const path = join(folder, "libeplb.so");
  await Deno.writeTextFile(
    source,
    "unsigned eplb_abi_version(void) { return 99; }\n",
  );
  const { success } = await new Deno.Command("cc", {
    args: ["-shared", "-fPIC", "-o", path, source],
  }).output();
  assert(success);
  assertThrows(
    () => NativeLibrary.open({ path }),
    EplbLibraryError,
    "it has ABI 99, this package needs ABI 1",
  );
  await Deno.remove(folder, { recursive: true });
});

Deno.test("devices() says why there are none", () => {
  const { devices, reason } = library.devices();
  assertEquals(devices.length > 0, reason === "");
});
