import { assertEquals, assertRejects } from "@std/assert";
import type { Cluster } from "../../lib/cluster/cluster.ts";
import { UsageError } from "../../lib/cli/command.ts";
import { Flags } from "../../lib/cli/flags.ts";
import { rearrange } from "../../lib/cli/rearrange.ts";
import {
  chooseWorld,
  type Machine,
  type World,
} from "../../lib/cli/rearrange/world.ts";

/** A machine with GPUs of these bus ids. */
function machine(host: string, gpus: readonly string[], name = "GPU"): Machine {
  return {
    host,
    reason: gpus.length === 0 ? "there is no driver" : "",
    gpus: gpus.map((pciBusId, ordinal) => ({
      ordinal,
      name,
      pciBusId,
      computeCapability: "9.0",
      multiprocessors: 132,
      totalBytes: 80e9,
      freeBytes: 80e9,
    })),
  };
}

/** What a process decides that holds all ranks. */
async function alone(machine: Machine, ...args: string[]): Promise<World> {
  const flags = Flags.parse(args, rearrange);
  const member = undefined;
  return await chooseWorld(flags, { machine, member, timeout: 1000 });
}

/** What each rank of a job decides, given what it sees of its machine. */
async function together(
  machines: readonly (Machine & { readonly localRank: number })[],
  ...args: string[]
): Promise<World[]> {
  const worldSize = machines.length;
  const posts: Uint8Array[] = [];
  const all = Promise.withResolvers<Uint8Array[]>();
  const flags = Flags.parse(args, rearrange);
  return await Promise.all(machines.map((machine, rank) => {
    const cluster: Cluster = {
      gather: (_, payload) => {
        posts[rank] = payload;
        if (Object.keys(posts).length === worldSize) all.resolve(posts);
        return all.promise;
      },
      gatherSurvivors: () => Promise.reject(new Error("nobody failed")),
      fail: () => {},
      onFailure: () => () => {},
    };
    const { localRank } = machine;
    const identity = {
      ...{ rank, worldSize, localRank, source: "torchrun" as const },
      ...{ storeHost: "", storePort: 1, token: "" },
    };
    const member = { identity, cluster };
    return chooseWorld(flags, { machine, member, timeout: 1000 });
  }));
}

const NO_GPU = machine("a", []);
const TWO_GPUS = machine("a", ["01", "02"]);

Deno.test("chooseWorld() takes 8 ranks on the host where there are no GPUs", async () => {
  const world = await alone(NO_GPU);
  assertEquals(world.locals, [0, 1, 2, 3, 4, 5, 6, 7]);
  assertEquals(world.devices, Array(8).fill("host"));
  assertEquals(world.topology.nodes, 1);
});

Deno.test("chooseWorld() takes a rank per GPU", async () => {
  const world = await alone(TWO_GPUS);
  assertEquals([world.locals, world.devices], [[0, 1], [0, 1]]);
  assertEquals((await alone(TWO_GPUS, "--ranks", "1")).devices, [0]);
});

Deno.test("chooseWorld() takes the host if not every rank gets a GPU", async () => {
  const world = await alone(TWO_GPUS, "--ranks", "3");
  assertEquals(world.devices, ["host", "host", "host"]);
  const host = await alone(TWO_GPUS, "--device", "host");
  assertEquals(host.devices, Array(8).fill("host"));
});

Deno.test("chooseWorld() lets ranks share GPUs in turn if --device is cuda", async () => {
  for (const transport of ["auto", "pull"]) {
    const args = ["--device", "cuda", "--transport", transport];
    const world = await alone(TWO_GPUS, "--ranks", "5", ...args);
    assertEquals(world.devices, [0, 1, 0, 1, 0]);
    const seats = [0, 1, 2].map((localRank) => ({ ...TWO_GPUS, localRank }));
    const worlds = await together(seats, ...args);
    assertEquals(worlds.map(({ devices }) => devices), [[0], [1], [0]]);
  }
});

