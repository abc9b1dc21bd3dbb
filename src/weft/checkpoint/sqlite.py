"""Journals in one SQLite file, shared by the threads and processes of one machine.

Writing and reading have a connection each, so that a read never waits for the disk to confirm a commit.
Everything that a decision rests on is checked in the transaction that acts on it. What is remembered of the runs that
are open in this object, so that a commit needs to read nothing, is compared there with what the file has.
"""

from __future__ import annotations

import math
import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from msgspec import structs

from weft.checkpoint import sql
from weft.checkpoint import sqlite_rows as stored
from weft.checkpoint.base import (
    Change,
    Checkpointer,
    OpenRun,
    Record,
    RunRow,
    ThreadState,
    Write,
    usual_codec,
)
from weft.checkpoint.closing import Closing
from weft.checkpoint.keep import ENDED, Keep, Upkeep, checked_keep
from weft.checkpoint.owner import (
    LEASE,
    Others,
    Owner,
    Pulse,
    checked_lease,
    refuse_mismatch,
    run_busy,
    run_not_found,
    shown,
    thread_busy,
    watch_forks,
)
from weft.checkpoint.rows import (
    STATUS_CODE,
    Row,
    StoredRun,
    after,
    new_row,
    new_run,
    sealed,
    time_of,
    to_bytes,
    to_run,
    to_text,
    unsealed,
)
from weft.checkpoint.sent import sent
from weft.checkpoint.sqlite_link import (
    Database,
    InUseError,
    Link,
    checked_path,
    checked_timeout,
    patience,
)
from weft.checkpoint.sqlite_upkeep import tidy
from weft.core.status import RunStatus
from weft.errors import CheckpointError, CorruptDataError, StoreError

if TYPE_CHECKING:
    from weft.checkpoint.codec import Codec

#: Records of forgotten runs that are deleted in one transaction when nobody waits for it.
_CLEARED_AT_ONCE = 5_000


