import {
  assert,
  assertEquals,
  assertMatch,
  assertStringIncludes,
} from "@std/assert";
import { dirname, fromFileUrl, join } from "@std/path";
import meta from "../../deno.json" with { type: "json" };
import { describeNccl } from "../../lib/cli/doctor.ts";
import { librarySearchPath } from "../../lib/native/library.ts";
import { library } from "../_native.ts";
import { documentOf, type Outcome, run, runProcess } from "./_run.ts";

/** What the loader says about a text file. */
const NO_LIBRARY = /file too short|ELF/;
const CHECKOUT = fromFileUrl(new URL("../../", import.meta.url));

Deno.test("doctor --json tells what there is on this machine", async () => {
  const outcome = await run("doctor", "--json");
  assertEquals([outcome.code, outcome.stderr], [0, ""]);
  const { tools, lookedFor, devices, peerAccess, nccl, advice, ...rest } =
    documentOf(outcome);
  const { driver, ...known } = rest;
  assertEquals(known, {
    eplb: meta.version,
    deno: Deno.version.deno,
    target: Deno.build.target,
    abi: 1,
    library: {
      path: library.path,
      version: meta.version,
      cuda: library.hasCuda,
      nccl: library.hasNccl,
    },
  });
  assertEquals(typeof driver, "boolean");
  assertEquals(Object.keys(tools), ["cmake", "c++", "ninja", "nvcc"]);
  assertMatch(tools["c++"], /^\/.*\/c\+\+$/);
  const paths = librarySearchPath();
  assertEquals(
    lookedFor.map(({ path }: { path: string }) => path),
    paths.slice(0, paths.indexOf(library.path)),
  );
  const found = library.devices();
  assertEquals(devices.length, found.devices.length);
  assertEquals(peerAccess.length, found.devices.length);
  if (found.devices.length === 0) {
    assertEquals(nccl, null);
    assert(advice.length >= 1, "it must say why there are no GPUs");
  }
});

Deno.test("doctor prints a table and advice for people", async () => {
  const { code, stdout, stderr } = await run("doctor");
  assertEquals([code, stderr], [0, ""]);
  assertMatch(stdout, /^what +found\n─+ +─+\n/);
  for (const name of ["eplb", "Deno", "NVIDIA driver", "NCCL", "cmake"]) {
    assertMatch(stdout, new RegExp(`^${name} +\\S`, "m"));
  }
  assertMatch(stdout, new RegExp(`^library +${library.path}$`, "m"));
  if (library.devices().devices.length === 0) {
    assertMatch(stdout, /^- .*GPU/m);
  }
});

Deno.test("doctor says whether NCCL is new enough for nccl-put", () => {
  const path = "/lib/libnccl.so.2";
  for (
    const [nccl, expected] of [
      [null, "no"],
      [
        { version: 22907, path, oneSided: true },
        "22907 at /lib/libnccl.so.2, new enough for nccl-put",
      ],
      [
        { version: 22803, path, oneSided: false },
        "22803 at /lib/libnccl.so.2, too old for nccl-put",
      ],
    ] as const
  ) {
    assertEquals(describeNccl(nccl), expected);
  }
});

for (
  const { what, content, reason } of [
    { what: "is missing", content: undefined, reason: /^no such file$/ },
    { what: "is no library", content: "hello", reason: NO_LIBRARY },
  ]
) {
  Deno.test(`doctor fails with the reason when the file of EPLB_LIBRARY ${what}`, async () => {
    const folder = await Deno.makeTempDir({ prefix: "eplb-test-" });
    try {
      const path = join(folder, "libeplb.so");
      if (content !== undefined) await Deno.writeTextFile(path, content);
      const env = { EPLB_LIBRARY: path };
      const [json, text, job] = await Promise.all([
        runProcess(["doctor", "--json"], env),
        runProcess(["doctor"], env),
        runProcess(["rearrange", "--json"], env),
      ]);
      assertEquals([json.code, json.stderr], [1, ""]);
      const { library: found, lookedFor, devices, advice } = documentOf(json);
      assertEquals([found, devices], [null, []]);
      assertEquals(lookedFor.length, 1);
      assertEquals(lookedFor[0].path, path);
      assertMatch(lookedFor[0].reason, reason);
      assert(advice.some((line: string) => line.includes("EPLB_LIBRARY")));
      assertEquals([text.code, text.stderr], [1, ""]);
      assertMatch(text.stdout, /^library +not found$/m);
      assertStringIncludes(
        text.stdout,
        `looked for     ${path}: ${lookedFor[0].reason}\n`,
      );
      // A job says the same, and as an error.
      assertEquals(job.code, 1);
      const { error } = documentOf(job);
      assertEquals(error.name, "EplbLibraryError");
      assertEquals(error.tried[0].path, path);
    } finally {
      await Deno.remove(folder, { recursive: true });
    }
  });
}

/** A copy of this checkout, without anything built. */
async function copyCheckout(folder: string): Promise<void> {
  const parts = ["cli.ts", "deno.json", "deno.lock", "lib", "third_party"];
  const { success } = await new Deno.Command("cp", {
    args: ["-r", ...parts.map((part) => join(CHECKOUT, part)), folder],
  }).output();
  assert(success);
}

Deno.test("doctor says which of several libraries is used, and why not those before it", async () => {
  const folder = await Deno.makeTempDir({ prefix: "eplb-test-" });
  try {
    await copyCheckout(folder);
    const cuda = join(folder, "build", "cuda", "libeplb.so");
    const cpu = join(folder, "build", "cpu", "libeplb.so");
    const env = { EPLB_LIBRARY: "" };
    const doctor = async (): Promise<Outcome> =>
      await runProcess(["doctor", "--json"], env, join(folder, "cli.ts"));

    const nothing = await doctor();
    assertEquals(nothing.code, 1);
    const { library: none, lookedFor, advice } = documentOf(nothing);
    assertEquals(none, null);
    assertEquals(lookedFor, [
      { path: cuda, reason: "no such file" },
      { path: cpu, reason: "no such file" },
    ]);
    assert(advice.some((line: string) => line.includes("eplb build")));

    await Deno.mkdir(dirname(cpu), { recursive: true });
    await Deno.copyFile(library.path, cpu);
    const second = await doctor();
    assertEquals(second.code, 0);
    assertEquals(documentOf(second).library.path, cpu);
    assertEquals(documentOf(second).lookedFor, lookedFor.slice(0, 1));

    await Deno.mkdir(dirname(cuda), { recursive: true });
    await Deno.writeTextFile(cuda, "not a library");
    const past = await doctor();
    assertEquals(past.code, 0);
    assertEquals(documentOf(past).library.path, cpu);
    assertEquals(documentOf(past).lookedFor.length, 1);
    assertEquals(documentOf(past).lookedFor[0].path, cuda);
    assertMatch(documentOf(past).lookedFor[0].reason, NO_LIBRARY);

    await Deno.copyFile(library.path, cuda);
    const first = await doctor();
    assertEquals(first.code, 0);
    assertEquals(documentOf(first).library.path, cuda);
    assertEquals(documentOf(first).lookedFor, []);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});
