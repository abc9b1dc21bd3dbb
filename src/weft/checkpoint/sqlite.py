"""Journals in one SQLite file, shared by the threads and processes of one machine.

Writing and reading have a connection each, so that a read never waits for the disk to confirm a commit.
Everything that a decision rests on is read in the transaction that acts on it; the only thing remembered
between two calls is which runs *this* object has open.
"""

from __future__ import annotations

import errno
import math
import os
import sqlite3
import stat
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Final, LiteralString, Self

from msgspec import structs

from weft.checkpoint import sql
from weft.checkpoint.base import (
    Change,
    OpenRun,
    Record,
    RunRow,
    RunStatus,
    ThreadState,
    Write,
)
from weft.checkpoint.closing import Closing
from weft.checkpoint.codec import Codec
from weft.checkpoint.owner import (
    LEASE,
    Others,
    Owner,
    Pulse,
    checked_lease,
    is_left_behind,
    marks,
    refuse_mismatch,
    remove_left_behind,
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
    highest_batch,
    record_columns,
    seal,
    sealed,
    time_of,
    to_bytes,
    to_record,
    to_run,
    to_run_row,
    to_text,
    unsealed,
)
from weft.errors import CorruptDataError, InputError, StoreError


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
    ) -> None:
        self.codec = codec or Codec()
        self.lease = checked_lease(lease)
        self.path = _checked_path(path)
        file = _File(self.path, _checked_timeout(timeout))
        self._writer = _Connection(file, sql.BEGIN_WRITING, "write to")
        self._reader = _Connection(file, sql.BEGIN_READING, "read")
        # The following are guarded by the writer's lock.
        self._owner = Owner(file.owners)
        self._pulse = Pulse(self.lease)
        self._others = Others()
        self._held: dict[str, int] = {}  # the runs that are open in this object, and their fence
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
                run = _load(db, run_id)
                if run is not None and self._owns(run, fence):
                    _change(db, run._replace(owner=None))

    def find(self, run_id: str) -> RunRow | None:
        """The run, if there is one."""
        with self._reader as reader, reader.transaction() as db:
            run = _load(db, run_id)
            return _row(db, run) if run else None

    def runs(self, *, thread_id: str | None = None, limit: int = 100) -> list[RunRow]:
        """The newest runs first."""
        with self._reader as reader, reader.transaction() as db:
            if thread_id is None:
                runs = db.execute(sql.NEWEST_RUNS, (max(limit, 0),)).fetchall()
            else:
                runs = db.execute(sql.NEWEST_RUNS_OF_THREAD, (to_bytes(thread_id), max(limit, 0))).fetchall()
            return [_row(db, to_run(run)) for run in runs]

    def delete_run(self, run_id: str) -> bool:
        """Forget a run that no living owner runs; whether there was one.

        What it has saved in its thread stays.
        """
        with self._writer, self._writing() as db:
            run = _load(db, run_id)
            if run is None:
                return False
            if held := self._held_for(db, run):
                raise run_busy(run_id, held)
            _delete(db, run.key)
            return True

    # --- Records ------------------------------------------------------------------------------------------

    def records(self, run_id: str, *, after: int = 0, limit: int = 1000) -> list[tuple[int, Record]]:
        """A page of the journal in the order of writing, each with its position; after a position."""
        with self._reader as reader, reader.transaction() as db:
            run = _load(db, run_id)
            if run is None:
                return []
            first = min(max(after, 0), run.position)
            last = min(first + max(limit, 0), run.position)
            rows = db.execute(sql.PAGE_OF_RECORDS, (_place(run, first), _place(run, last))).fetchall()
        if len(rows) != last - first:
            raise CorruptDataError(
                f"{self.path}: records of run {shown(run_id)} are missing from its journal"
            )
        return [(position, _record(row)) for position, row in enumerate(rows, first + 1)]

    def add_answers(self, run_id: str, answers: Sequence[Record]) -> None:
        """Add answers to a run whoever owns it."""
        with self._writer, self._writing() as db:
            run = _load(db, run_id)
            if run is None:
                raise run_not_found(run_id)
            rows = _record_rows(run, [structs.replace(answer, batch=0) for answer in answers])
            db.executemany(sql.APPEND_RECORD, rows)
            _advance(db, run._replace(position=run.position + len(answers), updated=time.time()))

    # --- Threads ------------------------------------------------------------------------------------------

    def states(self, thread_id: str, *, limit: int = 100) -> list[ThreadState]:
        """The saved values of a thread, the newest first."""
        with self._reader as reader, reader.transaction() as db:
            rows = db.execute(sql.NEWEST_STATES, (to_bytes(thread_id), max(limit, 0))).fetchall()
        return [_state(row) for row in rows]

    def save_state(self, thread_id: str, value: bytes, *, created: float) -> None:
        """Add a saved value to a thread that no living owner runs."""
        with self._writer, self._writing() as db:
            self._refuse_busy_thread(db, thread_id)
            _append_state(db, to_bytes(thread_id), value, created, None)

    def delete_thread(self, thread_id: str) -> None:
        """Forget a thread that no living owner runs, with its runs and saved values."""
        with self._writer, self._writing() as db:
            self._refuse_busy_thread(db, thread_id)
            for (key,) in db.execute(sql.RUNS_OF_THREAD, (to_bytes(thread_id),)).fetchall():
                _delete(db, key)
            db.execute(sql.DELETE_STATES, (to_bytes(thread_id),))

    # --- Life ---------------------------------------------------------------------------------------------

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
        run = _load(db, request.run_id)
        if run is None:
            return self._create(db, request)
        row = _row(db, run)
        refuse_mismatch(row, request)
        if row.status is RunStatus.FINISHED:
            return row
        if held := self._held_for(db, run):
            raise run_busy(row.run_id, held)
        self._refuse_busy_thread(db, row.thread_id)
        taken = replace(row, status=RunStatus.RUNNING, fence=row.fence + 1)
        now = request.created or time.time()
        _change(
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
            created=now,
            updated=now,
        )
        db.execute(sql.CREATE_RUN, sealed(run))
        db.execute(sql.CREATE_INPUT, sealed((key, request.input)))
        return _row(db, run)

    def _write(self, db: sqlite3.Connection, writes: Sequence[Write]) -> set[str]:
        refused = set()
        rows: list[Iterable[Row]] = []
        now = time.time()
        for write in writes:
            run = _load(db, write.run_id)
            if run is None or not self._owns(run, write.fence):
                refused.add(write.run_id)
                continue
            rows.append(_record_rows(run, write.records))
            run = run._replace(
                position=run.position + len(write.records),
                batches=highest_batch(run.batches, write.records),
                updated=now,
            )
            _advance(db, run)
            if write.change is not None:
                _apply(db, run, write.change)
        db.executemany(sql.APPEND_RECORD, chain.from_iterable(rows))
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
            _change(db, run._replace(owner=None))

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


