import { assertEquals, assertMatch } from "@std/assert";
import {
  TRANSPORT_NAMES,
  usesNccl,
  valueOf,
  writesDirectly,
} from "../../lib/native/transport.ts";

const HEADER = new URL("../../cpp/include/eplb.h", import.meta.url);

Deno.test("valueOf() is the number that the header gives a transport", async () => {
  const header = await Deno.readTextFile(HEADER);
  for (const name of TRANSPORT_NAMES) {
    const constant = name.toUpperCase().replace(/\W/g, "_");
    const line = `EPLB_TRANSPORT_${constant} = ${valueOf(name)}\\b`;
    assertMatch(header, new RegExp(line));
  }
});

Deno.test("usesNccl() and writesDirectly() tell transports apart", () => {
  assertEquals(
    TRANSPORT_NAMES.map((name) => [name, usesNccl(name), writesDirectly(name)]),
    [
      ["pull", false, true],
      ["nccl", true, true],
      ["pull+nccl", true, true],
      ["nccl-put", true, false],
    ],
  );
});
