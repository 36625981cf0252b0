// One rank of a job whose processes somebody else has started.

import type { RankIdentity } from "../../cluster/identity.ts";
import { StoreClient } from "../../cluster/store_client.ts";
import { StoreServer } from "../../cluster/store_server.ts";
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
  const { rank, worldSize, token, storeHost: host, storePort: port } = identity;
  const timeout = timeoutOf(flags);
  await using owned = new AsyncDisposableStack();
  if (rank === 0 && identity.source !== "eplb") {
    const anywhere = { host: "0.0.0.0", port };
    owned.use(
      StoreServer.listen({
        worldSize,
        token,
        ...anywhere,
        joinTimeout: timeout,
      }),
    );
  }
  terminal.progress(`joining the store at ${host}:${port}`);
  const cluster = owned.use(
    await StoreClient.connect({ host, port, rank, token, timeout }),
  );
  try {
    using job = await setUp(flags, { identity, cluster });
    const outcome = await runJob(job, terminal);
    // Nobody leaves before all are done: rank 0 may be the store's host.
    await cluster.gather("done", new Uint8Array(0), { timeout });
    return makeReport(job, outcome);
  } catch (error) {
    await cluster.fail(error instanceof Error ? error.message : String(error));
    throw error;
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
