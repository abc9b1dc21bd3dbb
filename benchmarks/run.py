"""Weft beside its peers and beside bare asyncio and SQLite: `python benchmarks/run.py`.

Every figure is the median over fresh processes, each measuring one contender in one workload at one size. The
contenders of a workload take turns, and a ratio is formed within a turn, so that a machine which is slow for a
while is slow for both sides of it. `pip install '.[bench]'` brings the peers; those that are missing are said.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import importlib.metadata
import json
import os
import platform
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, NoReturn

import contenders
import figures
import pictures
from workloads import BY_NAME, WORKLOADS, Setting, Workload, cores, why_not

HERE = Path(__file__).resolve().parent

#: Seconds for which a process repeats what it measures (at least one round), and with --quick.
BUDGET = 0.1
QUICK_BUDGET = 0.01

#: A process is ended after so many seconds, and not begun where the size before says that it would take longer.
PATIENCE = 45.0
EXPECTED = 4.0

#: Of a pair of which one process takes longer than this (seconds), there are no further turns: for Weft and the
#: limits after three of them, and at all.
THRICE = 1.2
ONCE = 5.0

# --- In the process of one figure -------------------------------------------------------------------------------


def run_case(name: str, workload: str, size: str, budget: str, folder: str, loop: str) -> NoReturn:
    """Measure one pair and print the figures; then leave at once: threads of contenders may wait for ever."""
    contender = importlib.import_module(f"contenders.{contenders.NAMES[name]}")

    async def measure() -> dict[str, float]:
        async with AsyncExitStack() as stack:
            setting = Setting(int(size), Path(folder), float(budget), stack)
            found = await BY_NAME[workload].measure(contender, setting)
            print(json.dumps(found), flush=True)
            return found

    factory = importlib.import_module("uvloop").new_event_loop if loop == "uvloop" else None
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(measure())
        sys.stdout.flush()
        os._exit(0)


def say_what(name: str) -> NoReturn:
    """What a contender is and cannot do, for the process that chooses; without its import, its error."""
    contender = importlib.import_module(f"contenders.{contenders.NAMES[name]}")
    versions = {package: importlib.metadata.version(package) for package in contender.PACKAGES}
    said = {
        "versions": versions,
        "dependencies": len(dependencies(contender.PACKAGES)),
        "not": {workload.name: why_not(contender, workload) for workload in WORKLOADS},
    }
    print(json.dumps(said))
    sys.stdout.flush()
    os._exit(0)


def dependencies(packages: Sequence[str]) -> set[str]:
    """All that pip brings for these packages, themselves not counted."""
    from packaging.requirements import Requirement  # noqa: PLC0415 - only where the table is made

    found: set[str] = set()
    waiting = list(packages)
    while waiting:
        name = waiting.pop()
        try:
            lines = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        for requirement in map(Requirement, lines):
            needed = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
            if needed and (key := requirement.name.lower().replace("_", "-")) not in found:
                found.add(key)
                waiting.append(key)
    return found - {package.lower() for package in packages}


# --- The one that chooses ---------------------------------------------------------------------------------------


def child(*arguments: str, patience: float) -> tuple[dict[str, Any] | None, str]:
    """What a process of this file printed; or None, and why."""
    command = [sys.executable, "-W", "ignore", str(Path(__file__).resolve()), *arguments]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent / "src"), str(HERE)])}
    try:
        done = subprocess.run(  # noqa: S603 - this file
            command, env=environment, capture_output=True, text=True, timeout=patience, check=False
        )
    except subprocess.TimeoutExpired:
        return None, f"took longer than {patience:.0f} s"
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if lines:
        return json.loads(lines[-1]), ""
    last = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith(" ")]
    return None, (last[-1] if last else f"ended with {done.returncode}")[:200]


class Bench:
    """All figures of one run, as they come."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.turns = 1 if options.quick else options.repeats
        self.budget = QUICK_BUDGET if options.quick else BUDGET
        self.about: dict[str, dict[str, Any]] = {}
        self.results: figures.Results = {}
        self.skipped: dict[str, dict[str, dict[str, str]]] = {}
        self._took: dict[tuple[str, str, int], float] = {}

    def look_at(self, names: Sequence[str]) -> None:
        for name in names:
            said, why = child("--about", name, patience=PATIENCE)
            self.about[name] = said or {"missing": why, "versions": {}, "not": {}}
            versions = ", ".join(f"{key} {value}" for key, value in self.about[name]["versions"].items())
            print(f"  {name:22} {versions or (f'not installed: {why}' if why else '')}".rstrip(), flush=True)

    def measure(self, workload: Workload) -> None:
        """All contenders at all sizes, in turns."""
        names = [name for name in self.about if self._can(name, workload)]
        limits = [name for name in names if name in contenders.LIMITS]
        if set(names) <= set(limits) and not self.options.only:
            return
        for size in workload.sizes_for(quick=self.options.quick):
            for turn in range(self.turns):
                for name in names:
                    if self._is_wanted(workload, name, size, turn):
                        self._one(workload, name, size)

    def _can(self, name: str, workload: Workload) -> bool:
        if name in contenders.LIMITS and name not in workload.limits:
            return False
        about = self.about[name]
        reason = about.get("missing") or about["not"].get(workload.name)
        if reason:
            self._skip(workload, name, "all", f"not installed: {reason}" if "missing" in about else reason)
        return not reason

    def _is_wanted(self, workload: Workload, name: str, size: int, turn: int) -> bool:
        by_size = self.results.get(workload.name, {}).get(name, {})
        if turn:
            is_ours = name in contenders.LIMITS or name in contenders.OURS
            turns = self.options.repeats if is_ours else self.options.peer_repeats
            took = self._took.get((workload.name, name, size), 0)
            turns = min(turns, 1 if took > ONCE else 3 if took > THRICE else turns)
            return str(size) in by_size and turn < turns
        expected = self._expected(workload, name, size)
        is_short = workload.main == "us" and name not in contenders.OURS
        if expected > (EXPECTED if is_short else PATIENCE):
            self._skip(workload, name, str(size), f"would take some {expected:.0f} s")
        if str(size) not in self.skipped.get(workload.name, {}).get(name, {}):
            smaller = self.skipped.get(workload.name, {}).get(name, {})
            return not any(key.isdigit() and int(key) < size for key in smaller)
        return False

    def _expected(self, workload: Workload, name: str, size: int) -> float:
        """Seconds of a round, as two smaller sizes let it expect; 0 where nothing is known."""
        if workload.main != "us" and workload.needs != "block":
            return 0
        source = workload.name if workload.main == "us" else "fanout"
        before = sorted(
            (int(key), found) for key, found in self.results.get(source, {}).get(name, {}).items()
        )
        if (
            source != workload.name
        ):  # as long as the fan-out of that size, or of the nearest below, and half again
            return max(
                (min(found["us"]) * size * 1.5 / 1e6 for at, found in before[-3:] if at <= size), default=0
            )
        before = [(at, min(found["us"])) for at, found in before if at < size]
        if not before:
            return 0
        us = before[-1][1]
        grows = max(1.0, us / before[-2][1]) if len(before) > 1 and before[-2][0] >= 100 else 1.0
        return us * grows * size / 1e6

    def _one(self, workload: Workload, name: str, size: int) -> None:
        folder = tempfile.mkdtemp(dir=self.options.disk)
        begun = time.perf_counter()
        arguments = ("--case", name, workload.name, str(size), str(self.budget), folder, self.options.loop)
        found, why = child(*arguments, patience=PATIENCE)
        shutil.rmtree(folder, ignore_errors=True)
        self._took[workload.name, name, size] = time.perf_counter() - begun
        if found is None:
            self._skip(workload, name, str(size), why)
            return
        measures = self.results.setdefault(workload.name, {}).setdefault(name, {}).setdefault(str(size), {})
        for key, value in found.items():
            measures.setdefault(key, []).append(value)

    def _skip(self, workload: Workload, name: str, size: str, why: str) -> None:
        self.skipped.setdefault(workload.name, {}).setdefault(name, {})[size] = why


