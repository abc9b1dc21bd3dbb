"""Connections to a SQLite file: how it is created, opened, brought up to date and recognised; transactions on it."""

from __future__ import annotations

import errno
import math
import os
import sqlite3
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Final, LiteralString, Self

from weft.checkpoint import sql
from weft.checkpoint.owner import is_left_behind, marks, remove_left_behind
from weft.checkpoint.rows import unsealed
from weft.errors import CorruptDataError, InputError, StoreError


class _Files:
    """The file and its companions, as they are when this is made: whether the path still leads to them.

    To ask for all three takes three calls; and since the system was asked for the age of the log, the next commit has
    to make a new one durable, which takes half as long again. But none of them can be removed or replaced without a
    change of the folder that they are in.
    """

    def __init__(self, path: str) -> None:
        self._paths = [path + end for end in ("", *_COMPANIONS)]
        self._folder = os.path.dirname(path)
        self._opened = self._numbers()
        self._seen: tuple[int, ...] | None = None  # of the folder, when they were there

    def are_still_there(self) -> bool:
        """Whether what is written now is written to them."""
        try:
            folder = os.stat(self._folder)
            seen = (folder.st_dev, folder.st_ino, folder.st_mtime_ns, folder.st_ctime_ns)
            if seen == self._seen:
                return True
            if self._numbers() != self._opened:
                return False
        except FileNotFoundError:
            return False
        changed = max(folder.st_mtime_ns, folder.st_ctime_ns)
        # One that has just changed may change again and be of the same age.
        is_old = time.time_ns() - changed > (_OLD if changed % 10**9 else _OLD_IN_SECONDS)
        self._seen = seen if is_old else None
        return True

    def _numbers(self) -> list[tuple[int, int]]:
        found = [os.stat(path) for path in self._paths]
        return [(each.st_dev, each.st_ino) for each in found]


#: Nanoseconds after which another change of a folder shows; and where only whole seconds, or two, are noted.
_OLD, _OLD_IN_SECONDS = 100_000_000, 2_100_000_000


#: For how many seconds others that are writing are waited for; None: as long as the file says.
_patience: ContextVar[float | None] = ContextVar("weft_patience", default=None)


@contextmanager
def patience(seconds: float) -> Iterator[None]:
    """Meanwhile wait no longer for others that are writing, and with 0 not at all, also not for other threads."""
    before = _patience.set(seconds)
    try:
        yield
    finally:
        _patience.reset(before)


class InUseError(StoreError):
    """Somebody else is writing, and there was no patience to wait for that."""


class Link:
    """A connection, opened when it is first used, and the lock that gives it to one thread at a time."""

    def __init__(self, file: Database, begin: LiteralString, doing: str) -> None:
        self.lock = threading.Lock()
        self._file = file
        self._begin = begin
        self._doing = doing
        self._db: sqlite3.Connection | None = None
        self._opened: _Files | None = None
        self.waited = 0.0  # seconds, for the transaction that is going on to begin

    def __enter__(self) -> Self:
        if not self.lock.acquire(blocking=_patience.get() != 0):
            raise InUseError("another thread is writing")
        return self

    def __exit__(self, *_: object) -> None:
        self.lock.release()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """One transaction, committed at the end, rolled back on any error."""
        try:
            db = self._usable()
            try:
                began = time.monotonic()
                self._file.wait_for(db, self._begin)
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

    def alone(self, *statements: LiteralString) -> None:
        """Execute what cannot be done in a transaction."""
        try:
            db = self._usable()
            for statement in statements:
                self._file.wait_for(db, statement).fetchall()
        except (sqlite3.Error, OSError) as error:
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
        elif self._opened is not None and not self._opened.are_still_there():
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


class Database:
    """The database file: how it is created, opened and recognised."""

    def __init__(self, path: str, timeout: float) -> None:
        self.path = path
        self.owners = f"{path}-owners"  # the directory of their lock files
        self._timeout = timeout

    def open(self) -> tuple[sqlite3.Connection, _Files]:
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
                return db, _Files(self.path)
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
                os.path.dirname(self.path), os.O_RDONLY | os.O_CLOEXEC
            )  # no file of our own to clean up
        except (ImportError, OSError):
            yield
            return
        try:
            self._wait_for_lock(lambda: fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB))
            yield
        finally:
            os.close(folder)

    def _wait_for_lock(self, lock: Callable[[], None]) -> None:
        """Take a lock, but wait no longer than for a commit: one that was stopped while it had it may never go on."""
        deadline = time.monotonic() + self._timeout
        while True:
            try:
                return lock()
            except BlockingIOError as error:
                if time.monotonic() >= deadline:
                    raise StoreError(
                        f"cannot open {self.path}: another process has been opening a database in this folder for "
                        f"{self._timeout:g} s; wait for it, or end it"
                    ) from error
                time.sleep(_ASK_SELDOM)

    def wait_for(self, db: sqlite3.Connection, statement: LiteralString) -> sqlite3.Cursor:
        """Execute what begins a transaction or changes the journal's mode, waiting for other connections.

        SQLite does not wait for a process that is just closing the file for the last time, mending its WAL or turning
        it on: it says at once that the file is busy. (Where we write, it never waits by itself: the time is ours to
        choose.) Nothing was done yet, so it is asked again.
        """
        own = _patience.get()
        deadline = time.monotonic() + (self._timeout if own is None else min(own, self._timeout))
        pause = _ASK_AGAIN
        while True:
            try:
                return db.execute(statement)
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                    raise
                if own == 0:
                    raise InUseError(f"another process is writing to {self.path}") from error
                if time.monotonic() >= deadline:
                    raise
                time.sleep(pause)
                pause = min(2 * pause, _ASK_SELDOM)

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
        if not os.path.exists(self.path):  # somebody has removed it: what its owners had is meant to be gone
            remove_left_behind(self.owners)
        try:
            with _creating, suppress(FileExistsError):
                os.close(os.open(self.path, _CREATE, 0o600))
        except FileNotFoundError as error:
            raise StoreError(f"the directory of {self.path} does not exist; create it first") from error
        # SQLite would take it for an empty one and write over it.
        if 0 < os.stat(self.path).st_size < 512:
            raise StoreError(f"{self.path} is no database; give another path")

    def _share_mode(self) -> None:
        """Give companions the mode of the file: those made while it was read-only would stay so."""
        mode = stat.S_IMODE(os.stat(self.path).st_mode)
        for end in _COMPANIONS:
            companion = self.path + end
            with suppress(OSError):  # none is there, or it is another user's
                if not os.path.islink(companion) and stat.S_IMODE(os.stat(companion).st_mode) != mode:
                    os.chmod(companion, mode)

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


def checked_path(path: str | os.PathLike[str]) -> str:
    """The absolute path of the file itself, so that all who use it agree on the names beside it."""
    name = os.fspath(path)
    if name == ":memory:":
        raise InputError("SqliteSaver keeps a file; for a store in memory use InMemorySaver()")
    if not isinstance(name, str) or not name or "\0" in name:
        raise InputError(f"SqliteSaver needs the path of a file, not {path!r}")
    try:
        return os.path.realpath(name)
    except UnicodeEncodeError:
        raise InputError(f"SqliteSaver needs the path of a file, not {path!a}") from None


def checked_timeout(timeout: float) -> float:
    if isinstance(timeout, bool) or not math.isfinite(timeout) or timeout < 0:
        raise InputError(f"timeout is a number of seconds, 0 or more, not {timeout!r}")
    return timeout
