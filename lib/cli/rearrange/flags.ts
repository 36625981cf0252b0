// SPDX-License-Identifier: Apache-2.0
// The options of `eplb rearrange`.

import { TRANSPORT_NAMES, type TransportName } from "../../native/transport.ts";
import type { FlagGroup } from "../command.ts";
import type { Flags } from "../flags.ts";

/** More than any memory has, in GB/s. */
export const MOST_RATE = 1_000_000;

const RANKS: FlagGroup = {
  title: "Ranks",
  flags: [
    {
      name: "ranks",
      value: "N",
      type: "count",
      max: 65536,
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
      help:
        "where weights live; auto: on GPUs if each rank gets one; cuda: ranks that pull may share them",
    },
    {
      name: "transport",
      value: "NAME",
      type: "text",
      choices: ["auto", ...TRANSPORT_NAMES],
      help:
        "how bytes move: pull, nccl, pull+nccl (pull between processes of a node, NCCL else), " +
        "nccl-put (by copy engine inside one NVLink domain, also between containers and hosts) " +
        "or auto (default: pull+nccl for GPUs on several nodes, else pull)",
    },
    {
      name: "processes",
      type: "switch",
      help:
        "one process per rank, launched here (default: all ranks in this process)",
    },
  ],
};

const WEIGHTS: FlagGroup = {
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
      choices: [
        "deepseek-r1",
        "qwen3-235b",
        "mixtral-8x7b",
        "fine-grained",
        "tiny",
      ],
      help:
        "synthetic weights: deepseek-r1, qwen3-235b, mixtral-8x7b, fine-grained or tiny (default)",
    },
    {
      name: "layers",
      value: "L",
      type: "count",
      help: "MoE layers of the shape (default: a map file's, else the model's)",
    },
    {
      name: "experts",
      value: "E",
      type: "count",
      help:
        "logical experts of the shape (default: a map file's, else the model's)",
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
      help:
        "slots per rank (default: a map file's, else one more than the experts need)",
    },
    {
      name: "save",
      value: "DIR",
      type: "text",
      help:
        "write the new map afterwards, as placement.json, and each rank's weights, as rank-00000.safetensors …",
    },
  ],
};

const MAPS: FlagGroup = {
  title: "Maps",
  flags: [
    {
      name: "from",
      value: "MAP",
      type: "text",
      help: "where experts are (default: contiguous)",
    },
    {
      name: "to",
      value: "MAP",
      type: "text",
      help: "where they go (default: random:1)",
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
  note: "MAP is contiguous, random:SEED, deepseek (what that policy makes of " +
    'the load), or a file: {"physical_to_logical_map": [layers][slots]}.',
};

const MOVING: FlagGroup = {
  title: "Moving",
  flags: [
    {
      name: "staging",
      value: "BYTES",
      type: "bytes",
      help:
        "staging memory per rank, such as 512MiB, at least one expert (default: an expert per slot and staging set)",
    },
    {
      name: "staging-sets",
      value: "1|2|3|4",
      type: "count",
      choices: ["1", "2", "3", "4"],
      help:
        "with more than 1 the next layers move while one commits (default: 2)",
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
      name: "small-bytes",
      value: "BYTES",
      type: "bytes",
      help:
        "tensors up to this size share a message or a kernel (default: 1MiB)",
    },
    {
      name: "copy-engine-only",
      type: "switch",
      help:
        "GPUs pull or put without multiprocessors, but for small tensors (default: kernels copy inside a GPU, and among three and more GPUs)",
    },
    {
      name: "max-rate",
      value: "GB/S",
      type: "number",
      max: MOST_RATE,
      help:
        "the most that a rank receives and copies, to spare a model beside it (default: no bound)",
    },
    {
      name: "timeout",
      value: "SECONDS",
      type: "number",
      // The longest timer of JavaScript, 2^31 - 1 ms.
      max: 2147483,
      help: "limit of every wait for another rank (default: 60)",
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
      name: "no-relay",
      type: "switch",
      help:
        "let an expert cross nodes once for each rank, not once for each node",
    },
    {
      name: "verify",
      type: "switch",
      help: "compare a digest of every expert before and after (default)",
    },
    { name: "no-verify", type: "switch", help: "skip that" },
  ],
};

/** The options of `eplb rearrange`, in the order of its help. */
export const REARRANGE_FLAGS: readonly FlagGroup[] = [
  RANKS,
  WEIGHTS,
  MAPS,
  MOVING,
];

/** How bytes shall move. */
export function transportOf(flags: Flags): TransportName | "auto" {
  return (flags.text("transport") ?? "auto") as TransportName | "auto";
}
