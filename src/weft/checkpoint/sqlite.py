"""Journals in one SQLite file, shared by the threads and processes of one machine.

Writing and reading have a connection each, so that a read never waits for the disk to confirm a commit.
Everything that a decision rests on is read in the transaction that acts on it; the only thing remembered
between two calls is which runs *this* object has open.
"""

from __future__ import annotations

import math
import os
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any, Final, LiteralString, NamedTuple, Self
from zlib import crc32

import msgspec
from msgspec import structs

from weft.checkpoint import sql
from weft.checkpoint.base import (
    Change,
    OpenRun,
    Record,
    RecordKind,
    RunRow,
    RunStatus,
    ThreadState,
    Write,
)
from weft.checkpoint.codec import Codec
from weft.checkpoint.owner import (
    Owner,
    refuse_mismatch,
    run_busy,
    run_not_found,
    shown,
    thread_busy,
    watch_forks,
)
from weft.errors import CorruptDataError, InputError, StoreError

# Codes in the file: never change one, only add.
_STATUS_CODE: Final = {
    RunStatus.RUNNING: 1,
    RunStatus.SUSPENDED: 2,
    RunStatus.FINISHED: 3,
    RunStatus.FAILED: 4,
    RunStatus.CANCELLED: 5,
}
_KIND_CODE: Final = {
    RecordKind.OK: 1,
    RecordKind.FAILED: 2,
    RecordKind.TIMED_OUT: 3,
    RecordKind.WENT_ON: 4,
    RecordKind.RETRY: 5,
    RecordKind.QUESTION: 6,
    RecordKind.ANSWER: 7,
    RecordKind.WITHDRAWN: 8,
}
_STATUS: Final = {code: status for status, code in _STATUS_CODE.items()}
_KIND: Final = {code: kind for kind, code in _KIND_CODE.items()}

_Row = tuple[Any, ...]  # a row of the database: its columns are named by the statement


class _Run(NamedTuple):
    """A row of `runs`, as it is stored."""

    key: int
    run_id: bytes
    thread_id: bytes | None
    workflow: bytes
    status: int
    owner: str | None
    fence: int
    position: int
    batches: int
    created: float
    updated: float


