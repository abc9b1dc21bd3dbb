"""Journals in one SQLite file, shared by the threads and processes of one machine.

Writing and reading have a connection each, so that a read never waits for the disk to confirm a commit.
Everything that a decision rests on is read in the transaction that acts on it; the only thing remembered
between two calls is which runs *this* object has open.
"""

from __future__ import annotations

import math
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from typing import Self

from msgspec import structs

from weft.checkpoint import sql
from weft.checkpoint import sqlite_rows as stored
from weft.checkpoint.base import (
    OpenRun,
    Record,
    RunRow,
    RunStatus,
    ThreadState,
    Write,
)
from weft.checkpoint.closing import Closing
from weft.checkpoint.codec import Codec
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
    sealed,
    time_of,
    to_bytes,
    to_run,
    to_text,
    unsealed,
)
from weft.checkpoint.sqlite_link import Database, Link, checked_path, checked_timeout
from weft.checkpoint.sqlite_upkeep import tidy
from weft.errors import CorruptDataError

#: Records of forgotten runs that are deleted in one transaction when nobody waits for it.
_CLEARED_AT_ONCE = 5_000


class SqliteSaver(Closing):
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
        self.codec = codec or Codec()
        self.lease = checked_lease(lease)
        self.path = checked_path(path)
        file = Database(self.path, checked_timeout(timeout))
        self._writer = Link(file, sql.BEGIN_WRITING, "write to")
        self._reader = Link(file, sql.BEGIN_READING, "read")
        # The following are guarded by the writer's lock.
        self._owner = Owner(file.owners)
        self._pulse = Pulse(self.lease)
        self._others = Others()
        self._held: dict[str, int] = {}  # the runs that are open in this object, and their fence
        self.keep = checked_keep(keep)
        self._upkeep = None if keep is None else Upkeep(keep)
        watch_forks(self)

    @classmethod
    def from_conn_string(cls, path: str) -> Self:
        """The same as ``SqliteSaver(path)``, by the name that users of LangGraph know."""
        return cls(path)

    # --- Runs ---------------------------------------------------------------------------------------------

    def open(self, request: OpenRun) -> RunRow:
        """Create the run, or take it over from nobody or a dead owner, with a higher ``fence``."""
        with self._writer:
            with self._writing() as db:
                row = self._claim(db, request)
            if row.status is RunStatus.RUNNING:
                self._held[row.run_id] = row.fence
        return row

    def commit(self, writes: Sequence[Write]) -> set[str]:
        """Make all writes durable in one transaction; the ids of runs whose fence was refused."""
        if not writes:
            return set()
        with self._writer:
            with self._writing() as db:
                refused = self._write(db, writes)
            for write in writes:
                ends = write.change is not None and write.change.status is not RunStatus.RUNNING
                if ends or write.run_id in refused:
                    self._let_go(write.run_id, write.fence)
        return refused

    def beat(self) -> None:
        """Say that the owner of what this object has open is alive, unless that was said a moment ago.

        It waits no longer for others that are writing than for a quarter of the lease.
        """
        with self._writer:
            if self._held and self._pulse.is_due():
                with self._writing(self.lease / 4):
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
    def _writing(self, patience: float | None = None) -> Iterator[sqlite3.Connection]:
        """A transaction that writes: a beat of its owner, and a mark outside of the log that it was committed."""
        with self._writer.transaction(patience) as db:
            unchanged = db.total_changes
            yield db
            beats = self._owner.id is not None and (db.total_changes != unchanged or self._pulse.is_due())
            if beats:
                self._say_alive(db)
        if beats:
            self._owner.mark(self._pulse.count)

    # --- Inside a transaction that writes -----------------------------------------------------------------

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
        taken = replace(row, status=RunStatus.RUNNING, fence=row.fence + 1)
        now = request.created or time.time()
        stored.change(
            db,
            run._replace(
                status=STATUS_CODE[taken.status],
                owner=self._enter(db),
                fence=taken.fence,
                updated=time_of(now),
            ),
        )
        return taken

    def _create(self, db: sqlite3.Connection, request: OpenRun) -> RunRow:
        if request.input is None:
            raise run_not_found(request.run_id)
        self._refuse_busy_thread(db, request.thread_id)
        (key,) = db.execute(sql.NEXT_RUN).fetchone()
        now = time_of(request.created or time.time())
        run = StoredRun(
            key=key,
            run_id=to_bytes(request.run_id),
            thread_id=None if request.thread_id is None else to_bytes(request.thread_id),
            workflow=to_bytes(request.workflow),
            status=STATUS_CODE[RunStatus.RUNNING],
            owner=self._enter(db),
            fence=1,
            position=0,
            batches=0,
            size=len(request.input),
            created=now,
            updated=now,
        )
        stored.create(db, run, request.input)
        return stored.row(db, run)

    def _write(self, db: sqlite3.Connection, writes: Sequence[Write]) -> set[str]:
        refused = set()
        rows: list[Iterable[Row]] = []
        ended = 0
        now = time.time()
        for write in writes:
            run = stored.load(db, write.run_id)
            if run is None or not self._owns(run, write.fence):
                refused.add(write.run_id)
                continue
            rows.append(stored.record_rows(run, write.records))
            run = after(run, write.records, now)
            stored.advance(db, run)
            if write.change is not None:
                db.executemany(sql.APPEND_RECORD, chain.from_iterable(rows))
                rows.clear()
                stored.end(db, run, write.change)
                ended += write.change.status in ENDED
        db.executemany(sql.APPEND_RECORD, chain.from_iterable(rows))
        if self._upkeep is not None:
            tidy(db, self._upkeep, ended)
        return refused

    def _owns(self, run: StoredRun, fence: int) -> bool:
        """The fence: whether the run is still this object's, as it was when ``fence`` was given out."""
        return run.owner is not None and run.owner == self._owner.id and run.fence == fence

    def _held_for(self, db: sqlite3.Connection, run: StoredRun) -> float:
        """For how many seconds the run is its owner's at least; 0: nobody has it, or nobody alive."""
        if run.owner is None:
            return 0.0
        if run.owner == self._owner.id:
            return math.inf if self._held.get(to_text(run.run_id)) == run.fence else 0.0
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
        if self._held.get(run_id) == fence:
            del self._held[run_id]
