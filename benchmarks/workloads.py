"""What is measured: each workload gives a contender a job, times it, and checks that the work was done.

A contender is a module of `contenders/`. It makes of a job something that can be run again and again:

- ``chain(job)``: ``job.size`` steps, one after the other, each given what the last one has returned; the run
  returns the last value. ``block(job)``: a step for each of ``range(job.size)`` beside each other, at most
  ``job.width`` at once; the run returns all results. ``threads(job)``: the same with bodies that block.
- With ``job.database`` each step's result is on the disk before the run ends, and every run is a new one.
- What it has none of it names in ``UNSUPPORTED``, with the reason.
"""

from __future__ import annotations

import asyncio
import gc
import math
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Any

#: Where a round lasts longer than this (seconds), its process does no second one.
SLOW_ROUND = 0.8

#: Seconds of one body of `wait`, and of one of `threads`.
NAP = 0.02
BLOCKING = 0.05

Measures = dict[str, float]
Once = Callable[[], Awaitable[Any]]


async def noop(i: int) -> int:
    return i + 1


@dataclass(frozen=True)
class Job:
    """What a contender is asked to do."""

    size: int
    body: Callable[[int], Any] = noop
    width: int | None = None
    database: Path | None = None
    stack: AsyncExitStack = field(default_factory=AsyncExitStack)


def throttled(job: Job) -> Callable[[int], Awaitable[int]]:
    """The body of a contender that has no width: behind a semaphore, which is what its users write."""
    if job.width is None or job.width >= job.size:
        return job.body  # type: ignore[no-any-return]
    room = asyncio.Semaphore(job.width)

    async def body(i: int) -> int:
        async with room:
            return int(await job.body(i))

    return body


@dataclass(frozen=True)
class Setting:
    """How much of a workload a process measures: a directory of its own, seconds for which to repeat it."""

    size: int
    folder: Path
    budget: float
    stack: AsyncExitStack

    def job(self, *, durable: bool = False, **options: Any) -> Job:
        database = self.folder / "runs.db" if durable else None
        return replace(Job(self.size, database=database, stack=self.stack), **options)


async def rounds(once: Once, check: Callable[[Any], None], budget: float) -> float:
    """Seconds of a round: the median of those that fit into the budget.

    The first one warms up, and counts only when it takes so long that this cannot matter.
    """
    found: list[float] = []
    while len(found) < 2 or sum(found[1:]) < budget:
        start = time.perf_counter()
        result = await once()
        found.append(time.perf_counter() - start)
        check(result)
        if found[0] > SLOW_ROUND:
            break
    return median(found[1:] or found)


def is_last(size: int) -> Callable[[Any], None]:
    def check(result: Any) -> None:
        assert result == size, f"the chain of {size} gave {result!r}"

    return check


def are_all(size: int) -> Callable[[Any], None]:
    def check(results: Iterable[int]) -> None:
        assert sorted(results) == list(range(1, size + 1)), f"results of {size} branches are wrong"

    return check


# --- The workloads ------------------------------------------------------------------------------------------


async def chain(contender: ModuleType, setting: Setting, *, durable: bool = False) -> Measures:
    once = await contender.chain(setting.job(durable=durable))
    return {"us": await rounds(once, is_last(setting.size), setting.budget) / setting.size * 1e6}


async def fanout(contender: ModuleType, setting: Setting, *, durable: bool = False) -> Measures:
    once = await contender.block(setting.job(durable=durable))
    return {"us": await rounds(once, are_all(setting.size), setting.budget) / setting.size * 1e6}


async def durable_chain(contender: ModuleType, setting: Setting) -> Measures:
    return await chain(contender, setting, durable=True)


async def durable_fanout(contender: ModuleType, setting: Setting) -> Measures:
    return await fanout(contender, setting, durable=True)


class Flight:
    """Bodies that wait, and say how many of them did so at once."""

    now = most = 0
    lock = threading.Lock()


async def nap(i: int) -> int:
    Flight.now += 1
    Flight.most = max(Flight.most, Flight.now)
    await asyncio.sleep(NAP)
    Flight.now -= 1
    return i + 1


def block_a_thread(i: int) -> int:
    with Flight.lock:
        Flight.now += 1
        Flight.most = max(Flight.most, Flight.now)
    time.sleep(BLOCKING)
    with Flight.lock:
        Flight.now -= 1
    return i + 1