Deno.test("chooseWorld() takes GPUs for --transport pull if every rank gets one", async () => {
  const pull = ["--transport", "pull"];
  assertEquals((await alone(TWO_GPUS, ...pull)).devices, [0, 1]);
  const three = await alone(TWO_GPUS, "--ranks", "3", ...pull);
  assertEquals(three.devices, ["host", "host", "host"]);
});

for (
  const { args, message } of [
    {
      args: ["--ranks", "3", "--device", "cuda", "--transport", "nccl"],
      message: "--device cuda needs a GPU for each of 3 ranks: rank 2 has " +
        "none of its own",
    },
    {
      args: ["--ranks", "3", "--transport", "nccl"],
      message: "--transport nccl needs a GPU for each of 3 ranks: rank 2 has " +
        "none of its own",
    },
    {
      args: ["--ranks", "3", "--transport", "pull+nccl"],
      message:
        "--transport pull+nccl needs a GPU for each of 3 ranks: rank 2 has " +
        "none of its own",
    },
    {
      args: ["--ranks", "3", "--transport", "nccl-put"],
      message:
        "--transport nccl-put needs a GPU for each of 3 ranks: rank 2 has " +
        "none of its own",
    },
  ]
) {
  Deno.test(`chooseWorld() refuses ${args.join(" ")} on two GPUs`, async () => {
    const error = await assertRejects(
      () => alone(TWO_GPUS, ...args),
      UsageError,
    );
    assertEquals(error.message, message);
  });
}

Deno.test("chooseWorld() knows the measured rate of an H200's links", async () => {
  const h200 = machine("a", ["01", "02"], "NVIDIA H200");
  const rates = async (...args: string[]): Promise<number[]> => [
    ...(await alone(h200, ...args)).topology.intraNode ?? [],
  ];
  assertEquals(await rates(), [396e9, 396e9]);
  assertEquals(await rates("--link-rate", "50"), [50e9, 50e9]);
  assertEquals(await rates("--device", "host"), []);
});

Deno.test("chooseWorld() makes each host a node, and gives each rank its local GPU", async () => {
  const b = machine("b", ["01", "02"]);
  const worlds = await together([
    { ...TWO_GPUS, localRank: 0 },
    { ...b, localRank: 0 },
    { ...TWO_GPUS, localRank: 1 },
    { ...b, localRank: 1 },
  ]);
  assertEquals(worlds.map(({ devices }) => devices), [[0], [0], [1], [1]]);
  assertEquals(worlds.map(({ locals }) => locals), [[0], [1], [2], [3]]);
  for (const { topology } of worlds) {
    assertEquals([...topology.nodeOf], [0, 1, 0, 1]);
  }
});

Deno.test("chooseWorld() lets --nodes overrule the hosts", async () => {
  const seats = [0, 1, 2, 3].map((localRank) => ({ ...NO_GPU, localRank }));
  const [world] = await together(seats, "--nodes", "2");
  assertEquals([...world!.topology.nodeOf], [0, 0, 1, 1]);
});

Deno.test("chooseWorld() takes the only GPU that a launcher shows to each rank", async () => {
  const worlds = await together([
    { ...machine("a", ["01"]), localRank: 0 },
    { ...machine("a", ["02"]), localRank: 1 },
    // The same bus id on another host is another GPU.
    { ...machine("b", ["01"]), localRank: 0 },
  ]);
  assertEquals(worlds.map(({ devices }) => devices), [[0], [0], [0]]);
});

Deno.test("chooseWorld() takes the host on all ranks if two share a GPU or one has none", async () => {
  const shared = machine("a", ["01"]);
  for (
    const seats of [
      [{ ...shared, localRank: 0 }, { ...shared, localRank: 1 }],
      [{ ...shared, localRank: 0 }, { ...NO_GPU, localRank: 1 }],
    ]
  ) {
    const worlds = await together(seats);
    assertEquals(worlds.map(({ devices }) => devices), [["host"], ["host"]]);
    await assertRejects(
      () => together(seats, "--device", "cuda", "--transport", "nccl"),
      UsageError,
      "--device cuda needs a GPU for each of 2 ranks: rank 1 has none of its own",
    );
  }
});
