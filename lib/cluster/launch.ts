// SPDX-License-Identifier: Apache-2.0

/**
 * Starting one process per rank on this machine.
 *
 * @module
 */

import { forwardLines } from "./lines.ts";
import { checkDuration } from "./wait.ts";

/** Where started ranks find their store; {@linkcode StoreServer} is one. */
export interface StoreAddress {
  /** Host and port, as `EPLB_STORE` carries them. */
  readonly address: string;
  /** The secret that the store expects. */
  readonly token: string;
}

/** Options of {@linkcode launchRanks}. */
export interface LaunchOptions {
  /** Number of processes. */
  readonly worldSize: number;
  /** The program that every rank runs. */
  readonly command: string;
  /** Its arguments. @default {[]} */
  readonly args?: readonly string[] | undefined;
  /** Environment beside this process' own and the ranks'. @default {{}} */
  readonly env?: Readonly<Record<string, string>> | undefined;
  /** The store that the ranks will join. */
  readonly server: StoreAddress;
  /**
   * Called with every line that a rank writes, prefixed "[rank 3] ". Without it
   * the ranks write where this process writes.
   */
  readonly onLine?:
    | ((line: string, stream: "stdout" | "stderr") => void)
    | undefined;
  /** Ends every rank early; the launch then rejects with its reason. */
  readonly signal?: AbortSignal | undefined;
  /**
   * Milliseconds that ranks have to end by themselves after another one failed,
   * and again between SIGTERM and SIGKILL.
   *
   * @default {10_000}
   */
  readonly killGrace?: number | undefined;
  /**
   * Whether SIGINT, SIGTERM and SIGHUP to this process end every rank; the
   * launch then rejects. A second signal kills them at once.
   *
   * @default {true}
   */
  readonly handleSignals?: boolean | undefined;
}

/** How the process of a rank ended. */
export interface RankExit {
  /** The rank. */
  readonly rank: number;
  /** Exit code; 128 + the signal's number if a signal ended it. */
  readonly code: number;
  /** The signal that ended it, if one did. */
  readonly signal: Deno.Signal | null;
}

/** How far the end of the ranks has come; it only moves forward. */
const STAGE = { running: 0, grace: 1, terminate: 2, kill: 3 } as const;
type Stage = typeof STAGE[keyof typeof STAGE];

const INTERRUPTS = ["SIGINT", "SIGTERM", "SIGHUP"] as const;

/**
 * Runs one process per rank on this machine and waits for all of them.
 *
 * Each gets `EPLB_RANK`, `EPLB_WORLD_SIZE`, `EPLB_LOCAL_RANK`, `EPLB_STORE` and
 * `EPLB_TOKEN` (see {@linkcode rankIdentity}) and a process group of its own.
 * When one fails, the others have `killGrace` to end by themselves; then they
 * are terminated, then killed. What a rank leaves running in its group is
 * killed with it. No rank outlives this process when it is interrupted; if it
 * is itself killed, the ranks find out by losing its store.
 *
 * @param options What to run, how often, and how to end it.
 * @returns How each rank ended, in rank order; failing is no rejection.
 * @throws {RangeError} If an option is out of range.
 * @throws {Deno.errors.NotFound} If there is no such program.
 *
 * @example Two ranks
 * ```ts
 * import { launchRanks, StoreServer } from "@eplb/eplb";
 * import { assertEquals } from "@std/assert";
 *
 * await using server = StoreServer.listen({ worldSize: 2, token: "secret" });
 * const lines: string[] = [];
 * const exits = await launchRanks({
 *   worldSize: 2,
 *   command: "sh",
 *   args: ["-c", "echo I am $EPLB_RANK of $EPLB_WORLD_SIZE"],
 *   server,
 *   onLine: (line) => lines.push(line),
 * });
 * assertEquals(exits.map(({ code }) => code), [0, 0]);
 * assertEquals(lines.sort(), ["[rank 0] I am 0 of 2", "[rank 1] I am 1 of 2"]);
 * ```
 */
export async function launchRanks(options: LaunchOptions): Promise<RankExit[]> {
  checkOptions(options);
  options.signal?.throwIfAborted();
  const crew = new Crew(options);
  const release = handleInterrupts(crew, options);
  try {
    return await crew.run();
  } finally {
    release();
  }
}

/** Ends the crew when this process or the caller is told to stop. */
function handleInterrupts(crew: Crew, options: LaunchOptions): () => void {
  const { signal, handleSignals = true } = options;
  const abort = (): void => crew.interrupt(signal?.reason);
  signal?.addEventListener("abort", abort);
  const names = handleSignals ? INTERRUPTS : [];
  const handlers = names.map((name) => {
    const handler = (): void => {
      crew.interrupt(new Error(`Cannot finish launch: interrupted by ${name}`));
    };
    Deno.addSignalListener(name, handler);
    return [name, handler] as const;
  });
  return () => {
    signal?.removeEventListener("abort", abort);
    for (const entry of handlers) Deno.removeSignalListener(...entry);
  };
}

