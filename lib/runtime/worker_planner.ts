// SPDX-License-Identifier: Apache-2.0

/**
 * Deciding and planning beside the thread that drives the model.
 *
 * @module
 */
import type { PolicyName } from "../policies/registry.ts";
import {
  inlinePlanner,
  type Planned,
  type Planner,
  type PlanRequest,
} from "./planner.ts";
import {
  type AnswerMessage,
  packRequest,
  unpackAnswer,
} from "./planner_messages.ts";

/**
 * Plans in a worker, so that no step waits for a policy, which can take tens of milliseconds.
 *
 * Where no worker can be started, for example for lack of a permission to read its file, it plans in
 * this thread.
 */
export class WorkerPlanner implements Planner {
  readonly #policy: PolicyName;
  #worker: Worker | undefined;
  #broken = false;
  #requests = 0;
  readonly #waiting = new Map<number, PromiseWithResolvers<AnswerMessage>>();

  /** @param policy The policy that the worker asks; only its name can go there. */
  constructor(policy: PolicyName) {
    this.#policy = policy;
  }

  async plan(request: PlanRequest): Promise<Planned> {
    const answer = await this.#ask(request);
    if (answer === undefined) return await inlinePlanner.plan(request);
    if ("error" in answer) throw new RangeError(answer.error);
    return unpackAnswer(answer, request);
  }

  close(): void {
    this.#end();
  }

  /** Undefined if there is nobody to ask. */
  async #ask(request: PlanRequest): Promise<AnswerMessage | undefined> {
    const worker = this.#start();
    if (worker === undefined) return undefined;
    const id = ++this.#requests;
    const waiting = Promise.withResolvers<AnswerMessage>();
    this.#waiting.set(id, waiting);
    worker.postMessage(packRequest(id, request, this.#policy));
    try {
      return await waiting.promise;
    } catch {
      return undefined;
    } finally {
      this.#waiting.delete(id);
    }
  }

  #start(): Worker | undefined {
    if (this.#broken) return undefined;
    if (this.#worker !== undefined) return this.#worker;
    try {
      const file = new URL("./planner_worker.ts", import.meta.url).href;
      this.#worker = new Worker(file, { type: "module" });
    } catch {
      this.#broken = true;
      return undefined;
    }
    this.#worker.onmessage = ({ data }: MessageEvent<AnswerMessage>): void => {
      this.#waiting.get(data.id)?.resolve(data);
    };
    this.#worker.onerror = (event): void => {
      event.preventDefault();
      this.#broken = true;
      this.#end();
    };
    return this.#worker;
  }

  #end(): void {
    this.#worker?.terminate();
    this.#worker = undefined;
    for (const { reject } of this.#waiting.values()) {
      reject(new Error("Cannot plan: the worker is gone"));
    }
  }
}
