"""Who owns a run: the rules that every store follows, and the lock that says an owner is alive.

An owner is a store object in a process. It has a random id (never a process id, which would be given out again),
and it holds a lock of that name for as long as it lives: on a file beside a SQLite database, in the server of a
Postgres one. The lock goes when the process ends, however it ends, so a lock that can be taken is a dead owner, and
its runs are free at once.

A process that has stopped without ending keeps its lock. So an owner also counts a number in the store up, its
*beat*, while it has something open. Who wants a run of an owner that holds its lock looks at the beat, and looks
again: when it has been the same for the *lease* of that owner, the run is taken over. How long that was, each
observer measures on its own monotonic clock, from when it has itself first seen the beat; no time is ever compared
with that of another machine or process, or with the time of day. An observer that sees a beat for the first time
cannot tell, and says so (``retry_after``).

Neither the lock nor the beat keeps two owners from writing: the *fence* does. A run has its owner's id and a number
that grows with every owner, and both are checked in the transaction that writes. So whoever is wrongly taken for
dead (its lock file was deleted, its connection was cut, its machine slept) loses its run, and writes nothing more.
"""

from __future__ import annotations

import errno
import math
import os
import re
import secrets
import stat
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import blake2b
from typing import Protocol, TypeVar

from weft.checkpoint.base import OpenRun, RunRow
from weft.errors import (
    InputError,
    RunBusyError,
    RunMismatchError,
    RunNotFoundError,
    StoreError,
    ThreadBusy,
)

# --- The rules --------------------------------------------------------------------------------------------


def refuse_mismatch(row: RunRow, request: OpenRun) -> None:
    """A run id stands for one workflow, thread and input; what the request leaves open is not compared.

    Raises:
        RunMismatchError: The run was recorded for another one; names both, the input by a short hash.
    """
    wrong_workflow = bool(request.workflow) and request.workflow != row.workflow
    wrong_thread = request.thread_id is not None and request.thread_id != row.thread_id
    wrong_input = request.input is not None and request.input != row.input
    if wrong_workflow or wrong_thread or wrong_input:
        recorded = _described(row.workflow, row.thread_id, row.input)
        asked = _described(
            request.workflow or row.workflow, request.thread_id or row.thread_id, request.input
        )
        raise RunMismatchError(
            f"run {shown(row.run_id)} was recorded for {recorded}, and is now asked for with {asked}; "
            "give a new run its own run_id"
        )


def run_not_found(run_id: str) -> RunNotFoundError:
    return RunNotFoundError(f"there is no run {shown(run_id)} in this store")


def run_busy(run_id: str, retry_after: float = math.inf) -> RunBusyError:
    """The run has an owner; ``retry_after`` seconds later, one can tell whether that one still beats."""
    error = RunBusyError(
        f"run {shown(run_id)} has an owner that is still alive; wait for it, or cancel it there"
    )
    return _of_run(error, run_id, retry_after)


def thread_busy(thread_id: str, run_id: str, retry_after: float = math.inf) -> ThreadBusy:
    """Another run of the thread has an owner; ``retry_after`` as in :func:`run_busy`."""
    error = ThreadBusy(f"run {shown(run_id)} of thread {shown(thread_id)} is still going on")
    return _of_run(error, run_id, retry_after)


_Busy = TypeVar("_Busy", bound=RunBusyError)


def _of_run(error: _Busy, run_id: str, retry_after: float) -> _Busy:
    error.run_id = run_id
    error.retry_after = None if retry_after == math.inf else retry_after
    return error


def shown(name: str) -> str:
    """A name for a message: quoted, escaped, and no longer than a line."""
    return ascii(name if len(name) <= 60 else name[:59] + "…")


def _described(workflow: str, thread_id: str | None, input: bytes | None) -> str:
    parts = [f"workflow {shown(workflow)}"]
    if thread_id is not None:
        parts.append(f"thread {shown(thread_id)}")
    if input is not None:
        parts.append(f"input #{blake2b(input, digest_size=4).hexdigest()}")
    return ", ".join(parts)


# --- The beat ---------------------------------------------------------------------------------------------

#: Seconds for which an owner may be silent before others take over what it has.
LEASE = 30.0

#: The least share of its lease after which an owner beats again: it is not worth a write to say it more often.
_BEATS = 8

#: How many owners an observer remembers; those that it has looked at longest ago are forgotten first.
_REMEMBERED = 1000


def checked_lease(lease: float) -> float:
    """A lease that is one.

    Raises:
        InputError: It is no positive number of seconds.
    """
    if isinstance(lease, bool) or not isinstance(lease, int | float) or not 0 < lease < math.inf:
        raise InputError(f"lease is a number of seconds above 0, not {lease!r}")
    return float(lease)


