import { assert, assertEquals, assertRejects } from "@std/assert";
import {
  BATCH_WORDS,
  HEADER_WORDS,
  OPERATION_WORDS,
  OperationCode,
  PROGRAM_MAGIC,
  PROGRAM_VERSION,
} from "../../lib/migration/operation.ts";
import { NativeEngine } from "../../lib/native/engine.ts";
import { EplbError } from "../../lib/native/errors.ts";
import { ExpertWeights } from "../../lib/native/weights.ts";
import { ExpertLayout } from "../../lib/weights/layout.ts";
import { library } from "../_native.ts";

const LAYERS = 5;
const BYTES = 4;
const TIMEOUT = 20_000;

/** One batch per layer, which copies slot 0 of the only rank to slot 1. */
function copies(): Int32Array<ArrayBuffer> {
  const words: number[] = [PROGRAM_MAGIC, PROGRAM_VERSION];
  words.push(LAYERS, LAYERS, LAYERS, 2, 1, 0);
  for (let layer = 0; layer < LAYERS; layer++) words.push(layer, layer + 1);
  for (let layer = 0; layer < LAYERS; layer++) {
    words.push(layer, 0, 0, OperationCode.copy, layer, 1, 0, 0);
  }
  assertEquals(
    words.length,
    HEADER_WORDS + LAYERS * (BATCH_WORDS + OPERATION_WORDS),
  );
  return Int32Array.from(words);
}

/** An engine of one rank, and its memory, [layers, 2 slots, bytes]. */
class Job implements AsyncDisposable {
  readonly memory = new Uint8Array(LAYERS * 2 * BYTES);
  readonly weights: ExpertWeights;
  readonly engine: NativeEngine;

  constructor() {
    const address = Deno.UnsafePointer.value(
      Deno.UnsafePointer.of(this.memory),
    );
    this.weights = ExpertWeights.register(library, {
      layout: new ExpertLayout([{ name: "w", dtype: "U8", shape: [BYTES] }]),
      layers: LAYERS,
      slots: 2,
      memory: Array.from({ length: LAYERS }, (_, layer) => [
        { address: address + BigInt(layer * 2 * BYTES) },
      ]),
    });
    this.engine = new NativeEngine(library, {
      world: 1,
      ranks: [0],
      nodes: [0],
      weights: [this.weights],
      transport: "pull",
      stagingCells: 1,
      stagingSets: 2,
      maxCtas: 0,
      smallBytes: 0,
      copyEngineOnly: false,
    });
  }

  static async connect(): Promise<Job> {
    const job = new Job();
    await job.engine.connect([job.engine.exportBlob(0)], TIMEOUT);
    job.fill();
    return job;
  }

  fill(): void {
    for (let layer = 0; layer < LAYERS; layer++) {
      const start = layer * 2 * BYTES;
      this.memory.fill(1 + layer, start, start + BYTES);
      this.memory.fill(0, start + BYTES, start + 2 * BYTES);
    }
  }

  /** Layers whose copy is there; all others must be as they were. */
  get moved(): number {
    const copied = Array.from(
      { length: LAYERS },
      (_, layer) => {
        const start = (2 * layer + 1) * BYTES;
        const bytes = this.memory.subarray(start, start + BYTES);
        assert(bytes.every((byte) => byte === bytes[0]));
        assert(bytes[0] === 0 || bytes[0] === 1 + layer);
        return bytes[0] !== 0;
      },
    );
    const moved = copied.filter((there) => there).length;
    assert(copied.slice(0, moved).every((there) => there));
    return moved;
  }

  async agreed(batches: number): Promise<void> {
    while (this.engine.progress().agreed < batches) {
      await new Promise((resolve) => setTimeout(resolve, 1));
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.engine.close();
    this.weights.close();
  }
}

Deno.test("NativeEngine.run() of a held run changes what commit() permits, and no more", async () => {
  await using job = await Job.connect();
  const run = job.engine.run(copies(), { timeoutMs: TIMEOUT, held: true });
  await job.agreed(2);
  assertEquals(job.engine.progress(), { committed: 0, agreed: 2 });
  assertEquals(job.moved, 0);
  assertEquals(await job.engine.commit(1, TIMEOUT), 1);
  assertEquals(job.moved, 1);
  await job.agreed(3);
  assertEquals(job.engine.progress(), { committed: 1, agreed: 3 });
  assertEquals(await job.engine.commit(LAYERS, TIMEOUT), LAYERS);
  assertEquals(job.moved, LAYERS);
  const outcome = await run;
  outcome.check();
  assertEquals(outcome.committedBatches, LAYERS);
  assertEquals(job.engine.progress(), { committed: LAYERS, agreed: LAYERS });
});

Deno.test("NativeEngine.run() with a bound takes what all bytes take at it", async () => {
  await using job = await Job.connect();
  for (const held of [false, true]) {
    job.fill();
    const run = job.engine.run(copies(), {
      timeoutMs: TIMEOUT,
      held,
      bytesPerSecond: 100 * BYTES,
    });
    if (held) await job.engine.commit(LAYERS, TIMEOUT);
    const outcome = await run;
    outcome.check();
    assert(outcome.seconds >= 0.01 * LAYERS, `${outcome.seconds} s`);
    assertEquals(job.moved, LAYERS);
  }
});

Deno.test("NativeEngine.progress() and commit() right after run() are about that run", async () => {
  await using job = await Job.connect();
  const options = { timeoutMs: TIMEOUT, held: false };
  (await job.engine.run(copies(), options)).check();
  for (let round = 0; round < 50; round++) {
    job.fill();
    const run = job.engine.run(copies(), { timeoutMs: TIMEOUT, held: true });
    assertEquals(job.engine.progress().committed, 0);
    assert(job.engine.progress().agreed <= 2);
    assertEquals(await job.engine.commit(3, TIMEOUT), 3);
    assertEquals(job.moved, 3);
    assertEquals(await job.engine.commit(LAYERS, TIMEOUT), LAYERS);
    (await run).check();
  }
});

Deno.test("NativeEngine.commit() rejects with what ended the run", async () => {
  await using job = await Job.connect();
  const run = job.engine.run(copies(), { timeoutMs: TIMEOUT, held: true });
  assertEquals(await job.engine.commit(2, TIMEOUT), 2);
  await job.agreed(4);
  job.engine.abort(-1, "test");
  const outcome = await run;
  assertEquals(outcome.committedBatches, 2);
  assertEquals(job.moved, 2);
  const ended = await assertRejects(
    () => job.engine.commit(3, TIMEOUT),
    EplbError,
    "aborted: test",
  );
  assertEquals(ended.code, "aborted");
  assertEquals(await job.engine.settle(4), 4);
  assertEquals(job.moved, 4);
});

Deno.test("NativeEngine.commit() after a refused run is refused, too", async () => {
  await using job = await Job.connect();
  const broken = copies();
  broken[1] = 9;
  const run = job.engine.run(broken, { timeoutMs: TIMEOUT, held: true });
  await assertRejects(
    () => job.engine.commit(1, TIMEOUT),
    EplbError,
    "Cannot commit",
  );
  const outcome = await run;
  assertEquals(outcome.committedBatches, 0);
  assertEquals(job.moved, 0);
});
