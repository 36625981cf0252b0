import { type RankIdentity, rankIdentity } from "../cluster/identity.ts";
import { StoreClient } from "../cluster/store_client.ts";
import { StoreServer } from "../cluster/store_server.ts";
import { type Command, EXIT } from "./command.ts";
import type { Flags } from "./flags.ts";
import { runJob } from "./rearrange/job.ts";
import { launchJob } from "./rearrange/processes.ts";
import {
  makeReport,
  type RearrangeReport,
  reportText,
} from "./rearrange/report.ts";
import { chooseWorld, setUp } from "./rearrange/setup.ts";
import type { Terminal } from "./terminal.ts";

/** `eplb rearrange`, the main job. */
export const rearrange: Command = {
  name: "rearrange",
  summary: "move expert weights between ranks until they are where a map says",
  description:
    "Loads or makes up the weights of an MoE model, spread over ranks as --from says,\n" +
    "moves them in place until they are where --to says, and verifies every byte.\n\n" +
    "Started by torchrun, srun or mpirun (or with EPLB_RANK, EPLB_WORLD_SIZE,\n" +
    "EPLB_STORE and EPLB_TOKEN set), each process is one rank of the job.",
  groups: [
    {
      title: "Ranks",
      flags: [
        {
          name: "ranks",
          value: "N",
          type: "count",
          help: "number of ranks (default: the GPUs found, else 8)",
        },
        {
          name: "nodes",
          value: "M",
          type: "count",
          help:
            "nodes the ranks are on, equally (default: 1, or the hosts of the job)",
        },
        {
          name: "device",
          value: "auto|host|cuda",
          type: "text",
          choices: ["auto", "host", "cuda"],
          help: "where weights live; auto: on GPUs if each rank gets one",
        },
        {
          name: "transport",
          value: "auto|pull|nccl",
          type: "text",
          choices: ["auto", "pull", "nccl"],
          help: "how bytes move; auto: pull on the host, nccl on GPUs",
        },
        {
          name: "processes",
          type: "switch",
          help:
            "one process per rank, launched here (default: all ranks in this process)",
        },
      ],
    },
    {
      title: "Weights",
      flags: [
        {
          name: "weights",
          value: "DIR",
          type: "text",
          help:
            "a Hugging Face safetensors checkpoint (DeepSeek-V3, Qwen3-MoE, Mixtral)",
        },
        {
          name: "shape",
          value: "NAME",
          type: "text",
          choices: ["deepseek-r1", "qwen3-235b", "mixtral-8x7b", "tiny"],
          help:
            "synthetic weights: deepseek-r1, qwen3-235b, mixtral-8x7b or tiny (default)",
        },
        {
          name: "layers",
          value: "L",
          type: "count",
          help: "MoE layers of the shape",
        },
        {
          name: "experts",
          value: "E",
          type: "count",
          help: "logical experts of the shape",
        },
        {
          name: "scale",
          value: "K",
          type: "count",
          help: "divide the shape's dimensions by K",
        },
        {
          name: "slots",
          value: "S",
          type: "count",
          help: "slots per rank (default: one more than the experts need)",
        },
        {
          name: "save",
          value: "DIR",
          type: "text",
          help:
            "write each rank's weights afterwards as rank-00000.safetensors …",
        },
      ],
    },
    {
      title: "Maps",
      flags: [
        {
          name: "from",
          value: "FILE|contiguous",
          type: "text",
          help:
            'where experts are, {"physical_to_logical_map": [layers][slots]} (default: contiguous)',
        },
        {
          name: "to",
          value: "FILE|random:SEED|deepseek",
          type: "text",
          help:
            "where they go: a file, a shuffle, or what a policy makes of --load (default: random:1)",
        },
        {
          name: "load",
          value: "FILE|zipf:SEED",
          type: "text",
          help:
            'tokens per expert, {"logical_count": [layers][experts]}, or made up; shows balancedness',
        },
        {
          name: "sources",
          value: "balanced|chunked",
          type: "text",
          choices: ["balanced", "chunked"],
          help:
            "which holder sends: spread over all (default), or in contiguous chunks",
        },
      ],
    },
    {
      title: "Moving",
      flags: [
        {
          name: "staging",
          value: "BYTES",
          type: "bytes",
          help:
            "staging memory per rank, such as 512MiB (default: two experts per slot)",
        },
        {
          name: "staging-sets",
          value: "1|2",
          type: "count",
          help:
            "2 (default) moves the next layers while one commits, 1 needs half the memory",
        },
        {
          name: "max-ops",
          value: "N",
          type: "count",
          help: "sends and receives of a rank in one NCCL group (default: 64)",
        },
        {
          name: "max-ctas",
          value: "N",
          type: "count",
          help: "thread blocks NCCL may use (default: NCCL's choice)",
        },
        {
          name: "timeout",
          value: "SECONDS",
          type: "number",
          help: "limit of every wait (default: 60)",
        },
        {
          name: "repeat",
          value: "N",
          type: "count",
          help: "rearrange N times in a row, random:SEED counting up",
        },
        {
          name: "link-rate",
          value: "GB/S",
          type: "number",
          help: "rate of a rank's link inside its node, for the lower bound",
        },
        {
          name: "node-rate",
          value: "GB/S",
          type: "number",
          help: "rate of a rank's link to other nodes, for the lower bound",
        },
        {
          name: "verify",
          type: "switch",
          help: "compare a digest of every expert before and after (default)",
        },
        { name: "no-verify", type: "switch", help: "skip that" },
      ],
    },
  ],
  examples: [
    "rearrange --shape tiny --ranks 8 --nodes 2",
    "rearrange --shape deepseek-r1 --layers 58 --slots 9 --experts 16 --to random:1",
    "rearrange --weights Mixtral-8x7B --from old.json --to new.json --save out",
    "rearrange --ranks 8 --processes --load zipf:1 --to deepseek --json",
  ],
  run: async (flags, terminal) => {
    const identity = rankIdentity((name) => Deno.env.get(name));
    if (identity === undefined && flags.has("processes")) {
      const report = await launchJob(flags, terminal);
      return print(report, flags, terminal);
    }
    const report = identity === undefined
      ? await runHere(flags, terminal)
      : await runAsRank(flags, { terminal, identity });
    // One document for the whole job: rank 0's.
    if (identity !== undefined && identity.rank !== 0) return EXIT.done;
    return print(report, flags, terminal);
  },
};

