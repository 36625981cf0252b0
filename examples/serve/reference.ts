// SPDX-License-Identifier: Apache-2.0
// The same model without any balancing: experts as the checkpoint has them, in
// this process, never moved.

import type { ExpertCheckpoint } from "@eplb/eplb";
import type { Expert, MoeModel } from "./model.ts";
import {
  type LayerOutcome,
  type Routing,
  rowOf,
  runExpert,
  runLayers,
} from "./moe.ts";
import { decode } from "./tensors.ts";

/** The model that outputs are compared with. */
export class Reference {
  readonly #model: MoeModel;
  /** [layers][experts] */
  readonly #experts: readonly (readonly Expert[])[];

  private constructor(
    model: MoeModel,
    experts: readonly (readonly Expert[])[],
  ) {
    this.#model = model;
    this.#experts = experts;
  }

  /** Reads all experts. */
  static async read(
    checkpoint: ExpertCheckpoint,
    model: MoeModel,
  ): Promise<Reference> {
    const experts: Expert[][] = [];
    for (let layer = 0; layer < checkpoint.layers; layer++) {
      const row: Expert[] = [];
      for (let expert = 0; expert < checkpoint.experts; expert++) {
        const w13 = await readTensor(checkpoint, [layer, expert], 0);
        const w2 = await readTensor(checkpoint, [layer, expert], 1);
        row.push({ w13, w2 });
      }
      experts.push(row);
    }
    return new Reference(model, experts);
  }

  /** Runs the layers on hidden states, [tokens, hidden]. */
  forward(
    hidden: Float32Array,
    biases: readonly Float64Array[],
  ): Promise<LayerOutcome[]> {
    return runLayers(this.#model, hidden, {
      biases,
      experts: (layer, routing) => this.#run(layer, routing),
    });
  }

  #run(layer: number, { normed, experts }: Routing): Float32Array {
    const { hidden, topK } = this.#model;
    const outputs = new Float32Array(experts.length * hidden);
    for (const [choice, expert] of experts.entries()) {
      const input = rowOf(normed, Math.floor(choice / topK), hidden);
      const output = rowOf(outputs, choice, hidden);
      runExpert(this.#experts[layer]![expert]!, input, output);
    }
    return outputs;
  }
}

async function readTensor(
  checkpoint: ExpertCheckpoint,
  [layer, expert]: readonly [number, number],
  tensor: number,
): Promise<Float32Array> {
  const { bytes, dtype } = checkpoint.layout.tensors[tensor]!;
  const target = new Uint8Array(bytes);
  await checkpoint.readExpert(layer, expert, { tensor, target });
  return decode(target, dtype);
}
