import { assertRejects, assertThrows } from "@std/assert";
import { EplbState } from "../../lib/runtime/state.ts";
import { Topology } from "../../lib/topology.ts";
import { library } from "../_native.ts";
import { serve, ServedLedger, SMALL } from "./_serving.ts";

Deno.test("EplbState refuses what cannot work", async () => {
  const topology = Topology.uniform({ ranks: 4, nodes: 1 });
  await assertRejects(
    () => EplbState.create({ library, topology, stepInterval: 0 }),
    RangeError,
    "stepInterval",
  );
  await assertRejects(
    () => EplbState.create({ library, topology, layersPerStep: 0 }),
    RangeError,
    "layersPerStep",
  );
  await assertRejects(
    () => EplbState.create({ library, topology, policy: "best" as "quota" }),
    TypeError,
    'there is no policy "best"',
  );
  await assertRejects(
    () => EplbState.create({ library, topology, mode: "later" as "sync" }),
    TypeError,
    'mode must be "async" or "sync"',
  );
  for (const maxRate of [0, NaN, 0.5, Infinity]) {
    await assertRejects(
      () => EplbState.create({ library, topology, maxRate }),
      RangeError,
      `Cannot create state: maxRate must be from 1 to 9007199254740991 bytes per second, got ${maxRate}`,
    );
  }
  using served = new ServedLedger(SMALL);
  const { state } = await serve();
  await served.addTo(state);
  await assertRejects(
    () => served.addTo(state),
    TypeError,
    'Cannot add model "main": there is one of that name',
  );
  assertThrows(() => state.setActive([2, 1]), RangeError, "a rank");
  assertThrows(() => served.model.dispatcher(7), RangeError, "rank 7");
  assertThrows(
    () => served.model.record(new Float64Array(3)),
    RangeError,
    "there are 3 counts",
  );
  assertThrows(
    () => served.model.record(new Float64Array(32).fill(NaN)),
    RangeError,
    "layer 0, expert 0",
  );
  await state.close();
  await state.close();
  assertThrows(() => state.step(), TypeError, "state is closed");
  await assertRejects(() => state.drain(), TypeError, "state is closed");
});
