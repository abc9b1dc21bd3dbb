"""A million items through one map: `python benchmarks/million.py`.

Each way runs in a fresh process over a generator of items, with at most 100 at once: as a stream, of which nothing is
kept, and as a list of results, which somebody asked for. Memory is what the process has beyond what it had before the
first item, sampled while it runs; in flight is counted by the items themselves.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Self

import psutil

import weft

ROOT = Path(__file__).resolve().parent.parent
WIDTH = 100

#: Seconds between two looks at the memory.
EVERY = 0.01

#: Items that run before anything is measured, so that imports and caches do not count.
WARM_UP = 2_000


class Flight:
    """Items that say how many of them are on their way at once, and how many there were."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.now = self.most = self.done = 0
        self._lock = threading.Lock()

    async def on_the_loop(self, item: int) -> int:
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(0)
        self.now -= 1
        self.done += 1
        return item

    def in_a_thread(self, item: int) -> int:
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)
        with self._lock:
            self.now -= 1
            self.done += 1
        return item


class Memory:
    """The most that this process has needed beyond what it had at the beginning, in bytes."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        gc.collect()
        self._base = self._process.memory_info().rss
        self.most = 0
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._is_over.set()
        self._thread.join()
        self._look()

    def _watch(self) -> None:
        while not self._is_over.wait(EVERY):
            self._look()

    def _look(self) -> None:
        self.most = max(self.most, self._process.memory_info().rss - self._base)


def items(count: int) -> Iterator[int]:
    """A source of which the number is not known before its end."""
    yield from range(count)


# --- The ways: each takes all items through, and checks that none is missing ------------------------------------


def stream(flight: Flight, count: int, folder: Path) -> None:
    total = sum(weft.map(flight.on_the_loop, max_concurrent=WIDTH).stream(items(count)))
    assert total == count * (count - 1) // 2


def astream(flight: Flight, count: int, folder: Path) -> None:
    async def main() -> int:
        total = 0
        async for result in weft.map(flight.on_the_loop, max_concurrent=WIDTH).astream(items(count)):
            total += result
        return total

    assert asyncio.run(main()) == count * (count - 1) // 2


def stream_of_threads(flight: Flight, count: int, folder: Path) -> None:
    total = sum(weft.map(flight.in_a_thread, max_concurrent=WIDTH).stream(items(count)))
    assert total == count * (count - 1) // 2


def as_list(flight: Flight, count: int, folder: Path) -> None:
    found = weft.map(flight.on_the_loop, items(count), max_concurrent=WIDTH)
    assert found == list(range(count))


def durable(flight: Flight, count: int, folder: Path) -> None:
    made = weft.map(flight.on_the_loop, max_concurrent=WIDTH)
    with weft.SqliteSaver(folder / "runs.db") as saver:
        total = sum(made.stream(items(count), checkpointer=saver, run_id=f"run {flight.number}"))
    assert total == count * (count - 1) // 2


def gathered(flight: Flight, count: int, folder: Path) -> None:
    """Bare asyncio, for comparison: a window of tasks after the other, with a barrier between them."""

    async def main() -> int:
        total, source = 0, items(count)
        while window := [asyncio.create_task(flight.on_the_loop(item)) for item in islice(source, WIDTH)]:
            total += sum(await asyncio.gather(*window))
        return total

    assert asyncio.run(main()) == count * (count - 1) // 2


WAYS: dict[str, Callable[[Flight, int, Path], None]] = {
    "asyncio": gathered,
    "stream": stream,
    "astream": astream,
    "list": as_list,
    "stream, sync": stream_of_threads,
    "stream, durable": durable,
}

#: Each is run with this part of the items: a thread, or a disk, for every item takes its time.
SHARE = {"stream, sync": 10, "stream, durable": 10}


# --- Measuring ----------------------------------------------------------------------------------------------------


def measure(way: str, count: int) -> dict[str, float]:
    """What one way costs, in this process."""
    with tempfile.TemporaryDirectory() as folder:
        WAYS[way](Flight(0), min(WARM_UP, count), Path(folder))
        flight = Flight(1)
        with Memory() as memory:
            begun = time.perf_counter()
            WAYS[way](flight, count, Path(folder))
            took = time.perf_counter() - begun
    return {
        "items": flight.done,
        "seconds": took,
        "us": took / flight.done * 1e6,
        "memory": memory.most,
        "in_flight": flight.most,
    }


def in_fresh_process(way: str, count: int) -> dict[str, float]:
    """The figures of one way, from an interpreter of its own."""
    command = [sys.executable, __file__, "--way", way, "--items", str(count)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)  # noqa: S603 - this file
    if done.returncode:
        raise SystemExit(f"{way} failed:\n{done.stderr}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--items", type=int, default=1_000_000, help="how many (1,000,000)")
    parser.add_argument("--only", metavar="NAMES", help=f"some of: {', '.join(WAYS)}; with ';' between them")
    parser.add_argument("--way", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.items < 1:
        parser.error("--items must be 1 or more")
    if options.way:
        print(json.dumps(measure(options.way, options.items)))
        return
    chosen = options.only.split(";") if options.only else list(WAYS)
    if unknown := [name for name in chosen if name not in WAYS]:
        parser.error(f"there is no way {unknown[0]!r}; there are: {', '.join(WAYS)}")
    print(
        f"{platform.platform()}, Python {platform.python_version()}, {os.cpu_count()} cores; {WIDTH} at once"
    )
    print(f"{'':18}{'items':>12}{'seconds':>10}{'us an item':>12}{'MB above base':>15}{'in flight':>11}")
    for way in chosen:
        found = in_fresh_process(way, max(1, options.items // SHARE.get(way, 1)))
        print(
            f"{way:18}{found['items']:>12,.0f}{found['seconds']:>10.1f}{found['us']:>12.1f}"
            f"{found['memory'] / 1e6:>15.1f}{found['in_flight']:>11.0f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