def efficiency(took: float, size: int, width: int, seconds: float) -> Measures:
    """Of the time that it took, the part in which the work itself could have been done."""
    assert Flight.most <= width, f"{Flight.most} ran at once where {width} may"
    return {"efficiency": math.ceil(size / width) * seconds / took, "at_once": Flight.most}


async def wait(contender: ModuleType, setting: Setting) -> Measures:
    width = 100
    durable = getattr(contender, "ALWAYS_DURABLE", False)
    once = await contender.block(setting.job(body=nap, width=width, durable=durable))
    took = await rounds(once, are_all(setting.size), setting.budget)
    return efficiency(took, setting.size, width, NAP)


async def threads(contender: ModuleType, setting: Setting) -> Measures:
    width = 32
    durable = getattr(contender, "ALWAYS_DURABLE", False)
    once = await contender.threads(setting.job(body=block_a_thread, width=width, durable=durable))
    lags: list[float] = []

    async def watched() -> Any:
        late = [0.0]
        watch = asyncio.create_task(_watch(late))
        try:
            return await once()
        finally:
            watch.cancel()
            lags.append(max(late))

    took = await rounds(watched, are_all(setting.size), setting.budget)
    return {
        **efficiency(took, setting.size, width, BLOCKING),
        "lag_ms": median(lags[1:] or lags) * 1000,
    }


async def _watch(late: list[float]) -> None:
    """By how many seconds the loop is late, again and again."""
    while True:
        due = time.perf_counter() + 0.001
        await asyncio.sleep(0.001)
        late.append(time.perf_counter() - due)


class Gate:
    """Where branches wait; `full` when as many as are expected do."""

    def __init__(self, expected: int) -> None:
        self.open, self.full = asyncio.Event(), asyncio.Event()
        self._missing = expected

    async def wait(self, i: int) -> int:
        self._missing -= 1
        if not self._missing:
            self.full.set()
        await self.open.wait()
        return i + 1


