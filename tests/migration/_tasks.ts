// Random programs for property tests.
import fc from "fast-check";
import { directSlots } from "../../lib/migration/direct.ts";
import { type MigrationPlan, planMigration } from "../../lib/migration/plan.ts";
import {
  compileProgram,
  type CompileProgramOptions,
  stagingCellsNeeded,
} from "../../lib/migration/program.ts";
import type { Placement } from "../../lib/placement.ts";
import { SeededRandom } from "../../lib/random.ts";
import {
  type ParsedProgram,
  parseProgram,
  runPrograms,
} from "./_rendezvous.ts";
import { type Scenario, type ScenarioBounds, scenarios } from "./_scenarios.ts";

/** A scenario, its plan, and bounds for its program, from tight ones to none. */
export interface Task {
  readonly scenario: Scenario;
  readonly plan: MigrationPlan;
  readonly options: Required<Omit<CompileProgramOptions, "ranks">>;
  readonly random: SeededRandom;
}

/** Tasks whose scenarios are within the given bounds. */
export function tasks(bounds: ScenarioBounds): fc.Arbitrary<Task> {
  return fc.noBias(fc.record({
    scenario: scenarios(bounds),
    sources: fc.constantFrom("balanced" as const, "chunked" as const),
    spare: fc.constantFrom(0, 1, 7, 100),
    maxOpsPerGroup: fc.constantFrom(1, 2, 3, 5, 8, 64),
    opsPerExpert: fc.constantFrom(1, 1, 2, 6),
    maxLayersPerBatch: fc.constantFrom(1, 2, 100),
    writeDirectly: fc.boolean(),
    seed: fc.nat(),
  })).map(({ scenario, sources, spare, writeDirectly, seed, ...rest }) => {
    const { from, to, topology } = scenario;
    const plan = planMigration(from, to, { topology, sources });
    const direct = writeDirectly
      ? directSlots(plan, from)
      : new Uint8Array(plan.cases.length);
    const stagingCells = Math.max(1, stagingCellsNeeded(plan, direct)) + spare;
    const options = { stagingCells, direct, ...rest };
    return { scenario, plan, options, random: new SeededRandom(seed) };
  });
}

/** The most transfers that the task lets a rank start together. */
export function transfersPerGroup({ options }: Task): number {
  return Math.max(1, Math.floor(options.maxOpsPerGroup / options.opsPerExpert));
}

/** Each rank's own program. */
export function rankPrograms({ plan, options }: Task): ParsedProgram[] {
  return Array.from(
    { length: plan.ranks },
    (_, rank) =>
      parseProgram(compileProgram(plan, { ...options, ranks: [rank] }).words),
  );
}

function rows(placement: Placement): number[][] {
  return placement.toJSON().physical_to_logical_map;
}

/** Runs the programs with steps in random order; returns what each slot holds in the end. */
export function run(
  task: Task,
  programs: readonly ParsedProgram[],
): number[][] {
  return runPrograms({
    programs,
    memory: rows(task.scenario.from),
    stagingCells: task.options.stagingCells,
    transfersPerGroup: transfersPerGroup(task),
    choose: (steps) => task.random.below(steps),
  });
}

/** What each slot holds after a migration; slots that become empty keep what they held. */
export function expectedMemory({ from, to }: Scenario): number[][] {
  const old = rows(from);
  return rows(to).map((row, layer) =>
    row.map((expert, slot) => expert < 0 ? old[layer]![slot]! : expert)
  );
}