async function runHere(
  flags: Flags,
  terminal: Terminal,
): Promise<RearrangeReport> {
  const world = chooseWorld(flags, undefined);
  const member = { identity: undefined, cluster: undefined };
  const job = await setUp(flags, world, member);
  using _source = job.source;
  return makeReport(job, await runJob(job, terminal));
}

/** One rank of a bigger job; rank 0 hosts the store unless the launcher does. */
async function runAsRank(
  flags: Flags,
  { terminal, identity }: { terminal: Terminal; identity: RankIdentity },
): Promise<RearrangeReport> {
  const { rank, worldSize, token } = identity;
  const hosts = rank === 0 && identity.source !== "eplb";
  await using owned = new AsyncDisposableStack();
  if (hosts) {
    owned.use(
      await StoreServer.listen({
        worldSize,
        token,
        host: "0.0.0.0",
        port: identity.storePort,
      }),
    );
  }
  const cluster = owned.use(
    await StoreClient.connect({
      host: identity.storeHost,
      port: identity.storePort,
      rank,
      token,
    }),
  );
  const job = await setUp(flags, chooseWorld(flags, identity), {
    identity,
    cluster,
  });
  using _source = job.source;
  const outcome = await runJob(job, terminal);
  // Nobody leaves before all are done: rank 0 may be the store's host.
  await cluster.gather("done", new Uint8Array(0));
  return makeReport(job, outcome);
}

function print(
  report: RearrangeReport,
  flags: Flags,
  terminal: Terminal,
): number {
  terminal.print(
    flags.has("json")
      ? JSON.stringify(report, null, 2)
      : reportText(report, terminal.color),
  );
  return report.verified === false ? EXIT.failed : EXIT.done;
}
