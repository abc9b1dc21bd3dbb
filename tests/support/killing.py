"""Real processes that are really killed, and the effects that they leave in an append-only file.

And what goes wrong by itself: stores that die, and a product that breaks its promises.
"""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from msgspec import structs

from weft import CheckpointError, InMemorySaver, SqliteSaver, StoreError
from weft.checkpoint.base import OpenRun, Record, RunRow, Write
from weft.engine import opening
from weft.engine.call import Call
from weft.engine.recorder import Loaded, Recorder


def seeded(name: str) -> random.Random:
    """A generator of the test that asks, by that name; with the seed of the session, which is printed."""
    seed = os.environ["WEFT_SEED"]
    print(f"{name}: WEFT_SEED={seed}")
    test = os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" (")[0]
    return random.Random(f"{seed} {test} {name}")


class Program:
    """A script in a file of its own, run by fresh interpreters."""

    def __init__(self, folder: Path, source: str, name: str = "program") -> None:
        self.folder = folder
        self.path = folder / f"{name}.py"
        self.path.write_text(textwrap.dedent(source))
        self.effects_path = folder / "effects.log"

    def start(self, *args: object) -> subprocess.Popen[str]:
        """A process that runs it."""
        return subprocess.Popen(
            [sys.executable, "-W", "error", str(self.path), *map(str, args)],
            cwd=self.folder,
            env={**os.environ, "EFFECTS": str(self.effects_path)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *args: object, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Run it to its end."""
        process = self.start(*args)
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            raise AssertionError(f"did not end in {timeout} s:\n{out}\n{err}") from None
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def kill_after(self, seconds: float, *args: object) -> bool:
        """Start it and SIGKILL it after a time; whether it was still running."""
        process = self.start(*args)
        time.sleep(seconds)
        alive = process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.communicate()
        return alive

    def effects(self) -> Counter[str]:
        """What it has done, counted outside of the engine."""
        if not self.effects_path.exists():
            return Counter()
        return Counter(self.effects_path.read_text().split())

    def forget(self) -> None:
        """Begin anew: no effects, no database."""
        for path in self.folder.iterdir():
            if path != self.path and path.is_file():
                path.unlink()


def kill_at_effect(process: subprocess.Popen[str], path: Path, count: int, timeout: float = 30) -> bool:
    """SIGKILL a process once this many effects are there; False when it ended before."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline and process.poll() is None:
        if path.exists() and path.read_bytes().count(b"\n") >= count:
            break
        time.sleep(0.0005)
    alive = process.poll() is None
    process.kill()
    process.communicate()
    return alive


class Mortal(InMemorySaver):
    """Takes so many commits and no more, until it is revived; what it has taken stays.

    Attributes:
        left: How many it takes yet.
        pause: Real seconds that each takes; if any, what is written behind the run may be lost.
    """

    def __init__(self, left: int = 0, *, pause: float = 0.0) -> None:
        super().__init__()
        self.left = left
        self.pause = pause
        self.instant = not pause  # else as a store on a disk: the run goes on meanwhile, if it does not wait

    def commit(self, writes: Sequence[Write]) -> set[str]:
        time.sleep(self.pause)
        if self.left <= 0:
            raise StoreError("gone")
        self.left -= 1
        return super().commit(writes)


class MortalFile(SqliteSaver):
    """As :class:`Mortal`, in a file."""

    left = 0

    def commit(self, writes: Sequence[Write]) -> set[str]:
        if self.left <= 0:
            raise StoreError("gone")
        self.left -= 1
        return super().commit(writes)


# --- Things that go wrong ---------------------------------------------------------------------------------
#
# Each breaks the product in the process that calls it, in a way that an audit of killed runs has to see.


def forget_results() -> None:
    """Commits are acknowledged, and every other record is not written."""
    commit = SqliteSaver.commit

    def broken(self: SqliteSaver, writes: Sequence[Write]) -> set[str]:
        return commit(self, [structs.replace(write, records=write.records[::2]) for write in writes])

    SqliteSaver.commit = broken


def run_again() -> None:
    """A resume does not find the first result of each body."""

    def drop(loaded: Loaded) -> None:
        for records in loaded.outcomes.values():
            del records[0]

    _break_resumes(drop)


def give_another_value() -> None:
    """What is read back is not what was recorded."""
    read = Recorder.read

    def broken(self: Recorder, call: Call, record: Record) -> tuple[Any, BaseException | None]:
        value, error = read(self, call, record)
        return (value + 1 if isinstance(value, int) else value), error

    Recorder.read = broken


def forget_the_order() -> None:
    """A resume hands results out in the opposite order."""

    def turn_round(loaded: Loaded) -> None:
        for parent, records in loaded.outcomes.items():
            last = max(record.batch for record in records)
            loaded.outcomes[parent] = [
                structs.replace(r, batch=last + 1 - r.batch) for r in reversed(records)
            ]

    _break_resumes(turn_round)


def forget_the_run() -> None:
    """A run that is accepted is not there."""
    open_ = SqliteSaver.open_many

    def broken(self: SqliteSaver, requests: Sequence[OpenRun]) -> list[RunRow | CheckpointError]:
        found = open_(self, requests)
        with closing(sqlite3.connect(self.path)) as db, db:
            for table in ("runs", "inputs", "outcomes", "records"):
                db.execute(f"DELETE FROM {table}")
        return found

    SqliteSaver.open_many = broken


def hang() -> None:
    """A resume never gets through."""
    _break_resumes(lambda _: time.sleep(1e6))


def _break_resumes(wrong: Callable[[Loaded], object]) -> None:
    load = opening.load_run

    def broken(*args: Any) -> Loaded:
        loaded = load(*args)
        wrong(loaded)
        return loaded

    opening.load_run = broken


PLANTS = {
    "lost": forget_results,
    "doubled": run_again,
    "answer": give_another_value,
    "order": forget_the_order,
    "missing": forget_the_run,
    "hang": hang,
}
