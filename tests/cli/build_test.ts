import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { fromFileUrl, join } from "@std/path";
import { documentOf, errorOf, type Outcome, run, runProcess } from "./_run.ts";

const CHECKOUT = fromFileUrl(new URL("../../", import.meta.url));

/** Programs that write down how they are called, in place of the real ones. */
class Tools implements AsyncDisposable {
  readonly folder = Deno.makeTempDirSync({ prefix: "eplb-test-" });

  /** Adds a program; it runs `script` after it has written its arguments down. */
  add(name: string, script = ""): void {
    const path = join(this.folder, name);
    const log = join(this.folder, "calls");
    Deno.writeTextFileSync(
      path,
      `#!/bin/sh\necho "${name} $*" >> ${log}\n${script}\n`,
      { mode: 0o755 },
    );
  }

  /** Runs `eplb build` with these programs only. */
  async build(...args: string[]): Promise<Outcome> {
    await Deno.symlink("/bin/sh", join(this.folder, "sh"));
    return await runProcess(["build", ...args], { PATH: this.folder });
  }

  async calls(): Promise<string[]> {
    const text = await Deno.readTextFile(join(this.folder, "calls"));
    return text.trimEnd().split("\n");
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Deno.remove(this.folder, { recursive: true });
  }
}

function addAll(tools: Tools, cmake = ""): void {
  tools.add("cmake", cmake);
  tools.add("c++");
  tools.add("make");
}

Deno.test("build configures and builds with CMake, and prints one document", async () => {
  await using tools = new Tools();
  addAll(tools, "echo working; echo on it >&2");
  const outcome = await tools.build("--cuda", "off", "--json");
  assertEquals([outcome.code, outcome.stderr], [0, ""]);
  const { seconds, ...built } = documentOf(outcome);
  const folder = join(CHECKOUT, "build", "cpu");
  assertEquals(built, { path: join(folder, "libeplb.so"), cuda: false });
  assert(seconds > 0 && seconds < 60);
  const [configure, build, ...more] = await tools.calls();
  const source = join(CHECKOUT, "cpp");
  assertStringIncludes(configure!, `cmake -S ${source} -B ${folder} `);
  assertStringIncludes(configure!, "-DEPLB_ENABLE_CUDA=OFF");
  const jobs = navigator.hardwareConcurrency;
  assertEquals(build, `cmake --build ${folder} --parallel ${jobs}`);
  assertEquals(more, []);
});

Deno.test("build --cuda on builds for GPUs, in a folder of its own", async () => {
  await using tools = new Tools();
  addAll(tools);
  tools.add("nvcc");
  const outcome = await tools.build("--cuda", "on", "--json");
  assertEquals(outcome.code, 0);
  const path = join(CHECKOUT, "build", "cuda", "libeplb.so");
  assertEquals(documentOf(outcome).path, path);
  assertEquals(documentOf(outcome).cuda, true);
  const [configure] = await tools.calls();
  assertStringIncludes(configure!, "-DEPLB_ENABLE_CUDA=ON");
});

Deno.test("build says what it has built, with --verbose also how", async () => {
  await using tools = new Tools();
  addAll(tools, "echo working; echo on it >&2");
  const { code, stdout, stderr } = await tools.build(
    ...["--cuda", "off", "--verbose"],
  );
  assertEquals([code, stderr], [0, "working\non it\nworking\non it\n"]);
  const path = join(CHECKOUT, "build", "cpu", "libeplb.so");
  assert(stdout.startsWith(`built ${path} (host only) in `), stdout);
});

Deno.test("build names the packages of missing tools", async () => {
  await using tools = new Tools();
  tools.add("make");
  const outcome = await tools.build("--json");
  assertEquals(outcome.code, 1);
  assertEquals(
    errorOf(outcome).message,
    "Cannot build libeplb.so: a tool is missing, install it first: " +
      "apt-get install -y cmake g++",
  );
});

Deno.test("build fails with the tool's last lines", async () => {
  await using tools = new Tools();
  addAll(tools, "echo no space left on device >&2; exit 3");
  const outcome = await tools.build("--cuda", "off", "--json");
  assertEquals(outcome.code, 1);
  const { message } = errorOf(outcome);
  assertStringIncludes(message, "failed with exit code 3:");
  assert(message.endsWith("\nno space left on device"), message);
  assertEquals((await tools.calls()).length, 1);
});

Deno.test("build refuses what --cuda does not know", async () => {
  const { code, stdout, stderr } = await run("build", "--cuda", "maybe");
  assertEquals([code, stdout], [2, ""]);
  assertStringIncludes(
    stderr,
    '--cuda must be one of auto, on, off: it is "maybe"',
  );
});
