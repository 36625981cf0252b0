// SPDX-License-Identifier: Apache-2.0

import { assertEquals } from "@std/assert";
import { Placement } from "../../lib/placement.ts";
import { engineOptions, type ModelContext } from "../../lib/runtime/model.ts";
import { Topology } from "../../lib/topology.ts";
import { library } from "../_native.ts";

const PLACEMENT = Placement.contiguous({
  layers: 1,
  ranks: 1,
  slotsPerRank: 2,
  experts: 2,
});

function context(background: boolean): ModelContext {
  return {
    library,
    topology: Topology.uniform({ ranks: 1, nodes: 1 }),
    ranks: [0],
    cluster: undefined,
    windowSteps: 1,
    timeout: 1000,
    background,
  };
}

Deno.test("engineOptions() leaves multiprocessors to forward passes that run beside", () => {
  const model = { name: "main", weights: [], experts: 2 };
  const chosen = (background: boolean, copyEngineOnly?: boolean) =>
    engineOptions(
      context(background),
      { ...model, ...(copyEngineOnly !== undefined && { copyEngineOnly }) },
      PLACEMENT,
    ).copyEngineOnly;
  assertEquals(chosen(true), true);
  assertEquals(chosen(false), false);
  assertEquals(chosen(true, false), false);
  assertEquals(chosen(false, true), true);
});