def machine(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "platform": platform.platform(),
        "cores": cores(),
        "loop": options.loop,
        "filesystem": filesystem(options.disk),
        "date": time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
        "load": [round(value, 2) for value in os.getloadavg()],
    }


def disk_for_databases() -> Path:
    """The temp directory, or, where that is memory, this directory: `fsync` on tmpfs costs nothing."""
    temp = Path(tempfile.gettempdir())
    return temp if filesystem(temp) != "tmpfs" else HERE


def filesystem(path: Path) -> str:
    """The kind of file system that a path is on, as Linux names it."""
    mounts = Path("/proc/mounts")
    if not mounts.exists():
        return "unknown"
    kinds = {Path(line.split()[1]): line.split()[2] for line in mounts.read_text().splitlines()}
    path = path.resolve()
    return next((kinds[place] for place in (path, *path.parents) if place in kinds), "unknown")


def chosen(options: argparse.Namespace) -> list[str]:
    """The contenders that are measured: the limits always, for without them there are no ratios."""
    names = [name for name in contenders.NAMES if options.slow or name not in contenders.SLOW]
    if not options.only:
        return names
    return [name for name in contenders.NAMES if name in options.only or name in contenders.LIMITS]


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument(
        "--quick", action="store_true", help="small sizes, one process each: does it run at all?"
    )
    parser.add_argument(
        "--only", action="append", metavar="NAME", help="this contender, and the limits (repeat)"
    )
    parser.add_argument("--workload", action="append", metavar="NAME", help="this workload (repeat)")
    parser.add_argument(
        "--slow", action="store_true", help="Prefect, Dask and Ray too; 15 minutes are not enough"
    )
    parser.add_argument("--repeats", type=int, default=5, help="turns of Weft and of the limits (5)")
    parser.add_argument(
        "--peer-repeats", type=int, default=2, help="in how many of them the peers take part (2)"
    )
    parser.add_argument("--loop", choices=["asyncio", "uvloop"], default="asyncio")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="every single figure; the pictures stand beside it"
    )
    parser.add_argument("--update", action="store_true", help="keep what --json has of other workloads")
    parser.add_argument("--disk", type=Path, default=disk_for_databases(), help="where databases are")
    parser.add_argument("--case", nargs=6, help=argparse.SUPPRESS)
    parser.add_argument("--about", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    for given, known in ((options.only, contenders.NAMES), (options.workload, BY_NAME)):
        if unknown := [name for name in given or [] if name not in known]:
            parser.error(f"there is no {unknown[0]!r}; there are: {', '.join(known)}")
    if options.update and not (options.json and options.json.is_file()):
        parser.error("--update wants a --json FILE that is there")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)  # now, not after a quarter of an hour
    if options.repeats < 1 or options.peer_repeats < 1:
        parser.error("--repeats and --peer-repeats are 1 or more")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    options = parsed(arguments)
    if options.case:
        run_case(*options.case)
    if options.about:
        say_what(options.about)
    begun = time.perf_counter()
    about = machine(options)
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    bench = Bench(options)
    bench.look_at(chosen(options))
    for workload in WORKLOADS:
        if not options.workload or workload.name in options.workload:
            bench.measure(workload)
            for line in figures.lines(workload, bench.results, bench.skipped):
                print(line, flush=True)
    about["load after"] = [round(value, 2) for value in os.getloadavg()]
    content = {
        "machine": about,
        "seconds": round(time.perf_counter() - begun),
        "quick": options.quick,
        "contenders": bench.about,
        "results": bench.results,
        "skipped": bench.skipped,
    }
    if options.update:
        content = figures.updated(json.loads(options.json.read_text(encoding="utf-8")), content)
    content["targets"] = figures.judge(content["results"])
    for line in figures.verdicts(content["targets"]):
        print(line)
    print(f"\n{content['seconds']} s")
    if options.json:
        options.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        pictures.write(content, options.json.parent)


if __name__ == "__main__":
    main()
