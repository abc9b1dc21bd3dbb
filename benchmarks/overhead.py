"""What Weft costs beside bare asyncio, bare SQLite and a bare thread: `python benchmarks/overhead.py`.

Every figure is the median over fresh processes, each measuring one contender at one size after a warm-up,
with the garbage collector on. The contenders of a section take turns, and a ratio is formed within a turn, so
that a machine which is slow for a while is slow for both sides of it.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import platform
import queue
import resource
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import tracemalloc
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from grouped_sqlite import GroupedSqlite, open_sqlite
from workloads import Gate

ROOT = Path(__file__).resolve().parent.parent

#: Seconds for which a process repeats what it measures (at least one round); --quick makes it less.
BUDGET = 0.12

#: Where a round lasts longer than this (seconds), one a process and three turns must do.
SLOW_ROUND = 0.8

Measures = dict[str, float]
Round = Callable[[], Awaitable[Any]]

# --- What one process measures ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Setting:
    """What a case is told: how many tasks, a directory of its own, and for how long to repeat."""

    size: int
    folder: Path
    budget: float

    @property
    def database(self) -> Path:
        return self.folder / "runs.db"


async def _noop(i: int) -> int:
    return i


def _sync_noop(i: int) -> int:
    return i


async def _timed(once: Round, setting: Setting) -> Measures:
    """Microseconds a task: the median of the rounds that fit into the budget.

    The first round warms up, and counts only when it takes so long that this cannot matter.
    """
    found: list[float] = []
    begun = time.perf_counter()
    while len(found) < 2 or time.perf_counter() - begun < setting.budget:
        start = time.perf_counter()
        await once()
        found.append(time.perf_counter() - start)
        if found[0] > SLOW_ROUND:
            break
    took = median(found[1:] or found)
    return {"us": took / setting.size * 1e6, "round": took}


# Bare asyncio: a task each, which is what a library that can cancel and name its calls cannot do without.


async def asyncio_fanout(setting: Setting) -> Measures:
    async def once() -> None:
        await asyncio.gather(*[asyncio.create_task(_noop(i)) for i in range(setting.size)])

    return await _timed(once, setting)


async def asyncio_chain(setting: Setting) -> Measures:
    async def once() -> None:
        for i in range(setting.size):
            await asyncio.create_task(_noop(i))

    return await _timed(once, setting)


async def sqlite_fanout(setting: Setting) -> Measures:
    store = GroupedSqlite(setting.database)

    async def branch(i: int) -> int:
        value = await _noop(i)
        await store.durable(b"%d" % value)
        return value

    async def once() -> None:
        await asyncio.gather(*[asyncio.create_task(branch(i)) for i in range(setting.size)])

    return await _timed(once, setting)


async def sqlite_chain(setting: Setting) -> Measures:
    db = open_sqlite(setting.database)

    async def once() -> None:
        for i in range(setting.size):
            value = await asyncio.create_task(_noop(i))
            db.execute("INSERT INTO results (value) VALUES (?)", (b"%d" % value,))

    return await _timed(once, setting)


# Weft


def _weft() -> Any:
    import weft  # noqa: PLC0415 - the limits are measured without it

    return weft


def _saver(kind: str, setting: Setting) -> Any:
    if kind == "memory":
        return _weft().InMemorySaver()
    return _weft().SqliteSaver(setting.database) if kind == "sqlite" else None


def _workflows(checkpointer: Any, *, sync: bool = False) -> dict[str, Any]:
    weft = _weft()
    step = weft.task(_sync_noop if sync else _noop)

    @weft.entrypoint(checkpointer=checkpointer)
    async def fanout(n: int) -> int:
        return len(await asyncio.gather(*[step(i) for i in range(n)]))

    @weft.entrypoint(checkpointer=checkpointer)
    async def chain(n: int) -> int:
        for i in range(n):
            await step(i)
        return n

    return {"fanout": fanout, "chain": chain}


def _weft_case(shape: str, kind: str, *, sync: bool = False) -> Case:
    async def measure(setting: Setting) -> Measures:
        saver = _saver(kind, setting)
        workflow = _workflows(saver, sync=sync)[shape]

        async def once() -> None:
            options = {"run_id": uuid.uuid4().hex} if saver is not None else {}
            assert await workflow.ainvoke(setting.size, **options) == setting.size

        return await _timed(once, setting)

    return measure


# Blocks, beside a semaphore of the same width and a task each

WIDTH = 100


async def asyncio_semaphore(setting: Setting) -> Measures:
    async def once() -> None:
        room = asyncio.Semaphore(WIDTH)

        async def branch(i: int) -> int:
            async with room:
                return await _noop(i)

        await asyncio.gather(*[asyncio.create_task(branch(i)) for i in range(setting.size)])

    return await _timed(once, setting)


async def weft_parallel(setting: Setting) -> Measures:
    weft = _weft()
    branches = [weft.node(f"branch {i}")(_noop) for i in range(setting.size)]
    block = weft.parallel(*branches, max_concurrent=WIDTH)

    async def once() -> None:
        assert len(await block.ainvoke(1)) == setting.size

    return await _timed(once, setting)


async def weft_sequence(setting: Setting) -> Measures:
    weft = _weft()
    steps = weft.Sequence(*[weft.node(f"step {i}")(_noop) for i in range(setting.size)])

    async def once() -> None:
        assert await steps.ainvoke(1) == 1

    return await _timed(once, setting)


def _map_case(kind: str, source: Callable[[int], Any]) -> Case:
    async def measure(setting: Setting) -> Measures:
        weft = _weft()
        saver = _saver(kind, setting)
        step = weft.node("noop")(_noop)

        async def once() -> None:
            options = {"run_id": uuid.uuid4().hex, "checkpointer": saver} if saver is not None else {}
            found = await weft.amap(step, source(setting.size), max_concurrent=WIDTH, **options)
            assert len(found) == setting.size

        return await _timed(once, setting)

    return measure


async def weft_map_stream(setting: Setting) -> Measures:
    weft = _weft()
    block = weft.map(weft.node("noop")(_noop), max_concurrent=WIDTH)

    async def once() -> None:
        found = 0
        async for _ in block.astream(i for i in range(setting.size)):
            found += 1
        assert found == setting.size

    return await _timed(once, setting)


# Sync bodies, beside a hop to a thread and back


class Hops:
    """Threads that are given functions through a queue, and settle a future on the loop."""

    def __init__(self, threads: int) -> None:
        self._jobs: queue.SimpleQueue[tuple[asyncio.Future[int], int]] = queue.SimpleQueue()
        self._loop = asyncio.get_running_loop()
        for _ in range(threads):
            threading.Thread(target=self._work, daemon=True).start()

    def __call__(self, i: int) -> asyncio.Future[int]:
        done: asyncio.Future[int] = self._loop.create_future()
        self._jobs.put((done, i))
        return done

    def _work(self) -> None:
        while True:
            done, i = self._jobs.get()
            self._loop.call_soon_threadsafe(done.set_result, _sync_noop(i))


async def hop_fanout(setting: Setting) -> Measures:
    hop = Hops(32)

    async def once() -> None:
        await asyncio.gather(*[hop(i) for i in range(setting.size)])

    return await _timed(once, setting)


async def hop_chain(setting: Setting) -> Measures:
    hop = Hops(1)

    async def once() -> None:
        for i in range(setting.size):
            await hop(i)

    return await _timed(once, setting)


async def weft_sync_body(setting: Setting) -> Measures:
    """Sync code all the way: `invoke`, and `result()` of each task before the next."""
    weft = _weft()
    step = weft.task(_sync_noop)

    @weft.entrypoint()
    def chain(n: int) -> int:
        for i in range(n):
            step(i).result()
        return n

    async def once() -> None:  # blocks this loop; the run has its own
        assert chain.invoke(setting.size) == setting.size

    return await _timed(once, setting)


# Memory of tasks that wait


def _rss() -> int:
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * resource.getpagesize()
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


async def _waiting_memory(
    setting: Setting, begin: Callable[[Gate, int], Coroutine[Any, Any, Any]]
) -> Measures:
    async def held(look: Callable[[], int]) -> float:
        gc.collect()
        before, gate = look(), Gate(setting.size)
        run = asyncio.create_task(begin(gate, setting.size))
        await gate.full.wait()
        gc.collect()
        found = look() - before
        gate.open.set()
        await run
        return found / setting.size

    few = Gate(10)
    few.open.set()
    await begin(few, 10)  # what is imported and opened once is no task's
    measures = {"rss": await held(_rss)}
    tracemalloc.start()
    measures["traced"] = await held(lambda: tracemalloc.get_traced_memory()[0])
    return measures


async def asyncio_memory(setting: Setting) -> Measures:
    async def begin(gate: Gate, n: int) -> None:
        await asyncio.gather(*[asyncio.create_task(gate.wait(i)) for i in range(n)])

    return await _waiting_memory(setting, begin)


def _weft_memory(kind: str) -> Case:
    async def measure(setting: Setting) -> Measures:
        weft = _weft()
        saver = _saver(kind, setting)

        async def begin(gate: Gate, n: int) -> None:
            step = weft.task(gate.wait)

            @weft.entrypoint(checkpointer=saver)
            async def waiting(n: int) -> int:
                return len(await asyncio.gather(*[step(i) for i in range(n)]))

            await waiting.ainvoke(n, run_id=uuid.uuid4().hex if saver is not None else None)

        return await _waiting_memory(setting, begin)

    return measure


# Small runs: three tasks one after the other


async def asyncio_runs(setting: Setting) -> Measures:
    async def run() -> None:
        for i in range(3):
            await asyncio.create_task(_noop(i))

    async def once() -> None:
        for _ in range(setting.size):
            await run()

    return _per_second(await _timed(once, setting))


async def sqlite_runs(setting: Setting) -> Measures:
    """All runs at once, so that they share commits."""
    store = GroupedSqlite(setting.database)

    async def run() -> None:
        for i in range(3):
            await store.durable(b"%d" % await asyncio.create_task(_noop(i)))

    async def once() -> None:
        await asyncio.gather(*[asyncio.create_task(run()) for _ in range(setting.size)])

    return _per_second(await _timed(once, setting))


async def weft_runs(setting: Setting) -> Measures:
    chain = _workflows(None)["chain"]

    async def once() -> None:
        for _ in range(setting.size):
            await chain.ainvoke(3)

    return _per_second(await _timed(once, setting))


async def weft_sqlite_runs(setting: Setting) -> Measures:
    chain = _workflows(_saver("sqlite", setting))["chain"]

    async def once() -> None:
        await asyncio.gather(*[chain.ainvoke(3, run_id=uuid.uuid4().hex) for _ in range(setting.size)])

    return _per_second(await _timed(once, setting))


def _per_second(measures: Measures) -> Measures:
    return {**measures, "per_second": 1e6 / measures["us"]}


# Resuming: all calls are recorded, the run ended before its own end


def _resume_case(shape: str) -> Case:
    async def measure(setting: Setting) -> Measures:
        weft = _weft()
        step = weft.task(_noop)
        unfinished = True

        def end(n: int) -> int:
            if unfinished:
                raise InterruptedError
            return n

        def make() -> Any:
            @weft.entrypoint(checkpointer=weft.SqliteSaver(setting.database))
            async def fanout(n: int) -> int:
                await asyncio.gather(*[step(i) for i in range(n)])
                return end(n)

            @weft.entrypoint(checkpointer=weft.SqliteSaver(setting.database))
            async def chain(n: int) -> int:
                for i in range(n):
                    await step(i)
                return end(n)

            return {"fanout": fanout, "chain": chain}[shape]

        # For the chain "exit" records the same and saves a commit a call; a fan-out has few commits anyway.
        durability = "exit" if shape == "chain" else "sync"
        for run_id in ("warm-up", "run"):
            with suppress(InterruptedError):
                await make().ainvoke(setting.size, run_id=run_id, durability=durability)
        unfinished = False
        await make().ainvoke(None, run_id="warm-up")
        workflow, start = make(), time.perf_counter()
        assert await workflow.ainvoke(None, run_id="run") == setting.size
        took = time.perf_counter() - start
        return {"us": took / setting.size * 1e6, "round": took}

    return measure


# Starting


def _start_case(code: str) -> Case:
    async def measure(setting: Setting) -> Measures:
        def once() -> float:
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True)  # noqa: S603 - our own two lines
            return time.perf_counter() - start

        once()
        return {"ms": median(once() for _ in range(3)) * 1000}

    return measure


Case = Callable[[Setting], Coroutine[Any, Any, Measures]]

# --- What is compared -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Section:
    """Contenders that are measured in turns. The first is a limit that the others are held against."""

    name: str
    title: str
    cases: dict[str, Case]
    limits: tuple[str, ...] = ()
    measures: tuple[str, ...] = ("us",)
    unit: str = "µs a task"
    sizes: Callable[[Sequence[int]], Sequence[int]] = field(default=lambda sizes: sizes)


def _middle(sizes: Sequence[int]) -> Sequence[int]:
    return sizes[1:2] or sizes


def _tasks(shape: str, asyncio_case: Case, sqlite_case: Case) -> dict[str, Case]:
    return {
        "asyncio": asyncio_case,
        "sqlite": sqlite_case,
        "weft": _weft_case(shape, "none"),
        "weft+memory": _weft_case(shape, "memory"),
        "weft+sqlite": _weft_case(shape, "sqlite"),
    }


SECTIONS = (
    Section(
        "fanout",
        "fan-out and gather of no-op async tasks (sqlite: grouped commits, FULL)",
        _tasks("fanout", asyncio_fanout, sqlite_fanout),
        limits=("asyncio", "sqlite"),
    ),
    Section(
        "chain",
        "chain of no-op async tasks (sqlite: one commit each, FULL)",
        _tasks("chain", asyncio_chain, sqlite_chain),
        limits=("asyncio", "sqlite"),
    ),
    Section(
        "blocks",
        f"blocks of no-op async branches, {WIDTH} at once (asyncio: a task each and a semaphore)",
        {
            "asyncio": asyncio_semaphore,
            "weft parallel": weft_parallel,
            "weft map": _map_case("none", lambda n: list(range(n))),
            "weft map, generator": _map_case("none", lambda n: (i for i in range(n))),
            "weft map, stream": weft_map_stream,
            "weft map, sqlite": _map_case("sqlite", lambda n: list(range(n))),
        },
        limits=("asyncio",),
        unit="µs a branch",
    ),
    Section(
        "sequence",
        "sequence of no-op async nodes (asyncio: a task each)",
        {"asyncio": asyncio_chain, "weft": weft_sequence},
        limits=("asyncio",),
        unit="µs a step",
    ),
    Section(
        "sync-fanout",
        "fan-out of no-op sync tasks (hop: 32 threads of one's own)",
        {"hop": hop_fanout, "weft": _weft_case("fanout", "none", sync=True)},
        limits=("hop",),
        sizes=_middle,
    ),
    Section(
        "sync-chain",
        "chain of no-op sync tasks, from an async body and from a sync one (hop: to one thread and back)",
        {"hop": hop_chain, "weft": _weft_case("chain", "none", sync=True), "weft, sync body": weft_sync_body},
        limits=("hop",),
        sizes=_middle,
    ),
    Section(
        "memory",
        "memory of tasks that wait (RSS and tracemalloc)",
        {"asyncio": asyncio_memory, "weft": _weft_memory("none"), "weft+sqlite": _weft_memory("sqlite")},
        limits=("asyncio",),
        measures=("rss", "traced"),
        unit="bytes a task",
        sizes=lambda sizes: sizes[-1:],
    ),
    Section(
        "runs",
        "small runs of three tasks (durable: all at once)",
        {"asyncio": asyncio_runs, "sqlite": sqlite_runs, "weft": weft_runs, "weft+sqlite": weft_sqlite_runs},
        limits=("asyncio", "sqlite"),
        measures=("per_second",),
        unit="runs a second",
        sizes=_middle,
    ),
    Section(
        "resume",
        "resume of recorded calls from SQLite",
        {"fan-out": _resume_case("fanout"), "chain": _resume_case("chain")},
        unit="µs a call",
        sizes=lambda sizes: sizes[1:] or sizes,
    ),
    Section(
        "import",
        "whole process",
        {
            'python -c ""': _start_case(""),
            "import weft": _start_case("import weft"),
            "and what a run needs": _start_case("from weft import SqliteSaver, entrypoint, task"),
        },
        limits=('python -c ""',),
        measures=("ms",),
        unit="ms",
        sizes=lambda _: (1,),
    ),
)


@dataclass(frozen=True)
class Target:
    """What must not be above a number: a ratio to ``limit``, the growth from 1,000 to 10,000, or a figure."""

    section: str
    contender: str
    at_most: float
    limit: str = ""
    sizes: tuple[int, ...] = (1_000, 10_000)
    is_growth: bool = False


# Linear: something quadratic would grow tenfold; bare asyncio itself grows by a third, by caches and gc.
LINEAR = 1.5

TARGETS = (
    Target("fanout", "weft", 3, "asyncio"),
    Target("chain", "weft", 3, "asyncio"),
    Target("fanout", "weft+sqlite", 6, "asyncio"),
    # The disk alone takes forty times what asyncio does: here the limit is a commit for each step.
    Target("chain", "weft+sqlite", 6, "sqlite"),
    *(
        Target(section, contender, LINEAR, is_growth=True)
        for section in ("fanout", "chain")
        for contender in ("weft", "weft+memory", "weft+sqlite")
    ),
    *(
        Target("blocks", contender, 3, "asyncio")
        for contender in ("weft parallel", "weft map", "weft map, generator", "weft map, stream")
    ),
    Target("sequence", "weft", 3, "asyncio"),
    *(Target("blocks", contender, LINEAR, is_growth=True) for contender in ("weft parallel", "weft map")),
    Target("resume", "fan-out", LINEAR, is_growth=True),
    Target("resume", "chain", LINEAR, is_growth=True),
    Target("import", "import weft", 100, sizes=(1,)),
    Target("import", "and what a run needs", 100, sizes=(1,)),
)

# --- Measuring, in turns ----------------------------------------------------------------------------------

# section -> contender -> size -> measure -> one value a turn
Results = dict[str, dict[str, dict[int, dict[str, list[float]]]]]


def measure_all(
    sections: Sequence[Section], sizes: Sequence[int], turns: int, budget: float, disk: Path
) -> Results:
    results: Results = {}
    for section in sections:
        of_section = results[section.name] = {name: {} for name in section.cases}
        for size in section.sizes(sizes):
            enough: set[str] = set()
            for turn in range(turns):
                for contender in section.cases:
                    if contender in enough:
                        continue
                    measures = _in_fresh_process(section.name, contender, size, budget, disk)
                    if turn >= 2 and measures.get("round", 0) > SLOW_ROUND:
                        enough.add(contender)
                    found = of_section[contender].setdefault(size, {})
                    for name in section.measures:
                        found.setdefault(name, []).append(measures[name])
        print("\n".join(_table(section, of_section)), flush=True)
    return results


def _in_fresh_process(section: str, contender: str, size: int, budget: float, disk: Path) -> Measures:
    folder = Path(tempfile.mkdtemp(dir=disk))
    command = [sys.executable, __file__, "--case", section, contender, str(size), str(folder), str(budget)]
    environment = {"PYTHONPATH": str(ROOT / "src"), **os.environ}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)  # noqa: S603 - this file
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if done.returncode:
        raise SystemExit(f"{section} {contender} {size} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def run_case(section: str, contender: str, size: str, folder: str, budget: str) -> None:
    case = next(s for s in SECTIONS if s.name == section).cases[contender]
    measures = asyncio.run(case(Setting(int(size), Path(folder), float(budget))))
    print(json.dumps(measures), flush=True)
    os._exit(0)  # the threads of some limits never end


# --- Showing ----------------------------------------------------------------------------------------------


def ratio(results: Results, section: str, contender: str, limit: str, size: int, measure: str) -> float:
    """The median of the ratios within each turn; how many times more it costs, also for rates."""
    of_section = results[section]
    pairs = zip(of_section[contender][size][measure], of_section[limit][size][measure], strict=False)
    if measure == "per_second":
        return median(theirs / ours for ours, theirs in pairs)
    return median(ours / theirs if theirs else float("nan") for ours, theirs in pairs)


def growth(results: Results, section: str, contender: str) -> float | None:
    """How much more a task costs at 10,000 than at 1,000; None when these were not measured."""
    sizes = results[section][contender]
    if 1_000 not in sizes or 10_000 not in sizes:
        return None
    return median(sizes[10_000]["us"]) / median(sizes[1_000]["us"])


def _table(section: Section, found: dict[str, dict[int, dict[str, list[float]]]]) -> Iterator[str]:
    results = {section.name: found}
    sizes = list(next(iter(found.values())))
    columns = [(size, name) for size in sizes for name in section.measures]
    yield f"\n{section.title}: {section.unit}, median (min-max)"
    heads = [name if len(section.measures) > 1 else f"{size:,}" for size, name in columns]
    limits = [f"x {limit}" for limit in section.limits]
    has_growth = section.measures == ("us",) and growth(results, section.name, next(iter(found))) is not None
    yield _line("", heads, limits, "1,000 to 10,000" if has_growth else "")
    for contender, by_size in found.items():
        cells = [_cell(by_size[size][name]) for size, name in columns]
        ratios = [
            " ".join(
                f"{ratio(results, section.name, contender, limit, size, name):.2f}" for size, name in columns
            )
            if contender not in section.limits
            else ""
            for limit in section.limits
        ]
        grown = f"x {growth(results, section.name, contender):.2f}" if has_growth else ""
        yield _line(contender, cells, ratios, grown)


def _line(name: str, cells: Sequence[str], ratios: Sequence[str], grown: str) -> str:
    parts = [f"  {name:22}", *(f"{cell:>22}" for cell in cells), *(f"{cell:>18}" for cell in ratios)]
    return "".join([*parts, f"{grown:>18}"]).rstrip()


def _cell(values: Sequence[float]) -> str:
    return f"{_number(median(values))} ({_number(min(values))}-{_number(max(values))})"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def judge(results: Results) -> list[dict[str, Any]]:
    """Each target that was measured, with the figure and whether it is met."""
    verdicts = []
    for target in TARGETS:
        if target.section not in results:
            continue
        for label, figure in _figures(results, target):
            verdicts.append(
                {
                    "target": f"{target.section}, {target.contender}: {label}",
                    "at_most": target.at_most,
                    "figure": round(figure, 3),
                    "met": figure <= target.at_most,
                }
            )
    return verdicts


def _figures(results: Results, target: Target) -> Iterator[tuple[str, float]]:
    if target.is_growth:
        grown = growth(results, target.section, target.contender)
        if grown is not None:
            yield "growth a task from 1,000 to 10,000", grown
        return
    by_size = results[target.section][target.contender]
    for size in target.sizes:
        if size not in by_size:
            continue
        if target.limit:
            times = ratio(results, target.section, target.contender, target.limit, size, "us")
            yield f"times {target.limit} at {size:,}", times
        else:
            (name,) = by_size[size]
            yield name, median(by_size[size][name])


# --- The command ------------------------------------------------------------------------------------------


def disk_for_databases() -> Path:
    """The temp directory, or, where that is memory, this directory."""
    temp = Path(tempfile.gettempdir())
    return temp if filesystem(temp) != "tmpfs" else ROOT / "benchmarks"


def filesystem(path: Path) -> str:
    """The kind of file system that a path is on, as Linux names it."""
    mounts = Path("/proc/mounts")
    if not mounts.exists():
        return "unknown"
    kinds = {Path(line.split()[1]): line.split()[2] for line in mounts.read_text().splitlines()}
    return next((kinds[place] for place in (path, *path.parents) if place in kinds), "unknown")


def _sizes(text: str) -> list[int]:
    sizes = sorted({int(part.replace("_", "")) for part in text.split(",")})
    if sizes[0] < 1:
        raise argparse.ArgumentTypeError("sizes are 1 or more")
    return sizes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, metavar="F", help="write every single figure to this file")
    parser.add_argument(
        "--sizes", type=_sizes, default=[10, 1_000, 10_000], help="how many tasks: 10,1000,10000"
    )
    parser.add_argument("--repeats", type=int, default=5, help="fresh processes for each figure")
    parser.add_argument(
        "--quick", action="store_true", help="one process for each figure, and few rounds in it"
    )
    parser.add_argument("--only", metavar="NAMES", help=f"some of: {','.join(s.name for s in SECTIONS)}")
    parser.add_argument("--case", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        run_case(*options.case)
    chosen = options.only.split(",") if options.only else [s.name for s in SECTIONS]
    if unknown := set(chosen) - {s.name for s in SECTIONS}:
        parser.error(f"there is no section {min(unknown)!r}")

    begun = time.perf_counter()
    disk = disk_for_databases()
    machine = {
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "databases": str(disk),
        "filesystem": filesystem(disk),
    }
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    turns, budget = (1, BUDGET / 6) if options.quick else (max(1, options.repeats), BUDGET)
    sections = [s for s in SECTIONS if s.name in chosen]
    results = measure_all(sections, options.sizes, turns, budget, disk)
    verdicts = judge(results)
    print("\ntargets")
    for verdict in verdicts:
        word = "pass" if verdict["met"] else "MISS"
        print(f"  {word}  {verdict['figure']:8.2f}  <= {verdict['at_most']:<5g} {verdict['target']}")
    took = time.perf_counter() - begun
    print(f"\n{took:.0f} s")
    if options.json:
        content = {"machine": machine, "seconds": took, "results": results, "targets": verdicts}
        options.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