# --- Reading and writing rows -----------------------------------------------------------------------------


def _load(db: sqlite3.Connection, run_id: str) -> StoredRun | None:
    columns = db.execute(sql.RUN, (to_bytes(run_id),)).fetchone()
    return to_run(columns) if columns else None


def _advance(db: sqlite3.Connection, run: StoredRun) -> None:
    """Store a run that has more records."""
    db.execute(sql.ADVANCE_RUN, (run.position, run.batches, run.updated, seal(run), run.key))


def _change(db: sqlite3.Connection, run: StoredRun) -> None:
    """Store a run that has another status or owner."""
    db.execute(sql.CHANGE_RUN, (run.status, run.owner, run.fence, run.updated, seal(run), run.key))


def _apply(db: sqlite3.Connection, run: StoredRun, change: Change) -> None:
    status = STATUS_CODE[change.status]
    owner = run.owner if change.status is RunStatus.RUNNING else None
    _change(db, run._replace(status=status, owner=owner))
    db.execute(sql.SET_OUTCOME, sealed((run.key, status, change.output, change.error)))
    if change.saved is not None and run.thread_id is not None:
        _append_state(db, run.thread_id, change.saved, run.updated, run.run_id)


def _append_state(
    db: sqlite3.Connection, thread_id: bytes, value: bytes, created: float, run_id: bytes | None
) -> None:
    (number,) = db.execute(sql.NEXT_STATE, (thread_id,)).fetchone()
    db.execute(sql.APPEND_STATE, sealed((thread_id, number, value, time_of(created), run_id)))


def _delete(db: sqlite3.Connection, key: int) -> None:
    for statement in sql.DELETE_RUN:
        db.execute(statement, {"run": key})


