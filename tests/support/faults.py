"""Stores that fail on purpose: at the Nth call of the protocol, or at the Nth statement that SQLite is given.

What they have acknowledged by then, and what bodies have done, is noted outside of the engine.
"""

from __future__ import annotations

import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from weft import CheckpointError, StoreError, call_id
from weft.checkpoint import sql
from weft.checkpoint.base import (
    Checkpointer,
    OpenRun,
    Record,
    RecordKind,
    RunRow,
    ThreadState,
    Write,
)
from weft.core.status import RunStatus


class Fault(Enum):
    """What becomes of a call that fails."""

    REFUSED = "refused"  # nothing was done
    UNSURE = "unsure"  # all was done, and the answer was lost


@dataclass
class Plan:
    """Which calls fail: of those that count the ``at``-th, from 1, and if it ``lasts`` every later one.

    Attributes:
        counts: The names of the methods (or kinds of statements) that count.
        error: Makes what is raised.
        hits: How many calls have failed.
    """

    at: int
    fault: Fault = Fault.REFUSED
    lasts: bool = False
    counts: frozenset[str] = frozenset({"commit"})
    error: Callable[[], Exception] = field(default=lambda: StoreError("planted"))
    seen: int = 0
    hits: int = 0

    def __post_init__(self) -> None:
        self._lock = threading.Lock()

    def strikes(self, name: str) -> bool:
        """Whether this call of that name is one that fails."""
        if name not in self.counts:
            return False
        with self._lock:
            self.seen += 1
            strikes = self.seen == self.at or (self.lasts and self.seen > self.at)
            self.hits += strikes
        return strikes

    def apply(self, name: str, do: Callable[[], Any], undo: Callable[[Any], None] | None = None) -> Any:
        """Do it, or fail. ``undo``: of what was done, what nobody could ever take back who had no answer."""
        if not self.strikes(name):
            return do()
        if self.fault is Fault.UNSURE:
            done = do()
            if undo is not None:
                undo(done)
        raise self.error()


NEVER = Plan(0)


class Faulty(Checkpointer):
    """A store that does what another does, but where its plan says otherwise.

    Attributes:
        plans: Which calls fail.
        acknowledged: The calls (by identity) whose result is on record: the store has taken it, or has shown it. A
            failure counts once it is on record that the workflow went on from it.
        instant: What the engine is told: with False it has the store called by a thread.
    """

    def __init__(self, inner: Checkpointer, *, instant: bool | None = None) -> None:
        self.inner = inner
        self.codec = inner.codec
        self.lease = inner.lease
        self.instant = inner.instant if instant is None else instant
        self.plans: tuple[Plan, ...] = ()
        self.calls: Counter[str] = Counter()
        self.acknowledged: set[bytes] = set()

    def open_many(self, requests: Sequence[OpenRun]) -> list[RunRow | CheckpointError]:
        def let_go(rows: list[RunRow | CheckpointError]) -> None:
            for row in rows:
                if isinstance(row, RunRow) and row.status is RunStatus.RUNNING:
                    self.inner.release(row.run_id, row.fence)

        return self._call("open", lambda: self.inner.open_many(requests), let_go)

    def commit(self, writes: Sequence[Write]) -> set[str]:
        return self._call("commit", lambda: self._commit(writes))

    def _commit(self, writes: Sequence[Write]) -> set[str]:
        refused = self.inner.commit(writes)
        for write in writes:
            if write.run_id not in refused:
                self._note(write.records)
        return refused

    def _note(self, records: Iterable[Record]) -> None:
        for record in records:
            if record.kind in {RecordKind.OK, RecordKind.WENT_ON}:
                self.acknowledged.add(record.identity)
            elif record.kind is RecordKind.RETRY:  # it has ended the run, and is to be tried again
                self.acknowledged.discard(record.identity)

    def release(self, run_id: str, fence: int) -> None:
        # A store lets go of a run in its own process even where it cannot write that down.
        self._call("release", lambda: self.inner.release(run_id, fence), always=True)

    def beat(self) -> None:
        self._call("beat", self.inner.beat)

    def records(self, run_id: str, *, after: int = 0, limit: int = 1000) -> list[tuple[int, Record]]:
        found = self._call("records", lambda: self.inner.records(run_id, after=after, limit=limit))
        self._note(record for _, record in found)
        return found

    def find(self, run_id: str) -> RunRow | None:
        return self._call("find", lambda: self.inner.find(run_id))

    def runs(self, *, thread_id: str | None = None, limit: int = 100) -> list[RunRow]:
        return self._call("runs", lambda: self.inner.runs(thread_id=thread_id, limit=limit))

    def states(self, thread_id: str, *, limit: int = 100) -> list[ThreadState]:
        return self._call("states", lambda: self.inner.states(thread_id, limit=limit))

    def save_state(self, thread_id: str, value: bytes, *, created: float) -> None:
        self._call("save_state", lambda: self.inner.save_state(thread_id, value, created=created))

    def add_answers(self, run_id: str, answers: Sequence[Record]) -> None:
        self._call("add_answers", lambda: self.inner.add_answers(run_id, answers))

    def delete_run(self, run_id: str) -> bool:
        return self._call("delete_run", lambda: self.inner.delete_run(run_id))

    def delete_thread(self, thread_id: str) -> None:
        self._call("delete_thread", lambda: self.inner.delete_thread(thread_id))

    def vacuum(self) -> None:
        self._call("vacuum", self.inner.vacuum)

    def close(self) -> None:
        self.inner.close()

    def _call(
        self,
        name: str,
        do: Callable[[], Any],
        undo: Callable[[Any], None] | None = None,
        *,
        always: bool = False,
    ) -> Any:
        self.calls[name] += 1
        plan = next((plan for plan in self.plans if name in plan.counts), NEVER)
        if always and plan.fault is Fault.REFUSED:
            do()
            return plan.apply(name, lambda: None)
        return plan.apply(name, do, undo)


