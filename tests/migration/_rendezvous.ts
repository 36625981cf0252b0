// A model checker for programs: runs every rank's own program as the native engine would, in any
// order that its rules allow, and throws where a rule is broken.
//
// - The operations of a rank with the same batch and round form a group. They start together; the
//   group ends when each of its sends and receives has met its counterpart. Then the next one starts.
// - Messages from one rank to another meet in the order in which both ends started them.
// - A batch is committed, on every rank, once every rank has finished its groups of that batch.
//
// It reads the words as cpp/include/eplb.h describes them and shares no code with the compiler.

const [SEND, RECEIVE, COPY, DUPLICATE] = [1, 2, 3, 4] as const;
const DIRECT = 0x100;

/** One operation, as a rank's program has it. */
export interface Operation {
  batch: number;
  round: number;
  rank: number;
  code: number;
  /** Whether the slot is written at once, and not when the batch is committed. */
  direct: boolean;
  layer: number;
  slot: number;
  peer: number;
  peerSlot: number;
}

/** A program, taken apart. */
export interface ParsedProgram {
  readonly layers: number;
  readonly slots: number;
  readonly world: number;
  readonly batches: readonly (readonly [number, number])[];
  operations: Operation[];
}

/** What the checker runs. */
export interface RendezvousInput {
  /** Each rank's own program. */
  readonly programs: readonly ParsedProgram[];
  /** What each slot holds at first, [layers][world * slots]. */
  readonly memory: readonly (readonly number[])[];
  /** Experts that a rank can stage in one batch. */
  readonly stagingCells: number;
  /** The most sends and receives in a group. */
  readonly transfersPerGroup: number;
  /** Picks one of so many possible next steps. */
  readonly choose: (steps: number) => number;
}

/** A rule that a program broke. */
export class RuleError extends Error {}

function rule(
  holds: boolean,
  what: string,
  operation?: Operation,
): asserts holds {
  if (!holds) {
    const where = operation === undefined
      ? ""
      : ` ${JSON.stringify(operation)}`;
    throw new RuleError(what + where);
  }
}

/** Takes the words of a program apart and checks its layout. */
export function parseProgram(words: Int32Array): ParsedProgram {
  const [magic, version, batchCount, count, layers, slots, world, zero] = words;
  rule(magic === 0x424c5045 && version === 1 && zero === 0, "header");
  rule(words.length === 8 + 2 * batchCount! + 8 * count!, "length");
  const batches = Array.from({ length: batchCount! }, (_, batch) => {
    const [first, end] = words.subarray(8 + 2 * batch);
    return [first!, end!] as const;
  });
  batches.forEach(([first, end], batch) => {
    rule(
      first === (batch === 0 ? 0 : batches[batch - 1]![1]),
      "batches leave no gap",
    );
    rule(end > first && end <= layers!, "batches have layers");
  });
  if (batches.length > 0) {
    rule(batches.at(-1)![1] === layers, "batches cover all layers");
  }
  const operations = Array.from({ length: count! }, (_, i): Operation => {
    const at = 8 + 2 * batchCount! + 8 * i;
    const [batch, round, rank, flagged, layer, slot, peer, peerSlot] = words
      .subarray(at, at + 8) as unknown as [
        number,
        number,
        number,
        number,
        number,
        number,
        number,
        number,
      ];
    const [code, direct] = [flagged & ~DIRECT, (flagged & DIRECT) !== 0];
    return { batch, round, rank, code, direct, layer, slot, peer, peerSlot };
  });
  const program = {
    layers: layers!,
    slots: slots!,
    world: world!,
    batches,
    operations,
  };
  operations.forEach((operation, i) =>
    checkOperation(program, operation, operations[i - 1])
  );
  return program;
}

function checkOperation(
  program: ParsedProgram,
  operation: Operation,
  before?: Operation,
): void {
  const { layers, slots, world, batches } = program;
  const { batch, round, rank, code, layer, slot, peer, peerSlot } = operation;
  const within = (value: number, count: number) => value >= 0 && value < count;
  rule(
    within(batch, batches.length) && round >= 0 && within(rank, world) &&
      within(layer, layers) &&
      within(slot, slots) && within(peer, world) && within(peerSlot, slots),
    "fields are in range",
    operation,
  );
  const [first, end] = batches[batch]!;
  rule(layer >= first && layer < end, "the layer is in the batch", operation);
  const remote = code === SEND || code === RECEIVE;
  rule(
    remote || code === COPY || code === DUPLICATE,
    "the code is known",
    operation,
  );
  rule(
    !operation.direct || code === RECEIVE || code === COPY,
    "only arrivals are direct",
    operation,
  );
  rule(
    (peer !== rank) === remote,
    "transfers have another rank as peer",
    operation,
  );
  if (before === undefined) return;
  const key = (o: Operation) => (o.batch * 1e6 + o.round) * 1e6 + o.rank;
  rule(key(before) <= key(operation), "operations are sorted", operation);
}

// What one rank has done so far.
interface RankState {
  readonly memory: number[][];
  readonly groups: Operation[][][];
  batch: number;
  group: number;
  // Operations of the current group that have not met their counterpart.
  waiting: number;
  started: boolean;
  staged: Map<string, number>;
}