class Pulse:
    """The beat of an owner, as it counts it itself. Not thread-safe."""

    def __init__(self, lease: float) -> None:
        self.lease = lease
        self._count = 0
        self._last: float | None = None  # when, on the monotonic clock

    def is_due(self) -> bool:
        """Whether it is time to say again that this owner is alive."""
        return self._last is None or time.monotonic() - self._last >= self.lease / _BEATS

    def next(self) -> int:
        """The number to write now; no number is given twice."""
        self._count += 1
        self._last = time.monotonic()
        return self._count

    @property
    def count(self) -> int:
        """The number that was given last."""
        return self._count

    def stop(self) -> None:
        """The owner is one no more: the next one begins with a beat of its own."""
        self._last = None


class Others:
    """What one observer has seen of the beats of other owners. Not thread-safe."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[int | None, float]] = {}  # the beat, and when it was first seen

    def patience(self, owner: str, beat: int | None, lease: float, blocked: float = 0.0) -> float:
        """For how many seconds more that owner may be silent; 0: it has been so for a whole lease.

        ``beat`` is what is in the store now, None if there is nothing. For ``blocked`` seconds before that, nobody
        could write to the store: that was no silence.
        """
        now = time.monotonic()
        last = self._seen.pop(owner, None)
        since = min(last[1] + blocked, now) if last is not None and last[0] == beat else now
        self._seen[owner] = (beat, since)  # at the end: the others were looked at before
        if len(self._seen) > _REMEMBERED:
            del self._seen[next(iter(self._seen))]
        return max(since + lease - now, 0.0)

    def forget(self, owner: str) -> None:
        """It is dead, or gone."""
        self._seen.pop(owner, None)

    def clear(self) -> None:
        """Remember nothing."""
        self._seen.clear()


# --- The lock ---------------------------------------------------------------------------------------------

_ID = re.compile(r"[0-9a-f]{32}")
_OPEN = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0)  # these flags are not on every system
_OPEN_DIRECTORY = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_NOFOLLOW", 0)


class Owner:
    """One owner of runs, and what it can tell of the others, by lock files in a directory.

    Nothing is created before :meth:`enter`. Not thread-safe; and :meth:`enter` and :meth:`is_alive` must
    be called by one process at a time (within a transaction that writes), because looking at a lock takes
    it for a moment.
    """

    def __init__(self, directory: str) -> None:
        self.id: str | None = None
        self._directory = directory
        self._fd = -1

    def enter(self) -> str:
        """Become an owner, unless that is done: the id. Sweeps away what dead ones have left."""
        if self.id is None:
            try:
                remove_left_behind(self._directory)
                self.id, self._fd = self._locked_file()
            except OSError as error:
                raise StoreError(
                    f"cannot keep a lock file in {self._directory}: {error.strerror}; "
                    "it must be a directory of yours, with nothing in it that is not Weft's"
                ) from error
        return self.id

    def is_alive(self, owner: str) -> bool:
        """Whether that owner holds its lock. If not, its file is removed."""
        if not _ID.fullmatch(owner):
            return False
        try:
            with _directory(self._directory) as directory:
                return _is_locked(f"{owner}.lock", directory)
        except FileNotFoundError:
            return False
        except PermissionError:  # of another user: nobody can tell, so nothing is taken away
            return True

    def leave(self) -> None:
        """Be an owner no more; what this one ran is free."""
        if self.id is None:
            return
        with suppress(OSError):
            os.unlink(os.path.join(self._directory, f"{self.id}.lock"))
        os.close(self._fd)
        self.id, self._fd = None, -1
        with suppress(OSError):  # others are in it
            os.rmdir(self._directory)

    def mark(self, beat: int) -> None:
        """Write into the lock file that the commit with this beat was acknowledged: see :func:`marks`.

        It is not synced, and may fail: an old mark proves less, and nothing wrong.
        """
        with suppress(OSError):
            os.pwrite(self._fd, beat.to_bytes(_MARK, "big"), 0)

    def forget(self) -> None:
        """In a forked child: let go of the parent's file. The lock stays the parent's."""
        if self.id is not None:
            os.close(self._fd)
            self.id, self._fd = None, -1

    def _locked_file(self) -> tuple[str, int]:
        for _ in range(100):
            owner = secrets.token_hex(16)
            with suppress(FileNotFoundError), _directory(self._directory, create=True) as directory:
                fd = os.open(f"{owner}.lock", _OPEN | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=directory)
                if _lock(fd) and _is_same_file(fd, f"{owner}.lock", directory):
                    return owner, fd
                os.close(fd)  # somebody took it for one of the dead, between its creation and its locking
            # or the last owner to leave removed the directory
        raise StoreError(f"cannot keep a lock file in {self._directory}: something removes it at once")


# --- Marks ------------------------------------------------------------------------------------------------

#: The bytes of a mark.
_MARK = 8


def marks(directory: str) -> dict[str, int]:
    """Of each owner with a lock file, alive or not, the beat of the last commit that it was told of.

    They are outside of the database, written after each commit: when the end of its log is gone, they tell. A
    directory that cannot be read, or is not private, tells nothing; who becomes an owner is told what is wrong.
    """
    found = {}
    with suppress(OSError, StoreError), _directory(directory) as opened:
        for name in os.listdir(opened):
            owner = name.removesuffix(".lock")
            if _ID.fullmatch(owner) and len(mark := _content(name, opened)) == _MARK:
                found[owner] = int.from_bytes(mark, "big")
    return found


def is_left_behind(directory: str, owner: str) -> bool:
    """Whether the lock file of an owner that has ended is there still. What is found out changes nothing."""
    with suppress(OSError, StoreError), _directory(directory) as opened:
        return not _is_locked(f"{owner}.lock", opened, remove=False) and bool(
            _content(f"{owner}.lock", opened)
        )
    return False


def remove_left_behind(directory: str) -> None:
    """Remove the lock files of owners that have ended."""
    with suppress(OSError, StoreError), _directory(directory) as opened:
        for name in os.listdir(opened):
            if _ID.fullmatch(name.removesuffix(".lock")):
                with suppress(PermissionError):  # another user's
                    _is_locked(name, opened)


def _content(name: str, directory: int) -> bytes:
    """The first bytes of a file; none of one that is gone, or not ours."""
    with suppress(OSError):
        fd = os.open(name, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0), dir_fd=directory)
        try:
            return os.read(fd, _MARK)
        finally:
            os.close(fd)
    return b""


@contextmanager
def _directory(path: str, *, create: bool = False) -> Iterator[int]:
    """The directory, opened: what is then done in it cannot be led elsewhere.

    Raises:
        StoreError: Others may write there, so that its locks would prove nothing.
    """
    if create:
        with suppress(FileExistsError):
            os.mkdir(path, 0o700)
    fd = os.open(path, _OPEN_DIRECTORY)
    try:
        if os.fstat(fd).st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise StoreError(f"{path} holds locks, but others may write to it; make it private (chmod 700)")
        yield fd
    finally:
        os.close(fd)


def _is_locked(name: str, directory: int, *, remove: bool = True) -> bool:
    """Whether somebody holds the lock on that file; one that nobody holds is removed, if wanted."""
    try:
        fd = os.open(name, _OPEN, dir_fd=directory)
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.ELOOP}:  # gone, or a symbolic link, which no owner makes
            return False
        raise
    try:
        if not _lock(fd):
            return True
        if remove and _is_same_file(fd, name, directory):
            os.unlink(name, dir_fd=directory)
        return False
    finally:
        os.close(fd)


def _is_same_file(fd: int, name: str, directory: int) -> bool:
    try:
        there = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(fd), there)


def _lock(fd: int) -> bool:
    """Take the lock of an open file, if it is free. It lasts until all copies of ``fd`` are closed."""
    try:
        import fcntl  # noqa: PLC0415 - not on every system, and only this needs it
    except ImportError as error:
        raise StoreError("SqliteSaver needs flock(), which this system lacks; use another store") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


# --- Forks ------------------------------------------------------------------------------------------------


class Forked(Protocol):
    """What must not be in use at the moment of a fork, and is not the child's."""

    def before_fork(self) -> None:
        """Wait until nothing is going on, and keep it so."""

    def after_fork(self, *, child: bool) -> None:
        """Go on; in the child, without what belongs to the parent."""


class _Forks:
    """Calls the hooks of every living object that asked for it."""

    def __init__(self) -> None:
        self._all: weakref.WeakSet[Forked] = weakref.WeakSet()
        self._lock = threading.Lock()  # two threads that fork must not wait for each other's objects
        self._held: list[Forked] = []
        self._registered = False

    def watch(self, it: Forked) -> None:
        with self._lock:
            self._all.add(it)
            if not self._registered and hasattr(os, "register_at_fork"):
                os.register_at_fork(
                    before=self._before,
                    after_in_parent=lambda: self._after(child=False),
                    after_in_child=lambda: self._after(child=True),
                )
                self._registered = True

    def _before(self) -> None:
        self._lock.acquire()
        self._held = list(self._all)
        for it in self._held:
            it.before_fork()

    def _after(self, *, child: bool) -> None:
        for it in self._held:
            it.after_fork(child=child)
        self._held = []
        self._lock.release()


_forks = _Forks()


def watch_forks(it: Forked) -> None:
    """Have ``it`` told before and after every fork of this process, for as long as it lives."""
    _forks.watch(it)