#: What a run calls of its store, but for what says that it is alive.
METHODS = frozenset(("open", "commit", "release", "records", "find", "runs", "states", "add_answers"))


class World:
    """What bodies do, held against what the store had acknowledged by then."""

    def __init__(self, store: Faulty) -> None:
        self.store = store
        self.ran: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._identities: dict[str, bytes] = {}
        self._chosen: dict[str, Any] = {}
        self._lock = threading.Lock()
        self.is_sync = True  # whether nothing may be seen that is not durable

    def begins(self, what: str) -> int:
        """At the top of a step's body; how often it was there before."""
        identity = bytes.fromhex(call_id().rpartition(":")[2])
        with self._lock:
            self._identities[what] = identity
            self.ran[what] += 1
            if identity in self.store.acknowledged:
                self.wrong.append(f"{what} runs again, though its result was acknowledged")
            return self.ran[what] - 1

    def uses(self, *whats: str) -> None:
        """Where somebody has the result of those steps."""
        with self._lock:
            for what in whats:
                if self.is_sync and self._identities[what] not in self.store.acknowledged:
                    self.wrong.append(f"the result of {what} was seen before it was acknowledged")

    def chooses(self, what: str, value: Any) -> None:
        """Where somebody has decided by the order of results."""
        with self._lock:
            before = self._chosen.setdefault(what, value)
            if self.is_sync and before != value:
                self.wrong.append(f"{what}: {before!r} was chosen before, and {value!r} now")


# --- The statements that SQLite is given ------------------------------------------------------------------


def sqlite_error(code: int, text: str) -> sqlite3.OperationalError:
    """What the module ``sqlite3`` raises for a result code."""
    error = sqlite3.OperationalError(text)
    error.sqlite_errorcode = code
    return error


SQLITE_ERRORS = {
    "full": (sqlite3.SQLITE_FULL, "database or disk is full"),
    "io": (sqlite3.SQLITE_IOERR, "disk I/O error"),
    "read-only": (sqlite3.SQLITE_READONLY, "attempt to write a readonly database"),
    "locked": (sqlite3.SQLITE_BUSY, "database is locked"),
}


class Statements:
    """Connections on which the plan says which statements fail: ``"any"`` counts each, ``"commit"`` those only."""

    def __init__(self) -> None:
        self.plan = NEVER
        self.made: list[sqlite3.Connection] = []
        self.texts: Counter[str] = Counter()

    def connect(self, *args: Any, **options: Any) -> sqlite3.Connection:
        """In the place of ``sqlite3.connect``."""
        made = _connect(*args, factory=_factory(self), **options)
        self.made.append(made)
        return made

    def run(self, statement: str, do: Callable[[], Any]) -> Any:
        """Give SQLite one statement, or fail."""
        self.texts[statement] += 1
        name = "commit" if statement == sql.COMMIT else "any"
        if "any" in self.plan.counts:
            name = "any"
        if (
            name == "any"
            and statement in {sql.BEGIN_READING, sql.BEGIN_WRITING}
            and self.plan.fault is Fault.UNSURE
        ):
            return do()  # SQLite never begins and says that it has not
        # It ends a statement that fails; one that an error's traceback kept open would keep its snapshot, too.
        return self.plan.apply(name, do, undo=lambda cursor: cursor.close())


_connect = sqlite3.connect


def _factory(statements: Statements) -> type[sqlite3.Connection]:
    class Brittle(sqlite3.Connection):
        def execute(self, statement: str, *parameters: Any) -> sqlite3.Cursor:
            return statements.run(statement, lambda: super(Brittle, self).execute(statement, *parameters))

        def executemany(self, statement: str, rows: Iterable[Any], /) -> sqlite3.Cursor:
            return statements.run(statement, lambda: super(Brittle, self).executemany(statement, rows))

    return Brittle