class SqliteSaver:
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

    Raises:
        InputError: The path is ``":memory:"`` or empty, or the timeout is no number of seconds.
    """

    instant = False  # a commit waits for the disk, and at times for other processes

    def __init__(
        self, path: str | os.PathLike[str], *, codec: Codec | None = None, timeout: float = 60.0
    ) -> None:
        self.codec = codec or Codec()
        self.path = _checked_path(path)
        file = _File(self.path, _checked_timeout(timeout))
        self._writer = _Connection(file, sql.BEGIN_WRITING, "write to")
        self._reader = _Connection(file, sql.BEGIN_READING, "read")
        # The following are guarded by the writer's lock.
        self._owner = Owner(f"{self.path}-owners")
        self._held: dict[str, int] = {}  # the runs that are open in this object, and their fence
        watch_forks(self)

    @classmethod
    def from_conn_string(cls, path: str) -> Self:
        """The same as ``SqliteSaver(path)``, by the name that users of LangGraph know."""
        return cls(path)

    # --- Runs ---------------------------------------------------------------------------------------------

    def open(self, request: OpenRun) -> RunRow:
        """Create the run, or take it over from nobody or a dead owner, with a higher ``fence``."""
        with self._writer as writer:
            with writer.transaction() as db:
                row = self._claim(db, request)
            if row.status is RunStatus.RUNNING:
                self._held[row.run_id] = row.fence
        return row

    def commit(self, writes: Sequence[Write]) -> set[str]:
        """Make all writes durable in one transaction; the ids of runs whose fence was refused."""
        if not writes:
            return set()
        with self._writer as writer:
            with writer.transaction() as db:
                refused = self._write(db, writes)
            for write in writes:
                if write.change is not None and write.change.status is not RunStatus.RUNNING:
                    self._let_go(write.run_id, write.fence)
        return refused

    def release(self, run_id: str, fence: int) -> None:
        """Give a run up without changing what it is: it stays RUNNING, and anybody may take it over.

        In this process it is free even when the store cannot be written to.
        """
        with self._writer as writer:
            self._let_go(run_id, fence)
            with writer.transaction() as db:
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
                runs = db.execute(sql.NEWEST_RUNS_OF_THREAD, (_bytes(thread_id), max(limit, 0))).fetchall()
            return [_row(db, _run(run)) for run in runs]

    def delete_run(self, run_id: str) -> bool:
        """Forget a run that no living owner runs; whether there was one.

        What it has saved in its thread stays.
        """
        with self._writer as writer, writer.transaction() as db:
            run = _load(db, run_id)
            if run is None:
                return False
            if self._has_owner(run):
                raise run_busy(run_id)
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
        with self._writer as writer, writer.transaction() as db:
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
            rows = db.execute(sql.NEWEST_STATES, (_bytes(thread_id), max(limit, 0))).fetchall()
        return [_state(row) for row in rows]

    def save_state(self, thread_id: str, value: bytes, *, created: float) -> None:
        """Add a saved value to a thread that no living owner runs."""
        with self._writer as writer, writer.transaction() as db:
            self._refuse_busy_thread(db, thread_id)
            _append_state(db, _bytes(thread_id), value, created, None)

    def delete_thread(self, thread_id: str) -> None:
        """Forget a thread that no living owner runs, with its runs and saved values."""
        with self._writer as writer, writer.transaction() as db:
            self._refuse_busy_thread(db, thread_id)
            for (key,) in db.execute(sql.RUNS_OF_THREAD, (_bytes(thread_id),)).fetchall():
                _delete(db, key)
            db.execute(sql.DELETE_STATES, (_bytes(thread_id),))

    # --- Life ---------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close files and connections. Runs that are still open in this object are free for others."""
        with self._writer as writer:
            self._held.clear()
            self._owner.leave()
            writer.close()
        with self._reader as reader:
            reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_held"):  # else it was refused when it was made
            with suppress(Exception):
                self.close()

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

    # --- Inside a transaction that writes -----------------------------------------------------------------

    def _claim(self, db: sqlite3.Connection, request: OpenRun) -> RunRow:
        run = _load(db, request.run_id)
        if run is None:
            return self._create(db, request)
        row = _row(db, run)
        refuse_mismatch(row, request)
        if row.status is RunStatus.FINISHED:
            return row
        if self._has_owner(run):
            raise run_busy(row.run_id)
        self._refuse_busy_thread(db, row.thread_id)
        taken = replace(row, status=RunStatus.RUNNING, fence=row.fence + 1)
        now = request.created or time.time()
        _change(
            db,
            run._replace(
                status=_STATUS_CODE[taken.status],
                owner=self._owner.enter(),
                fence=taken.fence,
                updated=float(now),
            ),
        )
        return taken

    def _create(self, db: sqlite3.Connection, request: OpenRun) -> RunRow:
        if request.input is None:
            raise run_not_found(request.run_id)
        self._refuse_busy_thread(db, request.thread_id)
        (key,) = db.execute(sql.NEXT_RUN).fetchone()
        now = float(request.created or time.time())
        run = _Run(
            key=key,
            run_id=_bytes(request.run_id),
            thread_id=None if request.thread_id is None else _bytes(request.thread_id),
            workflow=_bytes(request.workflow),
            status=_STATUS_CODE[RunStatus.RUNNING],
            owner=self._owner.enter(),
            fence=1,
            position=0,
            batches=0,
            created=now,
            updated=now,
        )
        db.execute(sql.CREATE_RUN, _sealed(run))
        db.execute(sql.CREATE_INPUT, _sealed((key, request.input)))
        return _row(db, run)

    def _write(self, db: sqlite3.Connection, writes: Sequence[Write]) -> set[str]:
        refused = set()
        rows: list[Iterable[_Row]] = []
        now = time.time()
        for write in writes:
            run = _load(db, write.run_id)
            if run is None or not self._owns(run, write.fence):
                refused.add(write.run_id)
                continue
            rows.append(_record_rows(run, write.records))
            run = run._replace(
                position=run.position + len(write.records),
                batches=max(run.batches, max((record.batch for record in write.records), default=0)),
                updated=now,
            )
            _advance(db, run)
            if write.change is not None:
                _apply(db, run, write.change)
        db.executemany(sql.APPEND_RECORD, chain.from_iterable(rows))
        return refused

    def _owns(self, run: _Run, fence: int) -> bool:
        """The fence: whether the run is still this object's, as it was when ``fence`` was given out."""
        return run.owner is not None and run.owner == self._owner.id and run.fence == fence

    def _has_owner(self, run: _Run) -> bool:
        """Whether a living owner has the run: this object has it open, or another one's lock is held."""
        if run.owner is None:
            return False
        if run.owner == self._owner.id:
            return self._held.get(_text(run.run_id)) == run.fence
        return self._owner.is_alive(run.owner)

    def _refuse_busy_thread(self, db: sqlite3.Connection, thread_id: str | None) -> None:
        if thread_id is None:
            return
        for columns in db.execute(sql.OWNED_RUNS_OF_THREAD, (_bytes(thread_id),)).fetchall():
            run = _run(columns)
            if self._has_owner(run):
                raise thread_busy(thread_id, _text(run.run_id))

    def _let_go(self, run_id: str, fence: int) -> None:
        if self._held.get(run_id) == fence:
            del self._held[run_id]


