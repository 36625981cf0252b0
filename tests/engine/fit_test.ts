import { assertEquals, assertThrows } from "@std/assert";
import { chooseTransport, optionsFor } from "../../lib/engine/fit.ts";
import { planMove } from "../../lib/engine/move.ts";
import type { EngineOptions } from "../../lib/engine/options.ts";
import type { TransportName } from "../../lib/native/transport.ts";
import { Placement } from "../../lib/placement.ts";
import { Topology } from "../../lib/topology.ts";

/** Options of which only devices, nodes and transport matter. */
function options(
  devices: readonly (number | "host")[],
  nodes: number,
  transport?: TransportName | "auto",
): EngineOptions {
  return {
    weights: devices.map((device) => ({ device })),
    topology: Topology.uniform({ ranks: devices.length, nodes }),
    transport,
  } as unknown as EngineOptions;
}

Deno.test("chooseTransport() pulls on the host and inside a node, and adds NCCL between nodes", () => {
  for (
    const [devices, nodes, expected] of [
      [["host", "host"], 1, "pull"],
      [["host", "host"], 2, "pull"],
      [[0, 1], 1, "pull"],
      [[0, 1], 2, "pull+nccl"],
      [[0, 1, 2, 3], 2, "pull+nccl"],
      [[0, 0, 1, 1], 1, "pull"],
    ] as const
  ) {
    assertEquals(chooseTransport(options(devices, nodes)), expected);
    assertEquals(chooseTransport(options(devices, nodes, "auto")), expected);
    assertEquals(chooseTransport(options(devices, nodes, "pull")), "pull");
  }
  for (const transport of ["nccl", "pull+nccl", "nccl-put"] as const) {
    for (const nodes of [1, 2]) {
      const chosen = chooseTransport(options([0, 1], nodes, transport));
      assertEquals(chosen, transport);
    }
  }
});

Deno.test("chooseTransport() refuses devices that a transport cannot serve", () => {
  for (
    const [devices, nodes, transport, message] of [
      [["host", 0], 1, "pull", "some weights are on the host and some on GPUs"],
      [["host", "host"], 1, "nccl", 'weights are in host memory, use "pull"'],
      [["host", "host"], 2, "pull+nccl", 'transport "pull+nccl": weights are'],
      [["host", "host"], 1, "nccl-put", 'transport "nccl-put": weights are'],
      [[0, 0], 1, "nccl", "two ranks share a GPU (devices 0,0)"],
      [[0, 0], 1, "pull+nccl", "two ranks share a GPU (devices 0,0)"],
      [[0, 0], 1, "nccl-put", "two ranks share a GPU (devices 0,0)"],
      [[1, 1], 2, "auto", 'use "pull" inside a node'],
    ] as const
  ) {
    assertThrows(
      () => chooseTransport(options(devices, nodes, transport)),
      RangeError,
      message,
    );
  }
});

Deno.test("optionsFor() leaves direct to transports that can write so, and all else as it is", () => {
  const from = Placement.from([[0, 1, 0, 2, 3, 1]], { ranks: 2 });
  const to = Placement.from([[0, 1, 3, 2, 3, 0]], { ranks: 2 });
  const options = {
    sources: "chunked",
    direct: true,
    maxLayersPerBatch: 1,
  } as const;
  for (
    const [transport, direct] of [
      ["pull", true],
      ["nccl", true],
      ["pull+nccl", true],
      ["nccl-put", false],
    ] as const
  ) {
    const left = optionsFor(transport, options);
    assertEquals(left, { ...options, direct });
    const { drained } = planMove(from, to, {
      topology: Topology.uniform({ ranks: 2, nodes: 1 }),
      locals: [0, 1],
      tensorBytes: [8],
      smallBytes: 0,
      maxOpsPerGroup: 64,
      stagingCells: 2,
      ...left,
    });
    assertEquals(drained.equals(from), !direct);
  }
});
