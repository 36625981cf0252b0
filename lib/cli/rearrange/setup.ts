// SPDX-License-Identifier: Apache-2.0
// From the command line to a job: sizes, maps, devices; nothing is allocated yet.

import { NativeLibrary } from "../../native/library.ts";
import type { PlacementShape } from "../../placement.ts";
import { formatBytes } from "../../report/table.ts";
import { UsageError } from "../command.ts";
import type { Flags } from "../flags.ts";
import { transportOf } from "./flags.ts";
import type { Job } from "./job.ts";
import { readLoad } from "./load.ts";
import { type MapChoice, type MapFile, placementOf, readMap } from "./maps.ts";
import { openSource, type WeightsSource } from "./source.ts";
import { chooseWorld, type Member, type World } from "./world.ts";

/** Seconds that a wait may take unless `--timeout` says otherwise. */
const DEFAULT_TIMEOUT = 60;

/** The limit of every wait, in milliseconds. */
export function timeoutOf(flags: Flags): number {
  return Math.ceil(1e3 * (flags.number("timeout") ?? DEFAULT_TIMEOUT));
}

/** Works out the whole job of this process; without a member it holds all ranks. */
export async function setUp(flags: Flags, member?: Member): Promise<Job> {
  const library = NativeLibrary.open();
  const timeout = timeoutOf(flags);
  const from = await readMap(flags.text("from") ?? "contiguous");
  const to = await readMap(flags.text("to") ?? "random:1");
  refuseContradictions(flags, to);
  await refuseFile(flags.text("save"));
  const file = [from, to].find((map) => map.kind === "file");
  const source = await openSource(flags, file);
  try {
    const { devices: gpus, reason } = library.devices();
    const machine = { host: Deno.hostname(), gpus, reason };
    const world = await chooseWorld(flags, { machine, member, timeout });
    const shape = chooseShape(flags, { world, source, file });
    refuseTooMuch(shape, world, source);
    const load = await readLoad(flags.text("load"), shape);
    const options = { shape, topology: world.topology, load };
    const start = placementOf(from, options);
    const target = placementOf(to, options);
    return {
      ...world,
      library,
      shape,
      source,
      load,
      timeout,
      from: start,
      to: (repetition) =>
        repetition === 0 ? target : placementOf(to, { ...options, repetition }),
      transport: transportOf(flags),
      sources: (flags.text("sources") ?? "balanced") as "balanced" | "chunked",
      staging: staging(flags),
      maxOpsPerGroup: flags.number("max-ops"),
      maxCtas: flags.number("max-ctas"),
      smallBytes: flags.number("small-bytes"),
      copyEngineOnly: flags.has("copy-engine-only"),
      maxRate: flags.rate("max-rate"),
      verify: !flags.has("no-verify"),
      relay: !flags.has("no-relay"),
      repeat: flags.number("repeat") ?? 1,
      save: flags.text("save"),
      cluster: member?.cluster,
      [Symbol.dispose]: () => source[Symbol.dispose](),
    };
  } catch (error) {
    source[Symbol.dispose]();
    throw error;
  }
}

/** Refuses options that exclude each other. */
function refuseContradictions(flags: Flags, to: MapChoice): void {
  if (flags.has("verify") && flags.has("no-verify")) {
    throw new UsageError("--verify cannot be combined with --no-verify");
  }
  if ((flags.number("repeat") ?? 1) > 1 && to.kind !== "random") {
    throw new UsageError(
      "--repeat needs --to random:SEED: any other map is reached the first time",
    );
  }
}

/** The folder is made at the end, when there is something to put into it. */
async function refuseFile(folder: string | undefined): Promise<void> {
  if (folder === undefined) return;
  try {
    if ((await Deno.stat(folder)).isDirectory) return;
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return;
    throw error;
  }
  throw new UsageError(`--save must name a folder: "${folder}" is a file`);
}

function chooseShape(
  flags: Flags,
  options: {
    readonly world: World;
    readonly source: WeightsSource;
    readonly file: MapFile | undefined;
  },
): PlacementShape {
  const { world: { topology: { ranks } }, source, file } = options;
  const { layers, experts } = source;
  const least = Math.ceil(experts / ranks);
  const slots = flags.number("slots");
  if (slots !== undefined && slots < least) {
    throw new UsageError(
      `--slots must be at least ${least} for ${experts} experts on ${ranks} ranks: it is ${slots}`,
    );
  }
  if (file !== undefined && file.slots < experts) {
    throw new RangeError(
      `Cannot use map "${file.path}": ${file.slots} slots cannot hold ${experts} experts`,
    );
  }
  // Without a map, room for one redundant expert on each rank.
  const slotsPerRank = slots ??
    (file === undefined ? least + 1 : Math.ceil(file.slots / ranks));
  return { layers, ranks, slotsPerRank, experts };
}

/** Refuses more host memory than there is: the kernel would end some process for it. */
function refuseTooMuch(
  shape: PlacementShape,
  { locals, devices }: World,
  { layout }: WeightsSource,
): void {
  const slots = locals.length * shape.layers * shape.slotsPerRank;
  const needed = slots * layout.expertBytes;
  const { available } = Deno.systemMemoryInfo();
  if (devices[0] !== "host" || needed <= available) return;
  throw new Error(
    `Cannot hold ${formatBytes(needed)} of weights in host memory: ` +
      `${formatBytes(available)} are free; lower --layers, --experts or ` +
      `--slots, or divide the dimensions with --scale`,
  );
}

function staging(flags: Flags): Job["staging"] {
  const bytes = flags.number("staging");
  const sets = flags.number("staging-sets") as
    | 1
    | 2
    | 3
    | 4
    | undefined;
  return {
    ...(bytes === undefined ? {} : { bytes }),
    ...(sets === undefined ? {} : { sets }),
  };
}
