import { StoreClient } from "../../lib/cluster/store_client.ts";
import {
  StoreServer,
  type StoreServerOptions,
} from "../../lib/cluster/store_server.ts";

/** A silence that only a rank that is stopped on purpose keeps. */
export const PATIENT = { interval: 500, silence: 30_000 };

export interface World extends AsyncDisposable {
  readonly server: StoreServer;
  readonly clients: readonly StoreClient[];
}

/** A store, and the ranks `0 … joined - 1` in this process. */
export async function startWorld(
  joined: number,
  options: Partial<StoreServerOptions> = {},
): Promise<World> {
  const server = StoreServer.listen({
    worldSize: joined,
    token: "a secret",
    heartbeat: PATIENT,
    ...options,
  });
  const clients = await Promise.all(
    Array.from({ length: joined }, (_, rank) => join(server, rank)),
  );
  return {
    server,
    clients,
    async [Symbol.asyncDispose](): Promise<void> {
      await Promise.all(clients.map((client) => client.close()));
      await server.close();
    },
  };
}

export function join(server: StoreServer, rank: number): Promise<StoreClient> {
  const { host, port, token } = server;
  return StoreClient.connect({ host, port, token, rank });
}

/** A rank, or a store, in a process of its own; it is killed in the end. */
export class Child implements AsyncDisposable {
  readonly #process: Deno.ChildProcess;

  constructor(script: string, env: Record<string, string>) {
    this.#process = new Deno.Command(Deno.execPath(), {
      args: [
        "run",
        "--allow-net",
        "--allow-env",
        new URL(script, import.meta.url).pathname,
      ],
      env,
      stdin: "null",
      stdout: "piped",
      stderr: "inherit",
    }).spawn();
  }

  static rank(server: StoreServer, rank: number): Child {
    return new Child("./_rank.ts", {
      EPLB_RANK: `${rank}`,
      EPLB_WORLD_SIZE: `${server.worldSize}`,
      EPLB_LOCAL_RANK: `${rank}`,
      EPLB_STORE: server.address,
      EPLB_TOKEN: server.token,
    });
  }

  kill(signal: Deno.Signal): void {
    this.#process.kill(signal);
  }

  /** The first line that it writes. */
  async firstLine(): Promise<string> {
    const decoder = new TextDecoder();
    let text = "";
    for await (
      const bytes of this.#process.stdout.values({ preventCancel: true })
    ) {
      text += decoder.decode(bytes, { stream: true });
      if (text.includes("\n")) break;
    }
    return text.split("\n")[0]!;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    try {
      this.#process.kill("SIGKILL");
    } catch {
      // It has ended.
    }
    await this.#process.stdout.cancel();
    await this.#process.status;
  }
}

export function bytes(...values: number[]): Uint8Array {
  return new Uint8Array(values);
}

export function text(value: string): Uint8Array {
  return new TextEncoder().encode(value);
}
