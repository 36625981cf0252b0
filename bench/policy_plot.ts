// SPDX-License-Identifier: Apache-2.0
// Draws bench/policies.svg: imbalance against moved slots, one line per policy.
//
//   deno run -A bench/policy_plot.ts A.json B.json C.json …
//
// The files are recorded loads; the first is where experts are placed, each of the
// others a change of workload. Points are means over the changes.

import { basename } from "@std/path";
import { readLoad, totalLoad } from "../lib/load/files.ts";
import { deepseekPolicy } from "../lib/policies/deepseek.ts";
import type { Policy } from "../lib/policies/policy.ts";
import { preservePolicy } from "../lib/policies/preserve.ts";
import { quotaPolicy } from "../lib/policies/quota.ts";
import { swapPolicy } from "../lib/policies/swap.ts";
import { simulate, type SimulationPhase } from "../lib/simulate.ts";
import { Topology } from "../lib/topology.ts";

const CASES = [
  { ranks: 8, redundant: 16 },
  { ranks: 32, redundant: 64 },
  { ranks: 32, redundant: 32 },
] as const;

interface Point {
  readonly setting: string;
  readonly policy: string;
  readonly moved: number;
  readonly imbalance: number;
}

/** Each policy with its knob turned from "move little" to "balance well". */
function variants(): [string, Policy][] {
  const quota = [0.05, 0.03, 0.02, 0.01, 0.005, 0.002].map((tolerance) =>
    [
      "quota",
      (input) => quotaPolicy(input, { tolerance, noise: 0 }),
    ] as [string, Policy]
  );
  const swap = [2, 4, 8, 16, 32, 64].map((maxMoves) =>
    ["swap", (input) => swapPolicy(input, { maxMoves })] as [string, Policy]
  );
  return [
    ...quota,
    ...swap,
    ["preserve", preservePolicy],
    ["deepseek", deepseekPolicy],
  ];
}

async function readPhases(
  paths: readonly string[],
): Promise<{ phases: SimulationPhase[]; experts: number }> {
  const traces = await Promise.all(paths.map((path) => readLoad(path)));
  const phases = traces.map((trace, i) => ({
    name: basename(paths[i]!),
    load: totalLoad(trace),
  }));
  return { phases, experts: traces[0]!.experts };
}

function measure(
  phases: readonly SimulationPhase[],
  experts: number,
): Point[] {
  const points: Point[] = [];
  for (const { ranks, redundant } of CASES) {
    const topology = Topology.uniform({ ranks, nodes: 1 });
    const slotsPerRank = (experts + redundant) / ranks;
    for (const [name, policy] of variants()) {
      const changes = simulate(phases, {
        ...{ experts, topology, slotsPerRank, policy },
      }).slice(1);
      const mean = (of: (change: typeof changes[number]) => number): number =>
        changes.reduce((sum, one) => sum + of(one), 0) / changes.length;
      points.push({
        setting: `${ranks} ranks, ${redundant} redundant slots`,
        policy: name,
        moved: Math.max(0.1, mean((one) => one.movedSlotsPerLayer)),
        imbalance: mean((one) => one.mean) - 1,
      });
    }
  }
  return points;
}

const PANEL = { width: 300, height: 280, left: 60, top: 30 };
const MOVED = [0.1, 1, 10, 100, 1000];
const IMBALANCE = [0.0001, 0.001, 0.01, 0.1];
const COLORS: Readonly<Record<string, string>> = {
  quota: "#1f77b4",
  swap: "#2ca02c",
  preserve: "#ff7f0e",
  deepseek: "#d62728",
};

/** Places a value between the ends of a logarithmic axis. */
function place(
  value: number,
  ticks: readonly number[],
  length: number,
): number {
  const [low, high] = [Math.log(ticks[0]!), Math.log(ticks.at(-1)!)];
  const part = (Math.log(value) - low) / (high - low);
  return length * Math.min(1, Math.max(0, part));
}

function draw(points: readonly Point[]): string {
  const settings = [...new Set(points.map(({ setting }) => setting))];
  const width = PANEL.left + settings.length * (PANEL.width + 30);
  const height = PANEL.top + PANEL.height + 50;
  const panels = settings.map((setting, i) => {
    const own = points.filter((point) => point.setting === setting);
    const x = PANEL.left + i * (PANEL.width + 30);
    return `<g transform="translate(${x} ${PANEL.top})">${
      grid(setting, i === 0)
    }${
      [...new Set(own.map(({ policy }) => policy))].map((policy) =>
        line(policy, own.filter((point) => point.policy === policy))
      ).join("")
    }</g>`;
  });
  return `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" ` +
    `height="${height}" viewBox="0 0 ${width} ${height}" ` +
    `font-family="sans-serif" font-size="11"><rect width="100%" ` +
    `height="100%" fill="white"/>${panels.join("")}</svg>\n`;
}

function grid(title: string, labelled: boolean): string {
  const { width, height } = PANEL;
  const columns = MOVED.map((tick) => {
    const x = place(tick, MOVED, width);
    return `<path d="M${x} 0V${height}" stroke="#ddd"/>` +
      `<text x="${x}" y="${height + 16}" text-anchor="middle">${tick}</text>`;
  });
  const rows = IMBALANCE.map((tick) => {
    const y = height - place(tick, IMBALANCE, height);
    const label = labelled
      ? `<text x="-8" y="${y + 4}" text-anchor="end">${1 + tick}</text>`
      : "";
    return `<path d="M0 ${y}H${width}" stroke="#ddd"/>${label}`;
  });
  return `<text x="${width / 2}" y="-10" text-anchor="middle" ` +
    `font-weight="bold">${title}</text>${columns.join("")}${rows.join("")}` +
    `<text x="${width / 2}" y="${height + 34}" text-anchor="middle">` +
    `moved slots per layer and change of workload</text>` +
    (labelled
      ? `<text transform="translate(-46 ${height / 2}) rotate(-90)" ` +
        `text-anchor="middle">mean imbalance</text>`
      : "");
}

function line(policy: string, points: readonly Point[]): string {
  const color = COLORS[policy]!;
  const spots = points.map(({ moved, imbalance }) => ({
    x: place(moved, MOVED, PANEL.width).toFixed(1),
    y: (PANEL.height - place(imbalance, IMBALANCE, PANEL.height)).toFixed(1),
  }));
  const path = spots.map(({ x, y }) => `${x},${y}`).join(" ");
  const { x, y } = spots.at(-1)!;
  return `<polyline points="${path}" fill="none" stroke="${color}" ` +
    `stroke-width="2"/>${
      spots.map((spot) =>
        `<circle cx="${spot.x}" cy="${spot.y}" r="3" fill="${color}"/>`
      ).join("")
    }<text x="${x}" y="${
      Number(y) + (policy === "preserve" ? 16 : -8)
    }" fill="${color}" ` +
    `text-anchor="middle" font-weight="bold">${policy}</text>`;
}

const { phases, experts } = await readPhases(Deno.args);
const target = new URL("policies.svg", import.meta.url);
await Deno.writeTextFile(target, draw(measure(phases, experts)));
