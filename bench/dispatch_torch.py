#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Times on one GPU what PyTorch engines do where eplb launches its dispatch kernel.

Top-k logical expert ids become slots, one replica of each expert's, -1 stays -1, and the tokens of
each logical expert are counted. The choice of a replica is each engine's own:

  random    SGLang's dynamic dispatch: a random number modulo the expert's replicas
  position  vLLM's: the position in the ids modulo the expert's replicas

Both are written here with PyTorch's operations, run one by one and through torch.compile, and
vLLM's also as one Triton kernel, as its newer releases have it. Tables are 64-bit and loads 32-bit,
as in these engines. (They count the tokens of slots, which takes as long.)

A call is timed launched from Python, where the host may be what takes the time, and as part of a
CUDA graph of 20 calls, which is how build/cuda/tests/dispatch_cuda_test times eplb's kernel. Exits with 1 if one of them
cannot be timed, which says why.

    python3 bench/dispatch_torch.py [--tokens 4096] [--json]
"""

import argparse
import json
import statistics
import sys
from dataclasses import asdict, dataclass
from typing import Callable

try:
    import torch
except ImportError as error:
    sys.exit(f"Cannot time PyTorch: {error}")

try:
    import triton
    import triton.language as tl
except ImportError as error:
    triton, no_triton = None, f"{error}"

CALLS = 20  # between two events
BATCHES = 50
BLOCK = 256  # ids of one Triton program


@dataclass
class Tables:
    """Where experts are, and what was counted of them."""

    slots: torch.Tensor  # [experts, max replicas] int64, padded with -1
    replicas: torch.Tensor  # [experts] int64
    loads: torch.Tensor  # [experts] int32


Engine = Callable[[torch.Tensor, Tables], torch.Tensor]


def count(ids: torch.Tensor, real: torch.Tensor, tables: Tables) -> None:
    index = ids.masked_fill(~real, 0).flatten().long()
    tables.loads.scatter_add_(0, index, real.flatten().int())


def random_replica(ids: torch.Tensor, tables: Tables) -> torch.Tensor:
    # Padding is looked up as the last expert, as index -1 means, and put back.
    draw = torch.randint(0, 65536, ids.shape, dtype=torch.int32, device=ids.device)
    slots = tables.slots[ids, draw % tables.replicas[ids]]
    real = ids >= 0
    count(ids, real, tables)
    return slots.masked_fill(~real, -1)


def replica_by_position(ids: torch.Tensor, tables: Tables) -> torch.Tensor:
    index = ids.long()
    position = torch.arange(ids.numel(), device=ids.device).view(ids.shape)
    choice = position % tables.replicas[index]
    slots = tables.slots[index].gather(-1, choice.unsqueeze(-1)).squeeze(-1)
    real = ids >= 0
    count(ids, real, tables)
    return slots.masked_fill(~real, -1).to(ids.dtype)


if triton is not None:

    @triton.jit
    def position_kernel(
        ids,
        slots,
        replicas,
        loads,
        output,
        size,
        EXPERTS: tl.constexpr,
        MAX_REPLICAS: tl.constexpr,
        BLOCK: tl.constexpr,
    ):
        at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        inside = at < size
        expert = tl.load(ids + at, mask=inside, other=-1).to(tl.int64)
        real = (expert >= 0) & (expert < EXPERTS)
        choice = at % tl.load(replicas + expert, mask=real, other=1)
        slot = tl.load(slots + expert * MAX_REPLICAS + choice, mask=real, other=-1)
        tl.store(output + at, slot.to(output.dtype.element_ty), mask=inside)
        tl.atomic_add(loads + expert, 1, mask=real)


def replica_by_position_in_triton(ids: torch.Tensor, tables: Tables) -> torch.Tensor:
    if triton is None:
        raise RuntimeError(no_triton)
    output = torch.empty_like(ids)
    experts, max_replicas = tables.slots.shape
    position_kernel[(triton.cdiv(ids.numel(), BLOCK),)](
        ids,
        tables.slots,
        tables.replicas,
        tables.loads,
        output,
        ids.numel(),
        EXPERTS=experts,
        MAX_REPLICAS=max_replicas,
        BLOCK=BLOCK,
    )
    return output


ENGINES: list[tuple[str, Engine]] = [
    ("SGLang, random", random_replica),
    ("SGLang, random, torch.compile", torch.compile(random_replica)),
    ("vLLM, position", replica_by_position),
    ("vLLM, position, torch.compile", torch.compile(replica_by_position)),
    ("vLLM, position, Triton", replica_by_position_in_triton),
]


@dataclass
class Result:
    """Medians, in microseconds for a call; none where `error` says why."""

    engine: str
    launched_us: float | None = None
    graph_us: float | None = None
    error: str | None = None


def make_tables(experts: int, slots: int) -> tuple[Tables, torch.Tensor]:
    """The redundant slots hold the first experts, in turn. Also returns the expert of each slot."""
    physical_to_logical = torch.arange(slots) % experts
    table = torch.full((experts, slots - experts + 1), -1)
    replicas = torch.zeros(experts, dtype=torch.int64)
    for slot, expert in enumerate(physical_to_logical.tolist()):
        table[expert, replicas[expert]] = slot
        replicas[expert] += 1
    loads = torch.zeros(experts, dtype=torch.int32)
    tables = Tables(table.cuda(), replicas.cuda(), loads.cuda())
    return tables, physical_to_logical.cuda()


def check(engine: Engine, ids: torch.Tensor, tables: Tables, experts_of: torch.Tensor) -> None:
    """Fails unless every id goes to a slot of its expert, padding to -1, and all are counted."""
    padded = ids.clone()
    padded[-ids.shape[0] // 8 :] = -1
    tables.loads.zero_()
    slots = engine(padded, tables)
    experts = torch.where(slots >= 0, experts_of[slots.long()], -1)
    expected = torch.bincount(padded[padded >= 0].long(), minlength=tables.loads.numel())
    if not torch.equal(experts, padded.long()):
        raise AssertionError("ids went to slots of other experts")
    if not torch.equal(tables.loads.long(), expected):
        raise AssertionError("loads are not the numbers of ids")


def median_us(launch_calls: Callable[[], None]) -> float:
    """Of a call, where `launch_calls` launches CALLS of them."""
    for _ in range(3):
        launch_calls()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(BATCHES + 1)]
    events[0].record()
    for event in events[1:]:
        launch_calls()
        event.record()
    torch.cuda.synchronize()
    times = [start.elapsed_time(end) for start, end in zip(events, events[1:])]
    return 1e3 * statistics.median(times) / CALLS


def measure(
    name: str, engine: Engine, ids: torch.Tensor, tables: Tables, experts_of: torch.Tensor
) -> Result:
    result = Result(name)

    def launch_calls() -> None:
        for _ in range(CALLS):
            engine(ids, tables)

    try:
        check(engine, ids, tables, experts_of)
        result.launched_us = median_us(launch_calls)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            launch_calls()
        result.graph_us = median_us(graph.replay)
    except Exception as error:  # of a compiler, say: the others are timed all the same
        result.error = f"{type(error).__name__}: {error}".strip().splitlines()[0]
    return result


def show(results: list[Result], title: str) -> None:
    print(title)
    print(f"{'us per call, median':32}{'launched':>10}{'CUDA graph':>12}")
    for result in results:
        cells = [result.launched_us, result.graph_us]
        launched, graph = ["-" if cell is None else f"{cell:.2f}" for cell in cells]
        print(f"{result.engine:32}{launched:>10}{graph:>12}")
        if result.error is not None:
            print(f"  {result.error}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--top-k", type=int, default=8)
    parser.add_argument("--experts", type=int, default=256)
    parser.add_argument("--slots", type=int, default=288)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args()
    if not 1 <= options.top_k <= options.experts <= options.slots or options.tokens < 8:
        parser.error("needs 1 <= top-k <= experts <= slots, and at least 8 tokens")
    if not torch.cuda.is_available():
        sys.exit("Cannot time PyTorch: there is no GPU")

    torch.manual_seed(1)
    tables, experts_of = make_tables(options.experts, options.slots)
    scores = torch.rand(options.tokens, options.experts, device="cuda")
    ids = scores.topk(options.top_k).indices.int().contiguous()
    results = [measure(name, engine, ids, tables, experts_of) for name, engine in ENGINES]

    device = torch.cuda.get_device_name()
    if options.json:
        sizes = {"tokens": options.tokens, "top_k": options.top_k}
        sizes |= {"experts": options.experts, "slots": options.slots}
        engines = [asdict(result) for result in results]
        machine = {"device": device, "torch": torch.__version__}
        print(json.dumps({**machine, **sizes, "engines": engines}, indent=2))
    else:
        show(
            results,
            f"{options.tokens} tokens x top {options.top_k} of {options.experts} experts over "
            f"{options.slots} slots, {device}, PyTorch {torch.__version__}",
        )
    if any(result.error is not None for result in results):
        sys.exit(1)


if __name__ == "__main__":
    main()
