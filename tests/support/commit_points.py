"""Named moments at which a process ends itself with SIGKILL: around the commits of a run, and inside of them.

A point is passed again and again in the life of a process; what is aimed at is one passage of one point. The bodies of
workflows say when they pass theirs. Those of the stores are watched from outside: :func:`watch` puts itself around
their methods and around the statements that they send, in this process only. Nothing in the product knows of it.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from functools import partial
from types import ModuleType
from typing import Any, TypeVar

from weft import CheckpointError, SqliteSaver
from weft.checkpoint.base import Checkpointer, OpenRun, Record, RunRow, Write, all_records
from weft.engine.recorder import OUTCOMES

T = TypeVar("T")


class Point(Enum):
    """Where a process may end."""

    BEFORE_ROW = "before the run's row is opened"
    OPENING = "between the statements that open it"
    AFTER_ROW = "after the row is opened"
    BODY = "a body has begun, before its effect"
    EFFECT = "after the effect, before its commit"
    ASKED = "a commit is asked for"
    INSIDE = "inside a commit, between its statements"
    COMMITTING = "while the store commits"
    COMMITTED = "after a commit, before it is acknowledged"
    ACKNOWLEDGED = "the workflow has seen the result"
    LAST_BRANCH = "in the commit of a join's last branch"
    JOIN = "where branches have joined"
    END = "in the commit of the run's end"
    BEAT = "at a lease renewal"
    RANDOM = "at any moment"  # chosen by the parent, on its clock


@dataclass(frozen=True)
class Aim:
    """The passage at which a process ends.

    Attributes:
        point: Of what.
        passage: Which of its passages, counted from 1.
        delay: Seconds after it, where something goes on meanwhile (COMMITTING); or, at RANDOM, after the beginning.
    """

    point: Point
    passage: int = 1
    delay: float = 0.0


@dataclass(frozen=True)
class Join:
    """What comes together in a workflow: so many outcomes of these steps, of one parent if ``each``."""

    steps: frozenset[str]
    width: int
    each: bool = False


class Watch:
    """Counts the passages of all points, and ends the process at one."""

    def __init__(self, aim: Aim | None, joins: Sequence[Join]) -> None:
        self.passed: Counter[Point] = Counter()
        self.aim = aim
        self._joins = joins
        self._ended: defaultdict[object, set[bytes]] = defaultdict(set)
        self._lock = threading.Lock()

    def reaches(self, point: Point) -> bool:
        """Pass a point; whether that is the passage."""
        with self._lock:
            self.passed[point] += 1
            number = self.passed[point]
        return self.aim is not None and (self.aim.point, self.aim.passage) == (point, number)

    def completes(self, records: Iterable[Record]) -> bool:
        """Whether one of these outcomes is the last that a join waits for."""
        found = False
        for record in records:
            for join in self._joins:
                if record.kind in OUTCOMES and record.step in join.steps:
                    ended = self._ended[join, record.parent if join.each else b""]
                    before = len(ended)
                    ended.add(record.identity)
                    found |= len(ended) > before and len(ended) % join.width == 0
        return found


_watch: Watch | None = None
_here = threading.local()  # `points`: those that the statements of this thread belong to


def passes(*points: Point) -> None:
    """Pass these points; one of them may be the last thing that this process does."""
    for point in points:
        if _watch is not None and _watch.reaches(point):
            die()


def passed() -> dict[str, int]:
    """How often each point was passed in this process, by its name."""
    return {} if _watch is None else {point.name: count for point, count in _watch.passed.items()}


def die() -> None:
    """End this process at once."""
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)  # other threads may run for a moment; this one does not


def watch(
    cls: type[Checkpointer], opened: Callable[[str], None], aim: Aim | None, joins: Sequence[Join]
) -> None:
    """Watch the stores of this class in this process, which has none yet.

    ``opened`` is told the id of each run that a store has opened.
    """
    global _watch  # noqa: PLW0603 - bodies of workflows have no other way to it
    _watch = Watch(aim, joins)
    _watch_methods(cls, _watch, opened)
    if issubclass(cls, SqliteSaver):
        sqlite3.connect = partial(sqlite3.connect, factory=_SqliteConnection)
    else:
        _watch_postgres()


def put(module: ModuleType, name: str, value: object) -> None:
    """Put something in the place of what a module has under this name."""
    assert hasattr(module, name), f"{module.__name__} has no {name} any more"
    setattr(module, name, value)


# --- The methods of a store -------------------------------------------------------------------------------


def _watch_methods(cls: Any, watched: Watch, opened: Callable[[str], None]) -> None:
    open_, commit_, beat_ = cls.open_many, cls.commit, cls.beat

    def opening(self: Checkpointer, requests: Sequence[OpenRun]) -> list[RunRow | CheckpointError]:
        passes(Point.BEFORE_ROW)
        with _sending(Point.OPENING):
            found = open_(self, requests)
        for row in found:
            if isinstance(row, RunRow):
                opened(row.run_id)
                passes(Point.AFTER_ROW)
                if row.fence > 1:
                    watched.completes(all_records(self, row.run_id))  # in lives before
        return found

    def committing(self: Checkpointer, writes: Sequence[Write]) -> set[str]:
        is_last = watched.completes(record for write in writes for record in write.records)
        special = [Point.LAST_BRANCH] * is_last + [Point.END] * any(write.change for write in writes)
        passes(Point.ASKED, *special)
        with _sending(Point.INSIDE, *special):
            refused = commit_(self, writes)
        passes(Point.COMMITTED, *special)
        return refused

    def beating(self: Checkpointer) -> None:
        before = watched.passed[Point.BEAT]
        with _sending(Point.BEAT):
            beat_(self)
        if watched.passed[Point.BEAT] > before:  # else it was not due
            passes(Point.BEAT)

    cls.open_many, cls.commit, cls.beat = opening, committing, beating


@contextmanager
def _sending(*points: Point) -> Iterator[None]:
    """The statements of this thread belong to these points."""
    _here.points = points
    try:
        yield
    finally:
        _here.points = ()


def _points() -> tuple[Point, ...]:
    return getattr(_here, "points", ())


# --- The statements of a transaction ----------------------------------------------------------------------


def _execute(send: Callable[[], T], statement: object, *, ends: bool) -> T:
    """Send a statement, by which a transaction ``ends``."""
    points = _points()
    if not str(statement).startswith("BEGIN"):
        passes(*points)
    if not (ends and Point.INSIDE in points and _watch is not None and _watch.reaches(Point.COMMITTING)):
        return send()
    assert _watch.aim is not None
    threading.Thread(target=_die_after, args=(_watch.aim.delay,), daemon=True).start()
    try:
        return send()
    finally:
        die()


def _die_after(seconds: float) -> None:
    time.sleep(seconds)
    die()


def _passing(rows: Iterable[T]) -> Iterator[T]:
    for row in rows:
        passes(*_points())
        yield row


class _SqliteConnection(sqlite3.Connection):
    def execute(self, statement: str, *params: Any) -> sqlite3.Cursor:
        send = partial(super().execute, statement, *params)
        return _execute(send, statement, ends=statement == "COMMIT")

    def executemany(self, statement: str, rows: Iterable[Any]) -> sqlite3.Cursor:
        return _execute(partial(super().executemany, statement, _passing(rows)), statement, ends=False)


def _watch_postgres() -> None:
    from psycopg import pq  # noqa: PLC0415 - not everybody has it

    from weft.checkpoint import postgres, postgres_link  # noqa: PLC0415 - the same

    cls: Any = postgres_link._Connection
    execute_, bounded_, append_ = cls.execute, postgres_link._bounded, postgres._append

    def execute(self: Any, statement: Any, *args: Any, **options: Any) -> Any:
        alone = self.pgconn.transaction_status == pq.TransactionStatus.IDLE
        ends = statement == "COMMIT" or (alone and not str(statement).startswith("BEGIN"))
        return _execute(partial(execute_, self, statement, *args, **options), statement, ends=ends)

    def bounded(waiting: Generator[Any, Any, T], patience: float) -> Generator[Any, Any, T]:
        """Each wait for the server passes: it has a statement, or a part of one, and has not answered."""
        inner = bounded_(waiting, patience)
        try:
            wanted = next(inner)
            while True:
                passes(*_points())
                wanted = inner.send((yield wanted))
        except StopIteration as stop:
            return stop.value

    def append(db: Any, rows: Iterable[Any]) -> None:
        append_(db, _passing(rows))

    cls.execute = execute
    put(postgres_link, "_bounded", bounded)
    put(postgres, "_append", append)
