"""Where the time of a workload goes, counted instead of timed: `python benchmarks/where.py weft_graph chain 3`.

Prints how many bytecodes and calls of Python functions a run costs, by module and by function, in all threads: the same
on every machine and under every load. What C code does is not in it (SQLite, the event loop's selector, futures and
tasks), nor what waits; a run of bare asyncio, `where.py bare_asyncio chain 3`, is the measure for both.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from workloads import Job, Once

import weft

#: Runs before anything is counted: what is made once, at the first use, is not what a run costs.
WARM_UP = 3

OURS = Path(weft.__file__).resolve().parent


class Counted:
    """What was executed while it counts."""

    def __init__(self) -> None:
        self.opcodes: Counter[CodeType] = Counter()
        self.calls: Counter[CodeType] = Counter()

    def trace(self, frame: FrameType, event: str, _: Any) -> Callable[..., Any]:
        """For ``sys.settrace``: count, line by line of nothing, opcode by opcode of everything."""
        if event == "call":
            self.calls[frame.f_code] += 1
            frame.f_trace_opcodes, frame.f_trace_lines = True, False
        elif event == "opcode":
            self.opcodes[frame.f_code] += 1
        return self.trace


async def counted(once: Once, times: int) -> Counted:
    """What so many runs execute, all threads together."""
    found = Counted()
    threading.settrace(found.trace)  # of threads that begin from now on: the warm-up begins them
    for _ in range(WARM_UP):
        await once()
    found.opcodes.clear()
    found.calls.clear()
    sys.settrace(found.trace)
    try:
        for _ in range(times):
            await once()
    finally:
        sys.settrace(None)
        threading.settrace(None)  # type: ignore[arg-type]  # as it is documented
    return found


def place_of(code: CodeType) -> str:
    """The module of ours, or the package, that code is in."""
    path = Path(code.co_filename)
    if path.is_relative_to(OURS):
        return "weft." + ".".join(path.relative_to(OURS).with_suffix("").parts)
    return path.parent.name if path.parent.name in {"asyncio", "concurrent"} else path.stem


def table(found: Counted, units: int, name_of: Callable[[CodeType], str], most: int) -> str:
    """The most expensive first, each with its bytecodes, calls and share."""
    opcodes: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    for code, count in found.opcodes.items():
        opcodes[name_of(code)] += count
        calls[name_of(code)] += found.calls[code]
    total = sum(opcodes.values())
    lines = [
        f"{count / units:10.1f} {calls[name] / units:8.2f} {count / total:6.1%}  {name}"
        for name, count in opcodes.most_common(most)
    ]
    return "\n".join([f"{'bytecodes':>10} {'calls':>8} {'share':>6}", *lines])


async def measure(options: argparse.Namespace) -> None:
    """Count, and print."""
    contender = importlib.import_module(f"contenders.{options.contender}")
    with tempfile.TemporaryDirectory() as folder:
        async with AsyncExitStack() as stack:
            database = Path(folder) / "runs.db" if options.durable else None
            once = await getattr(contender, options.workload)(
                Job(options.size, database=database, stack=stack)
            )
            found = await counted(once, options.times)
    units = options.times * (options.size if options.each else 1)
    unit = "step" if options.each else "run"
    kind = "durable " if options.durable else ""
    total, calls = sum(found.opcodes.values()) / units, sum(found.calls.values()) / units
    print(f"{options.contender}, {kind}{options.workload} of {options.size:,}:")
    print(f"{total:,.0f} bytecodes and {calls:,.1f} calls of Python functions a {unit}\n")
    print(table(found, units, place_of, options.most))
    print()
    print(table(found, units, lambda code: f"{place_of(code)}:{code.co_qualname}", options.most))


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("contender", help="a module of contenders/, such as weft_graph or bare_asyncio")
    parser.add_argument("workload", choices=("chain", "block"), help="steps in a row, or beside each other")
    parser.add_argument("size", type=int, help="how many steps a run has")
    parser.add_argument("--durable", action="store_true", help="with a checkpointer on SQLite")
    parser.add_argument("--each", action="store_true", help="what a step costs, instead of a run")
    parser.add_argument("--times", type=int, default=20, help="how many runs are counted")
    parser.add_argument("--most", type=int, default=20, help="how many modules and functions are listed")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    asyncio.run(measure(parse()))
