// SPDX-License-Identifier: Apache-2.0
// A model that serves: forward passes, and a state that balances between them.

import { movedSlots } from "../../metrics.ts";
import { planMigration } from "../../migration/plan.ts";
import { traffic } from "../../migration/traffic.ts";
import type { ExpertWeights } from "../../native/weights.ts";
import type { Placement } from "../../placement.ts";
import type { CycleEnded } from "../../runtime/events.ts";
import type { ServedModel } from "../../runtime/model.ts";
import { EplbState } from "../../runtime/state.ts";
import type { Job } from "../rearrange/job.ts";
import { readLoad } from "../rearrange/load.ts";
import type { Forward } from "./forward.ts";

/** So long that cycles begin on request only. */
const NO_INTERVAL = 2 ** 30;

/** What a step took, in seconds. */
export interface Step {
  /** Forward pass and `step()`. */
  readonly seconds: number;
  /** `step()` alone. */
  readonly pause: number;
}

/** One cycle, as the loop saw it. */
export interface Reshuffle {
  /** From the step that asked for it to the one with the last layer. */
  readonly steps: readonly Step[];
  /** Slots that got another expert ÷ all slots. */
  readonly moved: number;
  /** Bytes from other ranks into the rank that got most. */
  readonly busiestBytes: number;
  /** Seconds from the first byte to the last commit. */
  readonly moveSeconds: number;
}

/** Steps, one after the other. */
export class StepLoop implements AsyncDisposable {
  readonly #job: Job;
  readonly #forward: Forward;
  readonly #state: EplbState;
  readonly #model: ServedModel;
  readonly #ended: CycleEnded[];

  private constructor(
    job: Job,
    parts: {
      readonly forward: Forward;
      readonly state: EplbState;
      readonly model: ServedModel;
      readonly ended: CycleEnded[];
    },
  ) {
    this.#job = job;
    this.#forward = parts.forward;
    this.#state = parts.state;
    this.#model = parts.model;
    this.#ended = parts.ended;
  }

  /** All ranks in this process, with a policy that decides anew which rank gets which expert. */
  static async start(job: Job, options: {
    readonly mode: "async" | "sync";
    readonly weights: readonly ExpertWeights[];
    /** What they hold. */
    readonly placement: Placement;
    readonly forward: Forward;
    /** The most bytes per second that each rank gathers; undefined: no bound. */
    readonly maxRate: number | undefined;
  }): Promise<StepLoop> {
    const { mode, weights, placement, forward, maxRate } = options;
    const ended: CycleEnded[] = [];
    const state = await EplbState.create({
      library: job.library,
      topology: job.topology,
      mode,
      maxRate,
      policy: "preserve",
      gate: false,
      ...(mode === "async" ? { layersPerStep: 1 } : {}),
      stepInterval: NO_INTERVAL,
      windowSteps: 1, // each cycle sees the load recorded for it alone
      onEvent: (event) => {
        if (event.type === "cycle-ended") ended.push(event);
      },
    });
    try {
      const model = await state.addModel({
        name: "bench",
        weights,
        placement,
        experts: job.shape.experts,
        staging: job.staging,
        copyEngineOnly: job.copyEngineOnly,
        ...(job.transport === "auto" ? {} : { transport: job.transport }),
      });
      return new StepLoop(job, { forward, state, model, ended });
    } catch (error) {
      await state.close();
      throw error;
    }
  }

  /** What the weights hold. */
  get placement(): Placement {
    return this.#model.placement;
  }

  /** One step. */
  async step(): Promise<Step> {
    const start = performance.now();
    await this.#forward.run();
    const computed = performance.now();
    await this.#state.step();
    const end = performance.now();
    return { seconds: (end - start) / 1e3, pause: (end - computed) / 1e3 };
  }

  /** Steps with nothing in progress, in seconds. */
  async idle(steps: number): Promise<number[]> {
    const seconds: number[] = [];
    while (seconds.length < steps) seconds.push((await this.step()).seconds);
    return seconds;
  }

  /** Asks for a rearrangement after a load of its own, and serves until it is in place. */
  async reshuffle(seed: number): Promise<Reshuffle> {
    const { placement: from } = this;
    const { shape, topology, source } = this.#job;
    const load = await readLoad(`zipf:${seed}`, shape);
    const [first, cycles] = [this.#state.steps, this.#ended.length];
    this.#model.record(load!);
    this.#state.request();
    const steps: Step[] = [];
    while (this.#ended.length === cycles) steps.push(await this.step());
    const { outcome, reason, step, moveSeconds } = this.#ended[cycles]!;
    if (outcome !== "committed") {
      throw new Error(
        `Cannot measure serving: a rearrangement was ${outcome}: ${
          reason ?? "nothing had to move"
        }`,
      );
    }
    const plan = planMigration(from, this.placement, { topology });
    const { expertBytes } = source.layout;
    return {
      // That it has ended is known one step after its last layer.
      steps: steps.slice(0, step - first),
      moved: movedSlots(from, this.placement) / plan.cases.length,
      busiestBytes: Math.max(...traffic(plan, { expertBytes }).bytesReceived),
      moveSeconds,
    };
  }

  /** Frees everything but the weights. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.#state.close();
  }
}
