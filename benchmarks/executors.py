"""What a body elsewhere costs, and what it gains: `python benchmarks/executors.py`.

For each executor: a call of nothing by itself, and each of many at once, beside what the engine that distributes takes
for the same by itself (the standard process pool, `Client.map`, `ray.get`); and how much faster two cores are than
one at work that computes. Ratios are formed within one process, the two sides taking turns.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import importlib.metadata
import json
import logging
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import weft

NAMES = ("process", "dask", "ray")

#: Calls one after the other, and at once.
SINGLE, MANY = 100, 5_000

#: Seconds of computing in each body, and how many.
WORK, BODIES = 0.1, 40


def nothing(x: int) -> int:
    return x


def compute(turns: int) -> int:
    found = 0
    for i in range(turns):
        found += i * i
    return found


def turns_for(seconds: float) -> int:
    """How many turns of :func:`compute` take so long here."""
    began = time.perf_counter()
    compute(2_000_000)
    return int(2_000_000 * seconds / (time.perf_counter() - began))


Bare = Callable[[Callable[[int], int], list[int]], list[int]]


def both(name: str, stack: ExitStack) -> tuple[Any, Bare]:
    """The executor, and what distributes by itself: all of a list at once."""
    if name == "process":
        pool = stack.enter_context(concurrent.futures.ProcessPoolExecutor(2))
        return stack.enter_context(weft.ProcessExecutor(2)), lambda fn, items: list(pool.map(fn, items))
    if name == "dask":
        from distributed import Client, LocalCluster  # noqa: PLC0415 - each process needs one of them

        quiet = {"dashboard_address": None, "silence_logs": logging.CRITICAL}
        cluster = stack.enter_context(LocalCluster(n_workers=2, threads_per_worker=1, **quiet))
        client = stack.enter_context(Client(cluster))
        return weft.DaskExecutor(client), lambda fn, items: client.gather(client.map(fn, items, pure=False))
    import ray  # noqa: PLC0415 - as above

    ray.init(num_cpus=2, include_dashboard=False, logging_level=logging.CRITICAL, log_to_driver=False)
    stack.callback(ray.shutdown)

    def on_ray(fn: Callable[[int], int], items: list[int]) -> list[int]:
        remote = ray.remote(fn)
        found: list[int] = ray.get([remote.remote(item) for item in items])
        return found

    return weft.RayExecutor(), on_ray


def seconds(do: Callable[[], Any]) -> float:
    began = time.perf_counter()
    do()
    return time.perf_counter() - began


def measure(name: str, repeats: int) -> dict[str, float]:
    with ExitStack() as stack:
        executor, bare = both(name, stack)
        ours = weft.map(weft.task(executor=executor)(nothing), max_concurrent=MANY)
        ours_computing = weft.map(weft.task(executor=executor)(compute), max_concurrent=BODIES)
        here = weft.map(weft.task(nothing))
        turns = turns_for(WORK)
        few, many, work = list(range(50)), list(range(MANY)), [turns] * BODIES
        for _ in range(2):  # processes have begun, and have imported what they need
            ours.invoke(few)
            bare(nothing, few)
        figures: dict[str, list[float]] = {}

        def note(key: str, value: float) -> None:
            figures.setdefault(key, []).append(value)

        one = weft.task(executor=executor)(nothing)
        for _ in range(repeats):
            note("one call, weft, us", seconds(lambda: [one.invoke(i) for i in range(SINGLE)]) / SINGLE * 1e6)
            note(
                "one call, bare, us",
                seconds(lambda: [bare(nothing, [i]) for i in range(SINGLE)]) / SINGLE * 1e6,
            )
            note("each of many, weft, us", seconds(lambda: ours.invoke(many)) / MANY * 1e6)
            note("each of many, bare, us", seconds(lambda: bare(nothing, many)) / MANY * 1e6)
            note(
                "each of many, in threads of this process, us",
                seconds(lambda: here.invoke(many)) / MANY * 1e6,
            )
            alone = seconds(lambda: [compute(turns) for _ in range(BODIES)])
            note("speed-up on two cores, weft", alone / seconds(lambda: ours_computing.invoke(work)))
            note("speed-up on two cores, bare", alone / seconds(lambda: bare(compute, work)))
        return {key: statistics.median(values) for key, values in figures.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", action="append", choices=NAMES, help="some of them; repeatable")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="one of them, in this process, as JSON")
    options = parser.parse_args()
    if options.json:
        print(json.dumps(measure(options.only[0], options.repeats)))
        return
    print(
        f"python {sys.version.split()[0]}, weft {importlib.metadata.version('weft')}, {os.cpu_count()} cores"
    )
    for name in options.only or NAMES:
        command = [sys.executable, __file__, "--json", "--only", name, "--repeats", str(options.repeats)]
        found = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - this file
        if found.returncode:
            print(f"{name}: {found.stderr.strip().splitlines()[-1]}")
            continue
        print(name)
        for key, value in json.loads(found.stdout.splitlines()[-1]).items():
            print(f"  {key:<46} {value:>10.2f}")


if __name__ == "__main__":
    main()