def resident() -> int:
    """Bytes of memory of this process."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * resource.getpagesize()
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


async def memory(contender: ModuleType, setting: Setting) -> Measures:
    """Bytes for each branch while all wait; of a pool of workers, while its workers do and the items wait."""
    workers = min(setting.size, getattr(contender, "WORKERS", setting.size))
    few = Gate(1)
    few.open.set()
    warm_up = await contender.block(setting.job(size=10, body=few.wait, width=10))
    are_all(10)(await warm_up())  # what is imported and opened once is no branch's
    gate = Gate(workers)
    once = await contender.block(setting.job(body=gate.wait, width=workers))
    gc.collect()
    before = resident()
    run = asyncio.ensure_future(once())
    await asyncio.wait(
        {run, waiting := asyncio.ensure_future(gate.full.wait())}, return_when="FIRST_COMPLETED"
    )
    assert waiting.done(), run.exception()
    gc.collect()
    held = resident() - before
    gate.open.set()
    are_all(setting.size)(await run)
    return {"bytes": held / setting.size, "mb": held / 1e6}


async def runs(contender: ModuleType, setting: Setting) -> Measures:
    """Three steps a run, one run after the other."""
    once = await contender.chain(setting.job(size=3))

    async def many() -> int:
        last = 3
        for _ in range(setting.size):
            last = await once()
            if last != 3:
                break
        return last

    took = await rounds(many, is_last(3), setting.budget)
    return {"per_second": setting.size / took}


async def durable_runs(contender: ModuleType, setting: Setting) -> Measures:
    """Three steps a run, all runs at once, so that those who group commits can share them."""
    once = await contender.chain(setting.job(size=3, durable=True))

    async def many() -> list[int]:
        return list(await asyncio.gather(*[once() for _ in range(setting.size)]))

    def check(lasts: list[int]) -> None:
        assert lasts == [3] * setting.size

    return {"per_second": setting.size / await rounds(many, check, setting.budget)}


async def start(contender: ModuleType, setting: Setting) -> Measures:
    """A whole process that imports what a program of this contender begins with.

    All is compiled, as what pip has installed is, also where Python is told to keep no compiled files.
    """
    kept = {"PYTHONPYCACHEPREFIX": str(setting.folder / "compiled"), "PYTHONDONTWRITEBYTECODE": ""}
    environment = {**os.environ, **kept}

    def once() -> float:
        begun = time.perf_counter()
        subprocess.run(  # noqa: S603 - our own line
            [sys.executable, "-c", contender.IMPORT], check=True, env=environment
        )
        return time.perf_counter() - begun

    once()
    return {"ms": median(once() for _ in range(5)) * 1000}


async def resume(contender: ModuleType, setting: Setting) -> Measures:
    """A run of which all calls are recorded and that did not come to its end, in a new store object."""
    return {"us": await contender.resume(setting.job(durable=True)) / setting.size * 1e6}


# --- The table ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Workload:
    """One row of the table: its measure, at which sizes, and the contenders that are its limit."""

    name: str
    title: str
    measure: Callable[[ModuleType, Setting], Coroutine[Any, Any, Measures]]
    unit: str
    needs: str
    sizes: tuple[int, ...] = (1_000,)
    quick: tuple[int, ...] = ()
    limits: tuple[str, ...] = ("asyncio",)
    main: str = "us"
    more_is_better: bool = False
    is_durable: bool = False

    def sizes_for(self, *, quick: bool) -> tuple[int, ...]:
        return (self.quick or self.sizes) if quick else self.sizes


GROWTH = (10, 1_000, 10_000, 100_000)

WORKLOADS = (
    Workload("chain", "chain of no-op async steps", chain, "µs a step", "chain", GROWTH, (10, 100)),
    Workload(
        "fanout",
        "fan-out and join of no-op async branches",
        fanout,
        "µs a branch",
        "block",
        GROWTH,
        (10, 100),
    ),
    Workload(
        "wait",
        "branches of 20 ms, 100 at once: efficiency",
        wait,
        "of the time",
        "block",
        (2_000,),
        (200,),
        main="efficiency",
        more_is_better=True,
    ),
    Workload(
        "threads",
        "sync bodies of 50 ms on 32 threads: efficiency",
        threads,
        "of the time",
        "threads",
        (200,),
        (64,),
        main="efficiency",
        more_is_better=True,
    ),
    Workload(
        "durable-fanout",
        "durable fan-out on SQLite, FULL (sqlite: grouped commits)",
        durable_fanout,
        "µs a branch",
        "block",
        (1_000, 10_000),
        (50,),
        limits=("sqlite", "sqlite, one each"),
        is_durable=True,
    ),
    Workload(
        "durable-chain",
        "durable chain on SQLite, FULL (sqlite: one commit a step)",
        durable_chain,
        "µs a step",
        "chain",
        (200,),
        (20,),
        limits=("sqlite",),
        is_durable=True,
    ),
    Workload(
        "memory",
        "memory of a branch that waits",
        memory,
        "bytes a branch",
        "block",
        (10_000,),
        (100,),
        main="bytes",
    ),
    Workload(
        "runs",
        "small runs of three steps, one after the other",
        runs,
        "runs a second",
        "chain",
        (1_000,),
        (20,),
        main="per_second",
        more_is_better=True,
    ),
    Workload(
        "durable-runs",
        "small durable runs of three steps, all at once, SQLite",
        durable_runs,
        "runs a second",
        "chain",
        (1_000,),
        (10,),
        limits=("sqlite",),
        main="per_second",
        more_is_better=True,
        is_durable=True,
    ),
    Workload(
        "import", "import, the whole process", start, "ms", "IMPORT", (1,), main="ms", limits=("python",)
    ),
    Workload(
        "resume",
        "resume of recorded calls from SQLite",
        resume,
        "µs a call",
        "resume",
        (1_000, 100_000),
        (100,),
        limits=(),
        is_durable=True,
    ),
)

BY_NAME = {workload.name: workload for workload in WORKLOADS}


def why_not(contender: ModuleType, workload: Workload) -> str | None:
    """Why a contender is not measured in a workload; None when it is."""
    unsupported: dict[str, str] = getattr(contender, "UNSUPPORTED", {})
    if reason := unsupported.get(workload.name):
        return reason
    if workload.is_durable and (reason := unsupported.get("durable")):
        return reason
    if getattr(contender, "ALWAYS_DURABLE", False) and workload.name in {"chain", "fanout", "runs", "memory"}:
        return "it records every step: see the durable rows"
    if not hasattr(contender, workload.needs):
        return unsupported.get(workload.needs, "no part of it")
    return None


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