/** The processes of all ranks, and how they are ended. */
class Crew {
  readonly #options: LaunchOptions;
  readonly #grace: number;
  /** Processes that run, by rank. */
  readonly #running = new Map<number, Deno.ChildProcess>();
  #stage: Stage = STAGE.running;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #interruption: { readonly reason: unknown } | undefined;

  constructor(options: LaunchOptions) {
    this.#options = options;
    this.#grace = options.killGrace ?? 10_000;
  }

  /** Starts every rank and waits for all, also when starting one failed. */
  async run(): Promise<RankExit[]> {
    const exits: Promise<RankExit>[] = [];
    try {
      for (let rank = 0; rank < this.#options.worldSize; rank++) {
        exits.push(this.#follow(rank, this.#spawn(rank)));
      }
    } catch (error) {
      this.interrupt(error);
      this.#advance(STAGE.kill);
    }
    const ended = await Promise.all(exits);
    clearTimeout(this.#timer);
    if (this.#interruption !== undefined) throw this.#interruption.reason;
    return ended;
  }

  /** Terminates the ranks, or kills them if they are being terminated. */
  interrupt(reason: unknown): void {
    const again = this.#interruption !== undefined;
    this.#interruption ??= { reason };
    this.#advance(again ? STAGE.kill : STAGE.terminate);
  }

  #spawn(rank: number): Deno.ChildProcess {
    const { worldSize, command, args, env, server, onLine } = this.#options;
    const output = onLine === undefined ? "inherit" : "piped";
    return new Deno.Command(command, {
      args: [...args ?? []],
      env: {
        ...env,
        EPLB_RANK: `${rank}`,
        EPLB_WORLD_SIZE: `${worldSize}`,
        EPLB_LOCAL_RANK: `${rank}`,
        EPLB_STORE: server.address,
        EPLB_TOKEN: server.token,
      },
      stdin: "null",
      stdout: output,
      stderr: output,
      // A group of its own, so that what the rank starts ends with it.
      detached: true,
    }).spawn();
  }

  async #follow(rank: number, child: Deno.ChildProcess): Promise<RankExit> {
    this.#running.set(rank, child);
    const ended = this.#end(rank, child);
    if (this.#options.onLine !== undefined) {
      await Promise.all([
        this.#forward(rank, { stream: "stdout", ended, from: child.stdout }),
        this.#forward(rank, { stream: "stderr", ended, from: child.stderr }),
      ]);
    }
    const { code, signal } = await ended;
    return { rank, code, signal };
  }

  async #end(
    rank: number,
    child: Deno.ChildProcess,
  ): Promise<Deno.CommandStatus> {
    const status = await child.status;
    this.#running.delete(rank);
    kill(child, "SIGKILL"); // what it left behind
    if (!status.success) this.#advance(STAGE.grace);
    return status;
  }

  /** Hands over lines; a callback that throws ends the launch. */
  async #forward(
    rank: number,
    output: {
      readonly stream: "stdout" | "stderr";
      readonly from: ReadableStream<Uint8Array>;
      readonly ended: Promise<unknown>;
    },
  ): Promise<void> {
    const { stream, from, ended } = output;
    await forwardLines(from, ended, (line) => {
      try {
        this.#options.onLine?.(`[rank ${rank}] ${line}`, stream);
      } catch (error) {
        if (this.#interruption === undefined) this.interrupt(error);
      }
    });
  }

  /** Moves on to a stage, and from there to the next ones as time passes. */
  #advance(stage: Stage): void {
    if (stage <= this.#stage) return;
    this.#stage = stage;
    clearTimeout(this.#timer);
    if (stage >= STAGE.terminate) {
      const signal = stage === STAGE.kill ? "SIGKILL" : "SIGTERM";
      for (const child of this.#running.values()) kill(child, signal);
    }
    if (stage === STAGE.kill) return;
    const next = stage === STAGE.grace ? STAGE.terminate : STAGE.kill;
    this.#timer = setTimeout(() => this.#advance(next), this.#grace);
  }
}

/** Signals a process and all it started; there may be nobody left to signal. */
function kill(child: Deno.ChildProcess, signal: Deno.Signal): void {
  try {
    Deno.kill(-child.pid, signal);
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
  }
}

function checkOptions(options: LaunchOptions): void {
  const { worldSize, killGrace = 1 } = options;
  checkDuration("killGrace", killGrace);
  if (Number.isInteger(worldSize) && worldSize >= 1) return;
  throw new RangeError(
    `Cannot launch ranks: "worldSize" must be an integer >= 1: ` +
      `current value is ${worldSize}`,
  );
}