def _row(db: sqlite3.Connection, run: StoredRun) -> RunRow:
    """The run as callers see it."""
    return to_run_row(
        run,
        db.execute(sql.INPUT, (run.key,)).fetchone(),
        db.execute(sql.OUTCOME, (run.key,)).fetchone(),
    )


def _place(run: StoredRun, position: int) -> int:
    return (run.key << 32) + position


def _record_rows(run: StoredRun, records: Iterable[Record]) -> Iterator[Row]:
    """The rows of records that follow what the run has."""
    for place, record in enumerate(records, _place(run, run.position + 1)):
        yield sealed((place, *record_columns(record)))


def _record(columns: Row) -> Record:
    return to_record(unsealed(columns, "a record")[1:])


def _state(columns: Row) -> ThreadState:
    thread_id, number, value, created, run_id = unsealed(columns, "a saved value")
    return ThreadState(
        to_text(thread_id), number, value, created, None if run_id is None else to_text(run_id)
    )


# --- Connections ------------------------------------------------------------------------------------------


_Identity = tuple[tuple[int, int], ...]  # the device and number of the file and of its companions


class _Connection:
    """A connection, opened when it is first used, and the lock that gives it to one thread at a time."""

    def __init__(self, file: _File, begin: LiteralString, doing: str) -> None:
        self.lock = threading.Lock()
        self._file = file
        self._begin = begin
        self._doing = doing
        self._db: sqlite3.Connection | None = None
        self._opened: _Identity | None = None
        self.waited = 0.0  # seconds, for the transaction that is going on to begin

    def __enter__(self) -> Self:
        self.lock.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.lock.release()

    @contextmanager
    def transaction(self, patience: float | None = None) -> Iterator[sqlite3.Connection]:
        """One transaction, committed at the end, rolled back on any error.

        Others that are writing are waited for as long as the file says, or for ``patience`` seconds.
        """
        try:
            db = self._usable()
            try:
                began = time.monotonic()
                self._file.wait_for(db, self._begin, patience)
                self.waited = time.monotonic() - began
                yield db
                db.execute(sql.COMMIT)
            except BaseException:
                with suppress(sqlite3.Error):
                    db.rollback()
                if db.in_transaction:  # it would keep all others out for as long as this connection lives
                    self.close()
                raise
        except (sqlite3.Error, OSError, OverflowError, UnicodeDecodeError) as error:
            raise self._file.failure(error, self._doing) from error

    def close(self) -> None:
        db, self._db = self._db, None
        if db is not None:
            db.close()

    def forget(self) -> None:
        """In a forked child: leave the parent's connection alone; even closing it would touch its files."""
        if self._db is not None:
            _left_alone.append(self._db)
            self._db = None

    def _usable(self) -> sqlite3.Connection:
        if self._db is None:
            self._db, self._opened = self._file.open()
            if self._begin == sql.BEGIN_WRITING:  # the only place to wait, and we know better for how long
                self._db.execute(sql.DO_NOT_WAIT)
        elif not self._file.is_still(self._opened):
            with suppress(sqlite3.Error):  # the file that was moved away takes along what is only in its log
                self._db.execute(sql.MOVE_LOG)
            self.close()
            raise StoreError(
                f"{self._file.path}, or its -wal or -shm, was deleted or replaced while it was in use; "
                "what is written now would be lost with the old file"
            )
        return self._db


#: Seconds between the first attempts to begin, when SQLite does not wait by itself, and between later ones.
_ASK_AGAIN = 0.0005
_ASK_SELDOM = 0.008

_left_alone: list[sqlite3.Connection] = []


