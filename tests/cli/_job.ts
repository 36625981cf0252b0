// Jobs of several processes, and what they leave behind.

import { type Outcome, runProcess } from "./_run.ts";

/** Starts one process per rank as torchrun does, and waits for all. */
export async function torchrun(
  worldSize: number,
  argsOf: (rank: number) => string[],
  /** Milliseconds by which the last rank comes later than the others. */
  delay = 0,
): Promise<Outcome[]> {
  const port = freePort();
  const ranks = Array.from({ length: worldSize }, async (_, rank) => {
    if (rank === worldSize - 1) await pause(delay);
    return await runProcess(argsOf(rank), {
      RANK: `${rank}`,
      WORLD_SIZE: `${worldSize}`,
      LOCAL_RANK: `${rank}`,
      MASTER_ADDR: "127.0.0.1",
      // The store of a job is on the port above this one.
      MASTER_PORT: `${port - 1}`,
    });
  });
  return await Promise.all(ranks);
}

function pause(milliseconds: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, milliseconds));
}

/** A port that nobody listens on, and that no connection is given by chance. */
function freePort(): number {
  for (;;) {
    // Below the range from which systems take the ports of connections.
    const port = 20_000 + Math.floor(Math.random() * 12_000);
    try {
      Deno.listen({ port }).close();
      return port;
    } catch (error) {
      if (!(error instanceof Deno.errors.AddrInUse)) throw error;
    }
  }
}
