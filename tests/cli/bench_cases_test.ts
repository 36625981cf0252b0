import { assertEquals, assertThrows } from "@std/assert";
import { moversFor } from "../../lib/cli/bench/cases.ts";
import { UsageError } from "../../lib/cli/command.ts";

const TWO_GPUS = { device: "cuda", ranks: 2, gpus: 2 } as const;

function names(
  wanted: string | undefined,
  options: Parameters<typeof moversFor>[1],
): string[] {
  return moversFor(wanted, options).map(({ name }) => name);
}

Deno.test("moversFor() takes what any NCCL can do, unless told otherwise", () => {
  const usual = ["pull", "pull, copy engine only", "nccl"];
  assertEquals(names(undefined, TWO_GPUS), usual);
  assertEquals(names("pull,pull-ce, nccl", TWO_GPUS), usual);
  assertEquals(names("nccl-put-ce,nccl-put", TWO_GPUS), [
    "nccl-put, copy engine only",
    "nccl-put",
  ]);
  assertEquals(names(undefined, { ...TWO_GPUS, device: "host" }), ["pull"]);
});

Deno.test("moversFor() leaves out NCCL where ranks share GPUs", () => {
  const shared = { ...TWO_GPUS, ranks: 8 };
  assertEquals(names(undefined, shared), ["pull", "pull, copy engine only"]);
  assertEquals(names("nccl-put,pull,nccl", shared), ["pull"]);
});

Deno.test("moversFor() gives the options of `rearrange` that do the same", () => {
  const [put] = moversFor("nccl-put-ce", TWO_GPUS);
  assertEquals(put!.args.slice(0, 3), [
    "--transport",
    "nccl-put",
    "--copy-engine-only",
  ]);
});

Deno.test("moversFor() refuses names that it does not know", () => {
  assertThrows(
    () => moversFor("rdma", TWO_GPUS),
    UsageError,
    '"rdma" is not one of: pull; pull, copy engine only; nccl; nccl-put; ' +
      "nccl-put, copy engine only",
  );
  assertThrows(
    () => moversFor("nccl-put", { ...TWO_GPUS, device: "host" }),
    UsageError,
    '"nccl-put" is not one of: pull',
  );
});