class _File:
    """The database file: how it is created, opened and recognised."""

    def __init__(self, path: str, timeout: float) -> None:
        self.path = path
        self.owners = f"{path}-owners"  # the directory of their lock files
        self._timeout = timeout

    def open(self) -> tuple[sqlite3.Connection, _Identity]:
        """A connection to the database, created and brought up to date if need be."""
        self._create()
        acknowledged = marks(self.owners)  # before what is there is looked at: that only grows
        with self._one_at_a_time():
            db = sqlite3.connect(
                self.path, timeout=self._timeout, isolation_level=None, check_same_thread=False
            )
            try:
                self._share_mode()
                self._prepare(db)
                self._refuse_loss(db, acknowledged)
                return db, self._identity()
            except BaseException:
                db.close()
                raise

    @contextmanager
    def _one_at_a_time(self) -> Iterator[None]:
        """Keep other processes from opening the file meanwhile.

        Several that create the schema and turn write-ahead logging on at once can lock each other out for good:
        SQLite waits for none of the locks that this takes.
        """
        try:
            import fcntl  # noqa: PLC0415 - not on every system

            folder = os.open(
                Path(self.path).parent, os.O_RDONLY | os.O_CLOEXEC
            )  # no file of our own to clean up
        except (ImportError, OSError):
            yield
            return
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)

    def wait_for(
        self, db: sqlite3.Connection, statement: LiteralString, patience: float | None = None
    ) -> sqlite3.Cursor:
        """Execute what begins a transaction or changes the journal's mode, waiting for other connections.

        SQLite does not wait for a process that is just closing the file for the last time, mending its WAL or turning
        it on: it says at once that the file is busy. (Where we write, it never waits by itself: the time is ours to
        choose.) Nothing was done yet, so it is asked again.
        """
        deadline = time.monotonic() + min(self._timeout, math.inf if patience is None else patience)
        pause = _ASK_AGAIN
        while True:
            try:
                return db.execute(statement)
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() >= deadline:
                    raise
                time.sleep(pause)
                pause = min(2 * pause, _ASK_SELDOM)

    def is_still(self, opened: _Identity | None) -> bool:
        """Whether the path leads to the file that was opened."""
        try:
            return self._identity() == opened
        except FileNotFoundError:
            return False

    def _identity(self) -> _Identity:
        # With every transaction, and Path takes twice as long.
        there = [os.stat(self.path + end) for end in ("", *_COMPANIONS)]  # noqa: PTH116
        return tuple((each.st_dev, each.st_ino) for each in there)

    def failure(self, error: Exception, doing: str) -> StoreError:
        """What went wrong, where, and what to do about it."""
        if isinstance(error, UnicodeDecodeError):  # from sqlite3, which was to quote a damaged schema
            code = sqlite3.SQLITE_CORRUPT
        elif isinstance(error, OSError):
            code = _CODE_OF_ERRNO.get(error.errno or 0, 0)
        else:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        advice = _ADVICE.get(code, "")
        return StoreError(f"cannot {doing} {self.path}: {error}{advice.format(timeout=self._timeout)}")

    def _create(self) -> None:
        """Make an empty file that only its user can read; SQLite gives its companions the same mode."""
        # Closing a file lets go of all locks that the process has on it, so no other thread may open the
        # database between these two calls.
        if not Path(self.path).exists():  # somebody has removed it: what its owners had is meant to be gone
            remove_left_behind(self.owners)
        try:
            with _creating, suppress(FileExistsError):
                os.close(os.open(self.path, _CREATE, 0o600))
        except FileNotFoundError as error:
            raise StoreError(f"the directory of {self.path} does not exist; create it first") from error
        if (
            0 < Path(self.path).stat().st_size < 512
        ):  # SQLite would take it for an empty one and write over it
            raise StoreError(f"{self.path} is no database; give another path")

    def _share_mode(self) -> None:
        """Give companions the mode of the file: those made while it was read-only would stay so."""
        mode = stat.S_IMODE(Path(self.path).stat().st_mode)
        for end in _COMPANIONS:
            companion = Path(self.path + end)
            with suppress(OSError):  # none is there, or it is another user's
                if not companion.is_symlink() and stat.S_IMODE(companion.stat().st_mode) != mode:
                    companion.chmod(mode)

    def _prepare(self, db: sqlite3.Connection) -> None:
        for pragma in (sql.SYNCHRONOUS, sql.UNTRUSTED_SCHEMA, sql.CHECK_CELLS):
            db.execute(pragma)
        outdated = self._version(db) < len(sql.STEPS)
        if outdated:
            self._migrate(db)
        self._use_wal(db)
        if outdated:
            # A WAL that lost its end must never take the schema along: the file would pass for an empty one.
            db.execute(sql.CHECKPOINT)

    def _refuse_loss(self, db: sqlite3.Connection, acknowledged: dict[str, int]) -> None:
        """See to it that all is there that an owner was told is committed.

        A log that has lost its end is a shorter log, and nothing inside of it can tell.
        """
        rows = [unsealed(columns, "an owner") for columns in db.execute(sql.OWNERS).fetchall()]
        there = {owner: beat for owner, beat, *_ in rows}
        for owner, mark in acknowledged.items():
            if there.get(owner, 0) < mark and is_left_behind(self.owners, owner):
                raise CorruptDataError(
                    f"{self.path} has lost what was committed last: {mark - there.get(owner, 0)} commits of a "
                    f"process that has ended are not there. Put its -wal file or a backup back; or, to go on "
                    f"with what is there, remove the directory {self.owners}"
                )

    def _version(self, db: sqlite3.Connection) -> int:
        application, version, objects = db.execute(sql.INSPECT).fetchone()
        if not application and not version and not objects:
            return 0
        if application != sql.APPLICATION:
            raise StoreError(f"{self.path} is a database of another application; give another path")
        if version > len(sql.STEPS):
            raise StoreError(
                f"{self.path} was written by a newer version of Weft (schema {version}; "
                f"this one knows {len(sql.STEPS)}); upgrade Weft"
            )
        return int(version)

    def _migrate(self, db: sqlite3.Connection) -> None:
        db.execute(sql.BEGIN_WRITING)
        try:
            for step in sql.STEPS[self._version(db) :]:
                for statement in step:
                    db.execute(statement)
            db.execute(sql.COMMIT)
        except BaseException:
            with suppress(sqlite3.Error):
                db.rollback()
            raise

    def _use_wal(self, db: sqlite3.Connection) -> None:
        """Turn write-ahead logging on."""
        (mode,) = self.wait_for(db, sql.WAL).fetchone()
        if mode != "wal":
            raise StoreError(
                f"{self.path} is on a file system without shared memory (a network drive?), "
                "which several processes cannot use at once; put it on a local disk"
            )


