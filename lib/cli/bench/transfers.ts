// SPDX-License-Identifier: Apache-2.0
// Times rearrangements: chains of random maps, in one process and in one per rank.

import { rearrange } from "../rearrange.ts";
import { runJob } from "../rearrange/job.ts";
import { launchJob } from "../rearrange/processes.ts";
import { makeReport, type RearrangeReport } from "../rearrange/report.ts";
import { setUp } from "../rearrange/setup.ts";
import { Flags } from "../flags.ts";
import type { Terminal } from "../terminal.ts";
import type { Model, Mover } from "./cases.ts";
import { median } from "./median.ts";

/** One line of the table. */
export interface Transfer {
  readonly model: string;
  readonly transport: string;
  readonly processes: number;
  readonly ranks: number;
  /** Bytes of one expert. */
  readonly expertBytes: number;
  /** Median over the repetitions: bytes into the busiest rank. */
  readonly busiestBytes: number;
  readonly moveSeconds: number;
  /** Median of busiestBytes ÷ moveSeconds. */
  readonly bytesPerSecond: number;
  readonly stagingBytes: number;
  /** Tensors with wrong bytes, over all repetitions. */
  readonly wrong: number;
  /** The call that does the same. */
  readonly command: string;
}

/** Runs one case; the first repetition warms up and does not count. */
export async function timeTransfer(
  model: Model,
  mover: Mover,
  options: {
    readonly ranks: number;
    readonly device: "host" | "cuda";
    readonly processes: boolean;
    readonly repeat: number;
    readonly terminal: Terminal;
  },
): Promise<Transfer> {
  const { ranks, repeat, terminal } = options;
  const args = [
    ...["--ranks", String(ranks), "--device", options.device],
    ...model.args(ranks),
    ...mover.args,
    ...["--to", "random:1", "--repeat", String(repeat + 1)],
    ...(options.processes ? ["--processes"] : []),
  ];
  const report = await run(
    Flags.parse(args, rearrange),
    options.processes,
    terminal,
  );
  const counted = report.runs.slice(1);
  return {
    model: model.name,
    transport: mover.name,
    processes: report.processes,
    ranks: report.ranks,
    expertBytes: report.expertBytes,
    busiestBytes: median(counted.map((one) => one.busiestBytes)),
    moveSeconds: median(counted.map((one) => one.moveSeconds)),
    bytesPerSecond: median(
      counted.map((one) => one.busiestBytes / one.moveSeconds),
    ),
    stagingBytes: report.stagingBytes,
    wrong: report.mismatches,
    command: `rearrange ${args.join(" ")}`,
  };
}

async function run(
  flags: Flags,
  processes: boolean,
  terminal: Terminal,
): Promise<RearrangeReport> {
  if (processes) return await launchJob(flags, terminal);
  using job = await setUp(flags);
  return makeReport(job, await runJob(job, terminal));
}