# --- Reading and writing rows -----------------------------------------------------------------------------


def _load(db: sqlite3.Connection, run_id: str) -> _Run | None:
    columns = db.execute(sql.RUN, (_bytes(run_id),)).fetchone()
    return _run(columns) if columns else None


def _advance(db: sqlite3.Connection, run: _Run) -> None:
    """Store a run that has more records."""
    db.execute(sql.ADVANCE_RUN, (run.position, run.batches, run.updated, _seal(run), run.key))


def _change(db: sqlite3.Connection, run: _Run) -> None:
    """Store a run that has another status or owner."""
    db.execute(sql.CHANGE_RUN, (run.status, run.owner, run.fence, run.updated, _seal(run), run.key))


def _apply(db: sqlite3.Connection, run: _Run, change: Change) -> None:
    status = _STATUS_CODE[change.status]
    owner = run.owner if change.status is RunStatus.RUNNING else None
    _change(db, run._replace(status=status, owner=owner))
    db.execute(sql.SET_OUTCOME, _sealed((run.key, status, change.output, change.error)))
    if change.saved is not None and run.thread_id is not None:
        _append_state(db, run.thread_id, change.saved, run.updated, run.run_id)


def _append_state(
    db: sqlite3.Connection, thread_id: bytes, value: bytes, created: float, run_id: bytes | None
) -> None:
    (number,) = db.execute(sql.NEXT_STATE, (thread_id,)).fetchone()
    db.execute(sql.APPEND_STATE, _sealed((thread_id, number, value, float(created), run_id)))


def _delete(db: sqlite3.Connection, key: int) -> None:
    for statement in sql.DELETE_RUN:
        db.execute(statement, {"run": key})


def _row(db: sqlite3.Connection, run: _Run) -> RunRow:
    """The run as callers see it."""
    _, input = _unsealed(db.execute(sql.INPUT, (run.key,)).fetchone(), "the input of a run")  # noqa: A001
    outcome = db.execute(sql.OUTCOME, (run.key,)).fetchone()
    _, ended_as, output, error = _unsealed(outcome, "the outcome of a run") if outcome else (None,) * 4
    if run.status not in {_STATUS_CODE[RunStatus.RUNNING], ended_as}:
        raise CorruptDataError(f"run {shown(_text(run.run_id))} has ended, but its outcome is not recorded")
    return RunRow(
        run_id=_text(run.run_id),
        workflow=_text(run.workflow),
        status=_STATUS[run.status],
        thread_id=None if run.thread_id is None else _text(run.thread_id),
        input=input,
        output=output,
        error=error,
        created=run.created,
        updated=run.updated,
        fence=run.fence,
        batches=run.batches,
    )


def _run(columns: _Row) -> _Run:
    return _Run._make(_unsealed(columns, "a run"))


def _place(run: _Run, position: int) -> int:
    return (run.key << 32) + position


def _record_rows(run: _Run, records: Iterable[Record]) -> Iterator[_Row]:
    """The rows of records that follow what the run has."""
    for place, record in enumerate(records, _place(run, run.position + 1)):
        yield _sealed(
            (
                place,
                _KIND_CODE[record.kind],
                record.identity,
                record.parent,
                record.ordinal,
                _bytes(record.step),
                record.value,
                record.attempts,
                float(record.started),
                float(record.ended),
                record.batch,
            )
        )


def _record(columns: _Row) -> Record:
    _, kind, identity, parent, ordinal, step, value, attempts, started, ended, batch = _unsealed(
        columns, "a record"
    )
    return Record(
        kind=_KIND[kind],
        identity=identity,
        parent=parent,
        ordinal=ordinal,
        step=_text(step),
        value=value,
        attempts=attempts,
        started=started,
        ended=ended,
        batch=batch,
    )


def _state(columns: _Row) -> ThreadState:
    thread_id, number, value, created, run_id = _unsealed(columns, "a saved value")
    return ThreadState(_text(thread_id), number, value, created, None if run_id is None else _text(run_id))


def _bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogatepass")


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogatepass")


_encode = msgspec.msgpack.Encoder().encode


def _seal(row: _Row) -> int:
    """A checksum over the columns of a row, its key among them: SQLite has none for its pages."""
    return crc32(_encode(row))


def _sealed(row: _Row) -> _Row:
    return (*row, _seal(row))