_CREATE: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL
_creating = threading.Lock()

#: What SQLite puts beside the file while it is in use: the log, and its index.
_COMPANIONS: Final = ("-wal", "-shm")

_ADVICE: Final = {
    sqlite3.SQLITE_BUSY: "; another process has kept it locked for {timeout:g} s: wait for it, or end it",
    sqlite3.SQLITE_FULL: "; free some space, then resume: what was committed is safe",
    sqlite3.SQLITE_IOERR: "; see to the disk and its quota, then resume: what was committed is safe",
    sqlite3.SQLITE_READONLY: "; make the file and its directory writable and resume the run",
    sqlite3.SQLITE_CANTOPEN: "; its directory must exist and be writable, the path must be a file, "
    "and this process must be able to open more files",
    sqlite3.SQLITE_NOTADB: "; give the path of a database of Weft, or a new one",
    sqlite3.SQLITE_CORRUPT: "; the file is damaged: put a backup in its place, or try `.recover` of sqlite3",
}

_CODE_OF_ERRNO: Final = {
    errno.ENOSPC: sqlite3.SQLITE_FULL,
    errno.EDQUOT: sqlite3.SQLITE_FULL,
    errno.EFBIG: sqlite3.SQLITE_FULL,
    errno.EIO: sqlite3.SQLITE_IOERR,
    errno.EACCES: sqlite3.SQLITE_READONLY,
    errno.EPERM: sqlite3.SQLITE_READONLY,
    errno.EROFS: sqlite3.SQLITE_READONLY,
    errno.ENOTDIR: sqlite3.SQLITE_CANTOPEN,
    errno.EISDIR: sqlite3.SQLITE_CANTOPEN,
    errno.EMFILE: sqlite3.SQLITE_CANTOPEN,
    errno.ENFILE: sqlite3.SQLITE_CANTOPEN,
}


def _checked_path(path: str | os.PathLike[str]) -> str:
    """The absolute path of the file itself, so that all who use it agree on the names beside it."""
    name = os.fspath(path)
    if name == ":memory:":
        raise InputError("SqliteSaver keeps a file; for a store in memory use InMemorySaver()")
    if not isinstance(name, str) or not name or "\0" in name:
        raise InputError(f"SqliteSaver needs the path of a file, not {path!r}")
    return os.path.realpath(name)


def _checked_timeout(timeout: float) -> float:
    if isinstance(timeout, bool) or not math.isfinite(timeout) or timeout < 0:
        raise InputError(f"timeout is a number of seconds, 0 or more, not {timeout!r}")
    return timeout
