"""What a timeline costs: 100,000 events taken in and drawn, and 100,000 recorded calls.

    python benchmarks/timeline.py [--calls 25000] [--recorded 100000] [--json FILE]

Each figure is that of a fresh process: seconds, and the most memory above that of a process that has only the events
or the calls. The targets are 5 seconds and 500 MB for everything together.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from heapq import heapify, heappop, heappush

from weft.core.outcome import Ok
from weft.engine import events
from weft.observe.timeline import Timeline

RUN = "run"
SLOTS = 64
SECONDS, MEGABYTES = 5.0, 500.0


@dataclass(frozen=True, slots=True)
class Recorded:
    step: str
    id: str
    parent: str
    outcome: str
    attempts: int
    asked: datetime | None
    started: datetime | None
    ended: datetime | None
    limits: tuple[str, ...]
    error: str | None = None


def schedule(calls: int) -> Iterator[tuple[str, str, float, float]]:
    """(id, step, start, end) of calls that were all asked for at once, behind a limit."""
    chance = random.Random(7)
    free = [0.0] * SLOTS
    heapify(free)
    for number in range(calls):
        start = heappop(free)
        end = start + chance.lognormvariate(0, 0.6)
        heappush(free, end)
        yield f"call{number}", f"step{number % 20}", start, end


def told(calls: int) -> list[events.Event]:
    """Four events a call."""
    found: list[events.Event] = [events.RunStarted(run_id=RUN, time=0.0, workflow="many")]
    for name, step, start, end in schedule(calls):
        known = {"run_id": RUN, "call_id": f"{RUN}:{name}", "step": step, "parent_id": f"{RUN}:root"}
        found.append(events.CallAsked(time=0.0, **known))
        found.append(events.CallQueued(time=0.0, limits=("api",), **known))
        found.append(events.CallStarted(time=start, attempt=1, args=(), kwargs={}, **known))
        found.append(events.CallFinished(time=end, outcome=Ok(None), **known))
    found.sort(key=lambda event: event.time)
    found.append(events.RunFinished(run_id=RUN, time=found[-1].time, status="finished", outcome=None))
    return found


def recorded(calls: int) -> list[Recorded]:
    def at(seconds: float) -> datetime:
        return datetime.fromtimestamp(1_700_000_000 + seconds, UTC)

    return [
        Recorded(step, name, "", "ok", 1, at(0.0), at(start), at(end), ("api",))
        for name, step, start, end in schedule(calls)
    ]


def peak() -> float:
    """Megabytes, at most so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(what: str, calls: int) -> dict[str, float]:
    given: list = told(calls) if what == "events" else recorded(calls)
    before, since, cpu = peak(), time.perf_counter(), time.process_time()
    now = datetime.fromtimestamp(1_700_000_000, UTC)
    timeline = (
        Timeline.of_events(given)
        if what == "events"
        else Timeline.of_calls(
            given, run_id=RUN, workflow="many", status="finished", created=now, updated=now
        )
    )
    made = time.perf_counter()
    figures = {"given": len(given), "model": made - since}
    for name, draw in (("svg", timeline.svg), ("html", timeline.html), ("text", timeline.text)):
        began = time.perf_counter()
        figures[f"{name} KiB"] = len(draw().encode()) / 1024
        figures[name] = time.perf_counter() - began
    figures |= {"seconds": time.perf_counter() - since, "CPU seconds": time.process_time() - cpu}
    return {**figures, "MB": peak() - before, "MB in all": peak()}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--calls", type=int, default=25_000, help="four events each")
    options.add_argument("--recorded", type=int, default=100_000)
    options.add_argument("--json", help="a file for the figures")
    options.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.child:
        print(json.dumps(measure(given.child[0], int(given.child[1]))))
        return
    found = {}
    for what, calls in (("events", given.calls), ("recorded", given.recorded)):
        child = [sys.executable, __file__, "--child", what, str(calls)]
        done = subprocess.run(child, stdout=subprocess.PIPE, check=True)  # noqa: S603 - this file
        found[what] = figures = json.loads(done.stdout)
        print(f"{what}: {figures.pop('given'):,.0f}")
        for name, figure in figures.items():
            print(f"  {name:12} {figure:10.2f}")
        met = figures["seconds"] < SECONDS and figures["MB"] < MEGABYTES
        print(f"  {'pass' if met else 'MISS'}: below {SECONDS:g} s and {MEGABYTES:g} MB")
    if given.json:
        with open(given.json, "w", encoding="utf-8") as file:  # noqa: PTH123 - a path as given
            json.dump(found, file, indent=2)


if __name__ == "__main__":
    main()