/** Runs the programs to their end; returns what each slot holds then, [layers][world * slots]. */
export function runPrograms(input: RendezvousInput): number[][] {
  const { programs, memory, choose } = input;
  const world = programs.length;
  const states = programs.map((program, rank) =>
    startState(program, { rank, memory })
  );
  const batchCount = programs[0]!.batches.length;
  // Operations of each ordered pair of ranks that have started and not met, in order.
  const sends = Array.from({ length: world * world }, (): Operation[] => []);
  const receives = Array.from({ length: world * world }, (): Operation[] => []);

  function steps(): (() => void)[] {
    const possible: (() => void)[] = [];
    states.forEach((state, rank) => {
      const groups = state.groups[state.batch];
      if (groups === undefined || state.group === groups.length) return;
      if (!state.started) {
        possible.push(() => startGroup(state, groups[state.group]!));
      } else if (state.waiting === 0) {
        possible.push(() => {
          state.group++;
          state.started = false;
        });
      }
      for (let peer = 0; peer < world; peer++) {
        const pair = rank * world + peer;
        if (sends[pair]!.length > 0 && receives[pair]!.length > 0) {
          possible.push(() => meet(pair));
        }
      }
    });
    return possible;
  }

  function startGroup(state: RankState, group: readonly Operation[]): void {
    const transfers = group.filter(({ code }) =>
      code === SEND || code === RECEIVE
    );
    rule(
      transfers.length <= input.transfersPerGroup,
      "groups are bounded",
      group[0],
    );
    state.started = true;
    state.waiting = transfers.length;
    for (const operation of group) {
      const { rank, code, peer, layer, peerSlot } = operation;
      if (code === SEND) sends[rank * world + peer]!.push(operation);
      if (code === RECEIVE) receives[peer * world + rank]!.push(operation);
      if (code === COPY) {
        stage(state, operation, state.memory[layer]![peerSlot]!);
      }
    }
  }

  function meet(pair: number): void {
    const [send, receive] = [sends[pair]!.shift()!, receives[pair]!.shift()!];
    rule(
      send.batch === receive.batch && send.round === receive.round &&
        send.layer === receive.layer && send.slot === receive.peerSlot &&
        send.peerSlot === receive.slot,
      `a send meets its receive ${JSON.stringify(send)}`,
      receive,
    );
    const [from, to] = [states[send.rank]!, states[receive.rank]!];
    stage(to, receive, from.memory[send.layer]![send.slot]!);
    from.waiting--;
    to.waiting--;
  }

  function stage(
    state: RankState,
    { layer, slot, direct }: Operation,
    content: number,
  ): void {
    if (direct) {
      state.memory[layer]![slot] = content;
      return;
    }
    rule(
      !state.staged.has(`${layer} ${slot}`),
      `slot ${slot} of layer ${layer} is written once`,
    );
    state.staged.set(`${layer} ${slot}`, content);
    rule(state.staged.size <= input.stagingCells, "staging cells suffice");
  }

  for (let batch = 0; batch < batchCount; batch++) {
    for (let possible = steps(); possible.length > 0; possible = steps()) {
      possible[choose(possible.length)]!();
    }
    states.forEach((state, rank) => {
      rule(
        state.group === state.groups[batch]!.length,
        `no deadlock, rank ${rank} waits`,
      );
    });
    for (const queue of [...sends, ...receives]) {
      rule(queue.length === 0, "no message is left over");
    }
    for (const state of states) commit(state, programs[0]!.batches[batch]!);
  }
  return memory.map((_, layer) =>
    states.flatMap((state) => state.memory[layer]!)
  );
}

function startState(
  program: ParsedProgram,
  { rank, memory }: { rank: number; memory: RendezvousInput["memory"] },
): RankState {
  const { slots, batches, operations } = program;
  const groups = batches.map((_, batch) => {
    const rounds = Map.groupBy(
      operations.filter((operation) => operation.batch === batch),
      ({ round }) => round,
    );
    return [...rounds.values()];
  });
  for (const operation of operations) {
    rule(operation.rank === rank, "operations are local", operation);
  }
  return {
    memory: memory.map((row) => row.slice(rank * slots, (rank + 1) * slots)),
    groups,
    batch: 0,
    group: 0,
    waiting: 0,
    started: false,
    staged: new Map(),
  };
}

// Puts what is staged into the slots, duplicates included.
function commit(
  state: RankState,
  [first, end]: readonly [number, number],
): void {
  const written = new Map(state.staged);
  for (const operation of state.groups[state.batch]!.flat()) {
    const { code, layer, slot, peerSlot } = operation;
    if (code !== DUPLICATE) continue;
    const content = state.staged.get(`${layer} ${peerSlot}`);
    rule(
      content !== undefined,
      "duplicates have something to share",
      operation,
    );
    rule(!written.has(`${layer} ${slot}`), "slots are written once", operation);
    written.set(`${layer} ${slot}`, content);
  }
  for (const [key, content] of written) {
    const [layer, slot] = key.split(" ").map(Number) as [number, number];
    rule(layer >= first && layer < end, "a batch writes its own layers");
    state.memory[layer]![slot] = content;
  }
  state.staged = new Map();
  state.batch++;
  state.group = 0;
}