def _unsealed(columns: _Row | None, what: str) -> _Row:
    """The columns before the seal.

    Raises:
        CorruptDataError: They are not what was written, or not there.
    """
    if columns is None or _seal(columns[:-1]) != columns[-1]:
        raise CorruptDataError(f"{what} is damaged in the database: it is not what was written")
    return columns[:-1]


# --- Connections ------------------------------------------------------------------------------------------


_Identity = tuple[int, int]  # of a file: its device and number


class _Connection:
    """A connection, opened when it is first used, and the lock that gives it to one thread at a time."""

    def __init__(self, file: _File, begin: LiteralString, doing: str) -> None:
        self.lock = threading.Lock()
        self._file = file
        self._begin = begin
        self._doing = doing
        self._db: sqlite3.Connection | None = None
        self._opened: _Identity | None = None

    def __enter__(self) -> Self:
        self.lock.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.lock.release()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """One transaction, committed at the end, rolled back on any error."""
        try:
            db = self._usable()
            self._file.wait_for(db, self._begin)
            try:
                yield db
                db.execute(sql.COMMIT)
            except BaseException:
                with suppress(sqlite3.Error):
                    db.rollback()
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
        elif not self._file.is_still(self._opened):
            self.close()
            raise StoreError(
                f"{self._file.path} was deleted or replaced while it was in use; "
                "what is written now would be lost with the old file"
            )
        return self._db


#: Seconds between two attempts to begin, when SQLite does not wait by itself.
_ASK_AGAIN = 0.005

_left_alone: list[sqlite3.Connection] = []


class _File:
    """The database file: how it is created, opened and recognised."""

    def __init__(self, path: str, timeout: float) -> None:
        self.path = path
        self._timeout = timeout

    def open(self) -> tuple[sqlite3.Connection, _Identity]:
        """A connection to the database, created and brought up to date if need be."""
        self._create()
        with self._one_at_a_time():
            db = sqlite3.connect(
                self.path, timeout=self._timeout, isolation_level=None, check_same_thread=False
            )
            try:
                self._prepare(db)
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

    def wait_for(self, db: sqlite3.Connection, statement: LiteralString) -> sqlite3.Cursor:
        """Execute what begins a transaction or changes the journal's mode, waiting for other connections.

        SQLite waits by itself, but not when another process is just closing the file for the last time, mending its
        WAL or turning it on: then it says at once that the file is busy. Nothing was done yet, so it is asked again.
        """
        deadline = time.monotonic() + self._timeout
        while True:
            try:
                return db.execute(statement)
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() >= deadline:
                    raise
                time.sleep(_ASK_AGAIN)

    def is_still(self, opened: _Identity | None) -> bool:
        """Whether the path leads to the file that was opened."""
        try:
            return self._identity() == opened
        except FileNotFoundError:
            return False

    def _identity(self) -> _Identity:
        there = os.stat(self.path)  # noqa: PTH116 - with every transaction, and Path takes twice as long
        return there.st_dev, there.st_ino

    def failure(self, error: Exception, doing: str) -> StoreError:
        """What went wrong, where, and what to do about it."""
        if isinstance(error, UnicodeDecodeError):  # from sqlite3, which was to quote a damaged schema
            code = sqlite3.SQLITE_CORRUPT
        else:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        advice = _ADVICE.get(code, "")
        return StoreError(f"cannot {doing} {self.path}: {error}{advice.format(timeout=self._timeout)}")

    def _create(self) -> None:
        """Make an empty file that only its user can read; SQLite gives its companions the same mode."""
        # Closing a file lets go of all locks that the process has on it, so no other thread may open the
        # database between these two calls.
        try:
            with _creating, suppress(FileExistsError):
                os.close(os.open(self.path, _CREATE, 0o600))
        except FileNotFoundError as error:
            raise StoreError(f"the directory of {self.path} does not exist; create it first") from error
        if (
            0 < Path(self.path).stat().st_size < 512
        ):  # SQLite would take it for an empty one and write over it
            raise StoreError(f"{self.path} is no database; give another path")

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

_ADVICE: Final = {
    sqlite3.SQLITE_BUSY: "; another process has kept it locked for {timeout:g} s: wait for it, or end it",
    sqlite3.SQLITE_FULL: "; free some space, then resume: what was committed is safe",
    sqlite3.SQLITE_IOERR: "; see to the disk and its quota, then resume: what was committed is safe",
    sqlite3.SQLITE_READONLY: "; make the file and its directory writable and resume the run",
    sqlite3.SQLITE_CANTOPEN: "; its directory must exist and be writable, and the path must be a file",
    sqlite3.SQLITE_NOTADB: "; give the path of a database of Weft, or a new one",
    sqlite3.SQLITE_CORRUPT: "; the file is damaged: put a backup in its place, or try `.recover` of sqlite3",
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
