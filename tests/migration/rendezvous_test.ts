// The model checker is a test itself, so here it is shown to catch programs that are broken.
import { assert, assertEquals, assertThrows } from "@std/assert";
import fc from "fast-check";
import {
  type Operation,
  type ParsedProgram,
  RuleError,
  runPrograms,
} from "./_rendezvous.ts";
import {
  expectedMemory,
  rankPrograms,
  run,
  type Task,
  tasks,
  transfersPerGroup,
} from "./_tasks.ts";

const [SEND, RECEIVE, COPY, DUPLICATE] = [1, 2, 3, 4];

// Breaks every program that `mutate` can break, and expects that each is caught.
function assertCaught(
  mutate: (task: Task, programs: ParsedProgram[]) => boolean,
): void {
  let broken = 0;
  fc.assert(
    fc.property(
      tasks({ layers: [1, 4], ranks: [2, 6], slotsPerRank: [2, 6] }),
      (task) => {
        const programs = rankPrograms(task);
        if (!mutate(task, programs)) return;
        broken++;
        let memory: number[][];
        try {
          memory = run(task, programs);
        } catch (error) {
          assert(error instanceof RuleError, `${error}`);
          return;
        }
        assert(`${memory}` !== `${expectedMemory(task.scenario)}`);
      },
    ),
    { numRuns: 500 },
  );
  assert(broken > 50, `only ${broken} programs were broken`);
}

// One of the operations of all ranks that fit, with the list it is in.
function pick(
  { random }: Task,
  programs: readonly ParsedProgram[],
  fits: (operation: Operation) => boolean,
): { list: Operation[]; at: number; operation: Operation } | undefined {
  const found = programs.flatMap(({ operations: list }) =>
    list.flatMap((operation, at) =>
      fits(operation) ? [{ list, at, operation }] : []
    )
  );
  return found.length === 0 ? undefined : found[random.below(found.length)];
}

for (
  const [name, code] of Object.entries({ SEND, RECEIVE, COPY, DUPLICATE })
) {
  Deno.test(`runPrograms() catches a dropped ${name}`, () => {
    assertCaught((task, programs) => {
      const victim = pick(
        task,
        programs,
        (operation) => operation.code === code,
      );
      victim?.list.splice(victim.at, 1);
      return victim !== undefined;
    });
  });
}

Deno.test("runPrograms() catches two transfers of a pair of ranks in swapped order", () => {
  assertCaught((task, programs) => {
    const twin = (a: Operation, b: Operation) =>
      a !== b && a.batch === b.batch && a.round === b.round &&
      a.code === b.code && a.peer === b.peer;
    const victim = pick(
      task,
      programs,
      (operation) =>
        operation.code! <= RECEIVE! &&
        programs[operation.rank]!.operations.some((other) =>
          twin(operation, other)
        ),
    );
    if (victim === undefined) return false;
    const { list, at, operation } = victim;
    const other = list.findIndex((candidate) => twin(operation, candidate));
    [list[at], list[other]] = [list[other]!, list[at]!];
    return true;
  });
});

Deno.test("runPrograms() catches a transfer whose ends are in different rounds", () => {
  assertCaught((task, programs) => {
    const victim = pick(
      task,
      programs,
      ({ code }) => code === SEND || code === RECEIVE,
    );
    if (victim === undefined) return false;
    victim.operation.round++;
    victim.list.sort((a, b) => a.batch - b.batch || a.round - b.round);
    return true;
  });
});

Deno.test("runPrograms() catches a transfer of the wrong slot", () => {
  assertCaught((task, programs) => {
    const { from } = task.scenario;
    const content = (layer: number, rank: number, slot: number) =>
      from
        .physicalToLogical[
          layer * from.slots + rank * from.slotsPerRank + slot
        ]!;
    const victim = pick(task, programs, ({ code }) => code === SEND);
    if (victim === undefined) return false;
    const send = victim.operation;
    const receive = programs[send.peer]!.operations.find((other) =>
      other.code === RECEIVE && other.layer === send.layer &&
      other.slot === send.peerSlot
    )!;
    const wrong = (send.slot + 1) % from.slotsPerRank;
    const { direct } = task.options;
    // What a slot holds that is written early depends on when.
    if (direct.includes(1)) return false;
    const [right, got] = [send.slot, wrong].map((slot) =>
      content(send.layer, send.rank, slot)
    );
    send.slot = receive.peerSlot = wrong;
    return right !== got;
  });
});

Deno.test("runPrograms() catches more transfers in a group than allowed", () => {
  assertCaught((task, programs) => {
    const victim = pick(
      task,
      programs,
      ({ code }) => code === SEND || code === RECEIVE,
    );
    if (victim === undefined) return false;
    const { operation } = victim;
    const inGroup = (other: Operation) =>
      other.code! <= RECEIVE! && other.batch === operation.batch &&
      other.round === operation.round;
    const missing = transfersPerGroup(task) + 1 -
      victim.list.filter(inGroup).length;
    victim.list.splice(
      victim.at,
      0,
      ...new Array<Operation>(Math.max(0, missing)).fill(operation),
    );
    return true;
  });
});

Deno.test("runPrograms() catches more staged experts than there are cells", () => {
  assertCaught((task, programs) => {
    const most = Math.max(
      ...programs.flatMap(({ operations, batches }) =>
        batches.map((_, batch) =>
          operations.filter((o) =>
            o.batch === batch && !o.direct &&
            (o.code === RECEIVE || o.code === COPY)
          ).length
        )
      ),
    );
    if (most < 2) return false;
    (task.options as { stagingCells: number }).stagingCells = most - 1;
    return true;
  });
});

Deno.test("runPrograms() catches ranks that wait for each other", () => {
  // Each rank receives in its first group what the other one sends in its second.
  const transfer = { batch: 0, layer: 0, slot: 0, peerSlot: 0, direct: false };
  const programs = [0, 1].map((rank): ParsedProgram => ({
    layers: 1,
    slots: 1,
    world: 2,
    batches: [[0, 1]],
    operations: [
      { ...transfer, round: 0, rank, peer: 1 - rank, code: RECEIVE! },
      { ...transfer, round: 1, rank, peer: 1 - rank, code: SEND! },
    ],
  }));
  assertThrows(
    () =>
      runPrograms({
        programs,
        memory: [[0, 1]],
        stagingCells: 1,
        transfersPerGroup: 64,
        choose: () => 0,
      }),
    RuleError,
    "no deadlock, rank 0 waits",
  );
});

Deno.test("runPrograms() lets sound programs pass and run in many orders", () => {
  let steps = 0;
  fc.assert(
    fc.property(
      tasks({ layers: [1, 4], ranks: [2, 6], slotsPerRank: [2, 6] }),
      (task) => {
        const orders = Array.from({ length: 4 }, () =>
          runPrograms({
            programs: rankPrograms(task),
            memory: task.scenario.from.toJSON().physical_to_logical_map,
            stagingCells: task.options.stagingCells,
            transfersPerGroup: transfersPerGroup(task),
            choose: (possible) => {
              if (possible > 1) steps++;
              return task.random.below(possible);
            },
          }));
        for (const memory of orders) {
          assertEquals(memory, expectedMemory(task.scenario));
        }
      },
    ),
    { numRuns: 200 },
  );
  assert(steps > 5000, `only ${steps} steps had a choice`);
});
