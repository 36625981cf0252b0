// SPDX-License-Identifier: Apache-2.0
// The command line.

import { parseArgs } from "node:util";
import { policies, type PolicyName } from "@eplb/eplb";
import { fromFileUrl } from "@std/path";

/** What is served, and how it is balanced. */
export interface ServeOptions {
  /** Folder of a safetensors checkpoint. */
  readonly checkpoint: string;
  /** Number of ranks. */
  readonly ranks: number;
  /** Where expert weights live. */
  readonly device: "auto" | "host" | "cuda";
  /** Whether the model waits while weights move. */
  readonly mode: "sync" | "async";
  /** Decides where experts shall be. */
  readonly policy: PolicyName;
  /** Whether a layer moves only if that is a gain beyond noise; else whatever the policy decides. */
  readonly gate: boolean;
  /** Redundant slots of each rank, per layer. */
  readonly redundant: number;
  /** Forward passes. */
  readonly steps: number;
  /** Steps from one rearrangement to the next. */
  readonly interval: number;
  /** Tokens of one step, over all ranks. */
  readonly tokens: number;
  /** Steps until the load shifts. */
  readonly phase: number;
  /** Recorded loads that the traffic follows in turn; made up if there are none. */
  readonly traces: readonly string[];
  /** Seed of the words, and of made up loads. */
  readonly seed: number;
  /** Step after which one bit of one weight is flipped, to see that it is noticed. */
  readonly corrupt?: number;
}

/** A command line. */
export interface Arguments {
  /** What is served. */
  readonly serve: ServeOptions;
  /** Whether each rank has a process of its own. */
  readonly processes: boolean;
  /** Whether the report is JSON. */
  readonly json: boolean;
  /** Whether only help is wanted. */
  readonly help: boolean;
}

/** A small Qwen3-MoE that the tests have. */
const CHECKPOINT = fromFileUrl(
  import.meta.resolve("../../tests/fixtures/checkpoints/qwen3-moe-tiny"),
);

/** Text for `--help`. */
export const HELP =
  `Serves a small MoE model whose experts are balanced while it serves, and compares every
token, bit by bit, with the same model without balancing.

Usage: deno run -A examples/serve/main.ts [options]

  --checkpoint DIR          DeepSeek-V3, Qwen3-MoE or Mixtral, BF16 or F32 (default: a tiny Qwen3-MoE)
  --ranks N                 ranks that share the experts (default: 4)
  --processes               one process per rank
  --device auto|host|cuda   where expert weights live (default: auto: GPUs, if there is one per rank)
  --mode sync|async         whether the model waits while weights move (default: async)
  --policy NAME             ${Object.keys(policies).join(", ")} (default: quota)
  --gate                    move only what is a gain beyond noise (default: all that the policy decides)
  --redundant N             redundant slots of each rank (default: 1)
  --steps N                 forward passes (default: 1000)
  --interval N              steps from one rearrangement to the next (default: 20)
  --tokens N                tokens of one step (default: 32)
  --trace A.json,B.json     recorded loads that the traffic follows in turn (default: made up)
  --phase N                 steps until the load shifts (default: 200)
  --seed N                  seed of the traffic (default: 0)
  --corrupt STEP            flip one bit of one weight after this step, to see that it is noticed
  --json                    print the report as one JSON document
  --help                    print this help

Exit codes: 0 all tokens are equal, 1 failed, 2 usage.`;

/**
 * Reads a command line.
 *
 * @param args The arguments.
 * @returns What they ask for.
 * @throws {TypeError} If an option is unknown, or not what it should be.
 */
export function readArguments(args: readonly string[]): Arguments {
  const { values } = parseArgs({
    args: [...args],
    options: {
      checkpoint: { type: "string", default: CHECKPOINT },
      ranks: { type: "string", default: "4" },
      processes: { type: "boolean", default: false },
      device: { type: "string", default: "auto" },
      mode: { type: "string", default: "async" },
      policy: { type: "string", default: "quota" },
      gate: { type: "boolean", default: false },
      redundant: { type: "string", default: "1" },
      steps: { type: "string", default: "1000" },
      interval: { type: "string", default: "20" },
      tokens: { type: "string", default: "32" },
      trace: { type: "string", default: "" },
      phase: { type: "string", default: "200" },
      seed: { type: "string", default: "0" },
      corrupt: { type: "string" },
      json: { type: "boolean", default: false },
      help: { type: "boolean", default: false, short: "h" },
    },
  });
  const count = (name: "ranks" | "steps" | "interval" | "tokens" | "phase") =>
    integer(name, values[name], 1);
  return {
    serve: {
      checkpoint: values.checkpoint,
      ranks: count("ranks"),
      device: choice("device", values.device, ["auto", "host", "cuda"]),
      mode: choice("mode", values.mode, ["sync", "async"]),
      policy: choice(
        "policy",
        values.policy,
        Object.keys(policies) as PolicyName[],
      ),
      gate: values.gate,
      redundant: integer("redundant", values.redundant, 0),
      steps: count("steps"),
      interval: count("interval"),
      tokens: count("tokens"),
      phase: count("phase"),
      traces: values.trace.split(",").filter((path) => path !== ""),
      seed: integer("seed", values.seed, 0),
      ...(values.corrupt === undefined
        ? {}
        : { corrupt: integer("corrupt", values.corrupt, 1) }),
    },
    processes: values.processes,
    json: values.json,
    help: values.help,
  };
}

function integer(name: string, text: string, least: number): number {
  const value = /^\d{1,9}$/.test(text) ? Number(text) : -1;
  if (value >= least) return value;
  throw new TypeError(
    `--${name} must be a whole number from ${least}: it is "${text}"`,
  );
}

function choice<T extends string>(
  name: string,
  text: string,
  choices: readonly T[],
): T {
  const found = choices.find((one) => one === text);
  if (found !== undefined) return found;
  throw new TypeError(
    `--${name} must be one of ${choices.join(", ")}: it is "${text}"`,
  );
}