class SqliteSaver(Closing, Checkpointer):
    """A checkpointer that keeps journals in one SQLite file.

    Any number of threads and processes of a machine may use the file at the same time, each process with an
    object of its own. A commit is on the disk when it returns. Nothing is opened or created before the first
    use; a closed object opens again when it is used. It is a context manager, sync and async, that closes.

    Beside the file there are, while it is in use, SQLite's ``-wal`` and ``-shm`` and a directory ``-owners``
    with a lock file for each living owner of runs. All are readable by their user only.

    Args:
        path: The file. Its directory must exist.
        codec: How values become bytes; the default knows the types that come with Python.
        timeout: For how many seconds to wait for another process that is writing.
        lease: After how many seconds of silence others may take over what this object has open. While it has
            something open, the engine sees to it that it :meth:`beats <beat>` every ``lease / 4`` seconds; only a
            process that has stopped without ending does not. (One that has stopped in the middle of a commit
            keeps the file locked: then others wait for ``timeout``, and say so.)
        keep: What it keeps of runs that have ended; everything, unless told. Each object forgets by its own, with
            what it commits.

    Raises:
        InputError: The path is ``":memory:"`` or empty, or timeout or lease is no number of seconds.
    """

    instant = False  # a commit waits for the disk, and at times for other processes

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        codec: Codec | None = None,
        timeout: float = 60.0,
        lease: float = LEASE,
        keep: Keep | None = None,
    ) -> None:
        self.codec = codec or usual_codec()
        self.lease = checked_lease(lease)
        self.path = checked_path(path)
        file = Database(self.path, checked_timeout(timeout))
        self._writer = Link(file, sql.BEGIN_WRITING, "write to")
        self._reader = Link(file, sql.BEGIN_READING, "read")
        # The following are guarded by the writer's lock.
        self._owner = Owner(file.owners)
        self._pulse = Pulse(self.lease)
        self._others = Others()
        self._held: dict[str, StoredRun] = {}  # the runs that are open in this object
        self.keep = checked_keep(keep)
        self._upkeep = None if keep is None else Upkeep(keep)
        self._sent = sent(self.path, timeout=timeout, lease=lease)
        watch_forks(self)

    def __reduce__(self) -> tuple[Any, ...]:
        """In another process: a store of the same file, opened there."""
        return self._sent(self)

    @classmethod
    def from_conn_string(cls, path: str) -> Self:
        """The same as ``SqliteSaver(path)``, by the name that users of LangGraph know."""
        return cls(path)

    # --- Runs ---------------------------------------------------------------------------------------------

    def open_many(self, requests: Sequence[OpenRun]) -> list[RunRow | CheckpointError]:
        """Create each run, or take it over from nobody or a dead owner; its row, or why it cannot be had."""
        if not requests:
            return []
        found: list[RunRow | CheckpointError] = []
        with self._writer:
            try:
                with self._writing() as db:
                    for request in requests:
                        found.append(self._opened(db, request))  # noqa: PERF401 - it is to be known if one fails
            except BaseException:
                for row in found:
                    if isinstance(row, RunRow):
                        self._let_go(row.run_id, row.fence)
                raise
        return found

    def commit(self, writes: Sequence[Write]) -> set[str]:
        """Make all writes durable in one transaction; the ids of runs whose fence was refused."""
        if not writes:
            return set()
        with self._writer:
            with self._writing() as db:
                written = self._write(db, writes)
            self._held.update((name, run) for name, run in written.runs.items() if name in self._held)
            for write in writes:
                ends = write.change is not None and write.change.status is not RunStatus.RUNNING
                if ends or write.run_id in written.refused:
                    self._let_go(write.run_id, write.fence)
        return written.refused

    def commit_at_once(self, writes: Sequence[Write]) -> set[str] | None:
        """As :meth:`commit`, if nobody else is writing; None, and nothing was done, if somebody is."""
        try:
            with patience(0.0):
                return self.commit(writes)
        except InUseError:
            return None

    def beat(self) -> None:
        """Say that the owner of what this object has open is alive, unless that was said a moment ago.

        It waits no longer for others that are writing than for a quarter of the lease.
        """
        with self._writer:
            if self._held and self._pulse.is_due():
                with patience(self.lease / 4), self._writing():
                    pass

    def release(self, run_id: str, fence: int) -> None:
        """Give a run up without changing what it is: it stays RUNNING, and anybody may take it over.

        In this process it is free even when the store cannot be written to.
        """
        with self._writer:
            self._let_go(run_id, fence)
            with self._writing() as db:
                run = stored.load(db, run_id)
                if run is not None and self._owns(run, fence):
                    stored.change(db, run._replace(owner=None))

    def find(self, run_id: str) -> RunRow | None:
        """The run, if there is one."""
        with self._reader as reader, reader.transaction() as db:
            run = stored.load(db, run_id)
            return stored.row(db, run) if run else None

    def runs(self, *, thread_id: str | None = None, limit: int = 100) -> list[RunRow]:
        """The newest runs first."""
        with self._reader as reader, reader.transaction() as db:
            if thread_id is None:
                runs = db.execute(sql.NEWEST_RUNS, (max(limit, 0),)).fetchall()
            else:
                runs = db.execute(sql.NEWEST_RUNS_OF_THREAD, (to_bytes(thread_id), max(limit, 0))).fetchall()
            return [stored.row(db, to_run(run)) for run in runs]

    def delete_run(self, run_id: str) -> bool:
        """Forget a run that no living owner runs; whether there was one.

        What it has saved in its thread stays.
        """
        with self._writer, self._writing() as db:
            run = stored.load(db, run_id)
            if run is None:
                return False
            if held := self._held_for(db, run):
                raise run_busy(run_id, held)
            stored.delete(db, run)
            return True

    # --- Records ------------------------------------------------------------------------------------------

    def records(self, run_id: str, *, after: int = 0, limit: int = 1000) -> list[tuple[int, Record]]:
        """A page of the journal in the order of writing, each with its position; after a position."""
        with self._reader as reader, reader.transaction() as db:
            run = stored.load(db, run_id)
            if run is None:
                return []
            first = min(max(after, 0), run.position)
            last = min(first + max(limit, 0), run.position)
            rows = stored.page(db, run, first, last)
        if len(rows) != last - first:
            raise CorruptDataError(
                f"{self.path}: records of run {shown(run_id)} are missing from its journal"
            )
        return [(position, stored.record(row)) for position, row in enumerate(rows, first + 1)]

    def add_answers(self, run_id: str, answers: Sequence[Record]) -> None:
        """Add answers to a run whoever owns it."""
        with self._writer, self._writing() as db:
            run = stored.load(db, run_id)
            if run is None:
                raise run_not_found(run_id)
            records = [structs.replace(answer, batch=0) for answer in answers]
            db.executemany(sql.APPEND_RECORD, stored.record_rows(run, records))
            stored.advance(db, after(run, records, time.time()))

    # --- Threads ------------------------------------------------------------------------------------------

    def states(self, thread_id: str, *, limit: int = 100) -> list[ThreadState]:
        """The saved values of a thread, the newest first."""
        with self._reader as reader, reader.transaction() as db:
            rows = db.execute(sql.NEWEST_STATES, (to_bytes(thread_id), max(limit, 0))).fetchall()
        return [stored.state(row) for row in rows]

    def save_state(self, thread_id: str, value: bytes, *, created: float) -> None:
        """Add a saved value to a thread that no living owner runs."""
        with self._writer, self._writing() as db:
            self._refuse_busy_thread(db, thread_id)
            stored.append_state(db, to_bytes(thread_id), value, created, None)

    def delete_thread(self, thread_id: str) -> None:
        """Forget a thread that no living owner runs, with its runs and saved values."""
        with self._writer, self._writing() as db:
            self._refuse_busy_thread(db, thread_id)
            for columns in db.execute(sql.RUNS_OF_THREAD, (to_bytes(thread_id),)).fetchall():
                stored.delete(db, to_run(columns))
            db.execute(sql.DELETE_STATES, (to_bytes(thread_id),))

    # --- Life ---------------------------------------------------------------------------------------------

    def vacuum(self) -> None:
        """Give the space of what was deleted back to the disk. Nobody else can write meanwhile.

        The file is written anew for that, so the disk needs room for a second one.
        """
        with self._writer as writer:
            while True:
                with writer.transaction() as db:
                    if not stored.clear(db, _CLEARED_AT_ONCE):
                        break
            writer.alone(sql.VACUUM, sql.CHECKPOINT)

    def close(self) -> None:
        """Close files and connections. Runs that are still open in this object are free for others."""
        with self._writer as writer:
            self._held.clear()
            self._owner.leave()
            writer.close()
        with self._reader as reader:
            reader.close()

    def __repr__(self) -> str:
        return f"SqliteSaver({self.path!r})"

    def before_fork(self) -> None:
        """Let no fork happen while a thread is inside SQLite: the child could never enter it again."""
        self._writer.lock.acquire()
        self._reader.lock.acquire()

    def after_fork(self, *, child: bool) -> None:
        """Go on. A child starts anew: connections, lock and runs are its parent's."""
        if child:
            self._writer.forget()
            self._reader.forget()
            self._owner.forget()
            self._held.clear()
        self._reader.lock.release()
        self._writer.lock.release()

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction that writes: a beat of its owner, and a mark outside of the log that it was committed."""
        with self._writer.transaction() as db:
            unchanged = db.total_changes
            yield db
            beats = self._owner.id is not None and (db.total_changes != unchanged or self._pulse.is_due())
            if beats:
                self._say_alive(db)
        if beats:
            self._owner.mark(self._pulse.count)

    # --- Inside a transaction that writes -----------------------------------------------------------------

    def _opened(self, db: sqlite3.Connection, request: OpenRun) -> RunRow | CheckpointError:
        try:
            return self._claim(db, request)
        except StoreError:
            raise
        except CheckpointError as error:
            return error

    def _claim(self, db: sqlite3.Connection, request: OpenRun) -> RunRow:
        run = stored.load(db, request.run_id)
        if run is None:
            return self._create(db, request)
        row = stored.row(db, run)
        refuse_mismatch(row, request)
        if row.status is RunStatus.FINISHED:
            return row
        if held := self._held_for(db, run):
            raise run_busy(row.run_id, held)
        self._refuse_busy_thread(db, row.thread_id)
        taken = run._replace(
            status=STATUS_CODE[RunStatus.RUNNING],
            owner=self._enter(db),
            fence=run.fence + 1,
            updated=time_of(request.created or time.time()),
        )
        stored.change(db, taken)
        self._held[row.run_id] = taken
        return structs.replace(row, status=RunStatus.RUNNING, fence=taken.fence)

    def _create(self, db: sqlite3.Connection, request: OpenRun) -> RunRow:
        if request.input is None:
            raise run_not_found(request.run_id)
        self._refuse_busy_thread(db, request.thread_id)
        (key,) = db.execute(sql.NEXT_RUN).fetchone()
        run = new_run(request, request.input, key, self._enter(db))
        stored.create(db, run, request.input)
        self._held[request.run_id] = run
        return new_row(request, request.input, run)

    def _write(self, db: sqlite3.Connection, writes: Sequence[Write]) -> _Written:
        written = _Written()
        now = time.time()
        for write in writes:
            known = written.runs.get(write.run_id) or self._held.get(write.run_id)
            found = self._grown(db, known, write, now)
            if found is None:
                written.refused.add(write.run_id)
                continue
            was, run = found
            written.runs[write.run_id] = run
            written.records += stored.record_rows(was, write.records)
            if write.change is not None:
                written.end(db, run, write.change)
        written.flush(db)
        if self._upkeep is not None:
            tidy(db, self._upkeep, written.ended)
        return written

    def _grown(
        self, db: sqlite3.Connection, known: StoredRun | None, write: Write, now: float
    ) -> tuple[StoredRun, StoredRun] | None:
        """Store in its row what a run has been given: the run before and after; None if another has it."""
        if known is not None and self._owns(known, write.fence):
            run = after(known, write.records, now, write.change)
            if stored.update(db, known, run):
                return known, run
        # Somebody has added answers, or has taken it over.
        there = stored.load(db, write.run_id)
        if there is None or not self._owns(there, write.fence):
            return None
        run = after(there, write.records, now, write.change)
        stored.update(db, there, run)
        return there, run

    def _owns(self, run: StoredRun, fence: int) -> bool:
        """The fence: whether the run is still this object's, as it was when ``fence`` was given out."""
        return run.owner is not None and run.owner == self._owner.id and run.fence == fence

    def _held_for(self, db: sqlite3.Connection, run: StoredRun) -> float:
        """For how many seconds the run is its owner's at least; 0: nobody has it, or nobody alive."""
        if run.owner is None:
            return 0.0
        if run.owner == self._owner.id:
            held = self._held.get(to_text(run.run_id))
            return math.inf if held is not None and held.fence == run.fence else 0.0
        if not self._owner.is_alive(run.owner):
            self._others.forget(run.owner)
            return 0.0
        columns = db.execute(sql.OWNER, (run.owner,)).fetchone()
        _, beat, lease = unsealed(columns, "an owner") if columns else (None, None, self.lease)
        return self._others.patience(run.owner, beat, lease, self._writer.waited)

    def _refuse_busy_thread(self, db: sqlite3.Connection, thread_id: str | None) -> None:
        """See to it that nobody writes to a run of this thread: a silent owner might wake up."""
        if thread_id is None:
            return
        for columns in db.execute(sql.OWNED_RUNS_OF_THREAD, (to_bytes(thread_id),)).fetchall():
            run = to_run(columns)
            if held := self._held_for(db, run):
                raise thread_busy(thread_id, to_text(run.run_id), held)
            stored.change(db, run._replace(owner=None))

    def _enter(self, db: sqlite3.Connection) -> str:
        """Be an owner, and say so."""
        if self._owner.id is None:
            self._pulse.stop()
            owner = self._owner.enter()
            for columns in db.execute(sql.OWNERS).fetchall():
                other, *_ = unsealed(columns, "an owner")
                if other != owner and not self._owner.is_alive(other):
                    db.execute(sql.DELETE_OWNER, (other,))
        return self._owner.enter()

    def _say_alive(self, db: sqlite3.Connection) -> None:
        db.execute(sql.BEAT, sealed((self._owner.enter(), self._pulse.next(), self.lease)))

    def _let_go(self, run_id: str, fence: int) -> None:
        held = self._held.get(run_id)
        if held is not None and held.fence == fence:
            del self._held[run_id]


@dataclass(slots=True)
class _Written:
    """What a commit has done, and the rows that it still has to add."""

    runs: dict[str, StoredRun] = field(default_factory=dict)  # as they are now
    refused: set[str] = field(default_factory=set)
    records: list[Row] = field(default_factory=list)
    outcomes: list[Row] = field(default_factory=list)
    ended: int = 0  # runs

    def end(self, db: sqlite3.Connection, run: StoredRun, change: Change) -> None:
        """Add how a run has ended, which has all of its records by now."""

        def values() -> Iterator[tuple[int, bytes]]:
            self.flush(db)
            return stored.values(db, run)

        self.outcomes.append(stored.outcome_row(run, change, values))
        self.ended += change.status in ENDED
        if change.saved is not None and run.thread_id is not None:
            stored.append_state(db, run.thread_id, change.saved, run.updated, run.run_id)

    def flush(self, db: sqlite3.Connection) -> None:
        """Add the rows."""
        db.executemany(sql.APPEND_RECORD, self.records)
        db.executemany(sql.SET_OUTCOME, self.outcomes)
        self.records.clear()
        self.outcomes.clear()
