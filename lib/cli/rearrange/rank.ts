// SPDX-License-Identifier: Apache-2.0
// One rank of a job whose processes somebody else has started.

import type { RankIdentity } from "../../cluster/identity.ts";
import { StoreClient } from "../../cluster/store_client.ts";
import { StoreServer } from "../../cluster/store_server.ts";
import { NativeLibrary } from "../../native/library.ts";
import { messageOf } from "../../engine/waiting.ts";
import { UsageError } from "../command.ts";
import type { Flags } from "../flags.ts";
import type { Terminal } from "../terminal.ts";
import { runJob } from "./job.ts";
import { makeReport, type RearrangeReport } from "./report.ts";
import { setUp, timeoutOf } from "./setup.ts";

/** Joins the other ranks and does this one's part; rank 0 hosts the store unless the launcher does. */
export async function runAsRank(
  flags: Flags,
  options: { readonly identity: RankIdentity; readonly terminal: Terminal },
): Promise<RearrangeReport> {
  const { identity, terminal } = options;
  refuseContradictions(flags, identity);
  const { rank, token, storeHost: host, storePort: port } = identity;
  const timeout = timeoutOf(flags);
  // The first look at many GPUs takes seconds in which nothing else runs here;
  // to a store that is joined already this rank would seem to have stopped.
  NativeLibrary.open().devices();
  await using owned = new AsyncDisposableStack();
  if (rank === 0 && identity.source !== "eplb") {
    owned.use(hostStore(identity, timeout));
  }
  terminal.progress(`joining the store at ${host}:${port}`);
  const cluster = owned.use(
    await StoreClient.connect({ host, port, rank, token, timeout }),
  );
  const meet = async (where: string): Promise<unknown> =>
    await cluster.gather(where, new Uint8Array(0), { timeout });
  // Nobody can fail before all are here: who comes later would find no store.
  await meet("start");
  try {
    using job = await setUp(flags, { identity, cluster });
    const outcome = await runJob(job, terminal);
    // Nobody leaves before all are done: rank 0 may be the store's host.
    await meet("end");
    return makeReport(job, outcome);
  } catch (error) {
    await cluster.fail(messageOf(error));
    throw error;
  }
}

/** The store of a job whose launcher has none for us. */
function hostStore(
  { worldSize, token, storePort: port }: RankIdentity,
  joinTimeout: number,
): StoreServer {
  try {
    const host = "0.0.0.0";
    return StoreServer.listen({ worldSize, token, host, port, joinTimeout });
  } catch (cause) {
    if (!(cause instanceof Deno.errors.AddrInUse)) throw cause;
    throw new Error(
      `Cannot host the store: port ${port} is taken, EPLB_STORE_PORT can name another`,
      { cause },
    );
  }
}

function refuseContradictions(flags: Flags, identity: RankIdentity): void {
  const { rank, worldSize, source } = identity;
  if (flags.has("processes")) {
    throw new UsageError(
      `--processes launches ranks, but ${source} has launched this one, rank ${rank} of ${worldSize}`,
    );
  }
  const ranks = flags.number("ranks") ?? worldSize;
  if (ranks !== worldSize) {
    throw new UsageError(
      `--ranks is ${ranks}, but ${source} has launched ${worldSize}`,
    );
  }
}
