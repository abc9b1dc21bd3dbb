"""The process that calls bodies: one after the other in its main thread, as it is told over a socket."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections import deque
from functools import partial
from typing import NamedTuple, NoReturn

from weft.executors import work
from weft.executors.base import Ticket
from weft.executors.frames import AGE, CUT_OFF, Kind, Line, RubbishError
from weft.executors.inside import Inside
from weft.executors.parcel import pack, pack_error, unpack, unpack_body

#: Seconds for which a worker that has nothing to do may do what is left to do at its end.
_FAREWELL = 1.0


class _Job(NamedTuple):
    number: int
    data: bytes
    came: float


class _AtWork:
    """The body that runs."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.there: Inside | None = None
        self.told = False

    def tell(self) -> None:
        self.told = True
        if self.there is not None:
            self.there.told = True


class _Worker:
    def __init__(self, line: Line) -> None:
        self._line = line
        self._pid = os.getpid()
        self._changed = threading.Condition()
        self._jobs: deque[_Job] = deque()
        self._at_work: _AtWork | None = None
        self._is_over = False

    def work(self) -> None:
        """Call what comes, until nobody is at the other end."""
        threading.Thread(target=self._listen, name="weft-line", daemon=True).start()
        while (job := self._next()) is not None:
            self._call(job)

    def _next(self) -> _Job | None:
        with self._changed:
            self._at_work = None
            while not self._jobs and not self._is_over:
                self._changed.wait()
            if self._is_over:
                return None
            job = self._jobs.popleft()
            self._at_work = _AtWork(job.number)
            return job

    def _listen(self) -> None:
        with contextlib.suppress(RubbishError):
            while (frame := self._line.read()) is not None:
                kind, number, data = frame
                if kind is Kind.JOB:
                    with self._changed:
                        self._jobs.append(_Job(number, data, time.monotonic()))
                        self._changed.notify()
                else:
                    self._heed(kind, number)
        if not self._line.is_ours:
            os._exit(CUT_OFF)
        self._end()

    def _heed(self, kind: Kind, number: int) -> None:
        """Somebody does not wait for a body any more (TELL), or wants to give it to another process (BACK)."""
        with self._changed:
            at_work = self._at_work
            if at_work is not None and at_work.number == number:
                if kind is Kind.TELL:
                    at_work.tell()
                return
            found = [job for job in self._jobs if job.number == number]
            for job in found:
                self._jobs.remove(job)
        if found:
            self._send(Kind.BACK, number=number)

    def _end(self) -> None:
        """Nobody is at the other end: what is at work is ended; else the process leaves in order, if that is soon."""
        with self._changed:
            if self._at_work is not None:
                end_group()
            self._is_over = True
            self._changed.notify()
        time.sleep(_FAREWELL)
        end_group()

    def _call(self, job: _Job) -> None:
        send = partial(self._send, number=job.number)
        step = "a body"
        try:
            called, ticket, variables = unpack(memoryview(job.data)[AGE.size :])
            step = ticket.step
            # Before it begins: what has to be imported for that takes its time.
            body = unpack_body(called, ticket)
            carried = unpack(variables) if variables else ()
            there = Inside(
                ticket.call_id,
                step,
                _left(ticket, AGE.unpack_from(job.data)[0] + time.monotonic() - job.came),
                write=lambda value: send(Kind.WROTE, pack(value, "what was written")),
                heartbeat=lambda: send(Kind.BEAT),
            )
            if not self._may_begin(there):
                send(Kind.BACK)
                return
            send(Kind.BEGUN)
            value = work.call_here(
                body,
                variables=carried,
                there=there,
                log=lambda record: send(Kind.LOGGED, _packed_record(record)),
            )
            if os.getpid() != self._pid:
                _leave_fork(None)
            kind, data = Kind.RETURNED, pack(value, f"what {step!r} returned")
        except BaseException as error:  # also SystemExit: it becomes the outcome of the call
            if os.getpid() != self._pid:
                _leave_fork(error)
            kind, data = Kind.RAISED, pack_error(error)
        _flush()
        send(kind, data)

    def _may_begin(self, there: Inside) -> bool:
        """Whether somebody still waits for it; from now on it is told if nobody does."""
        with self._changed:
            assert self._at_work is not None
            self._at_work.there = there
            return not self._at_work.told

    def _send(self, kind: Kind, data: bytes = b"", *, number: int) -> None:
        if os.getpid() != self._pid:
            return  # what a body forks is outside of the call
        try:
            self._line.send(kind, number, data)
        except OSError:
            # Either nobody is at the other end, or the body has taken this one away. Who began us ends what is left.
            _flush()
            os._exit(CUT_OFF)


def _left(ticket: Ticket, waited: float) -> float | None:
    """Seconds until the deadline of the call, or of this attempt, which begins now."""
    left = [] if ticket.left is None else [max(0.0, ticket.left - waited)]
    if ticket.timeout is not None:
        left.append(ticket.timeout)
    return min(left, default=None)


def _flush() -> None:
    """What the body has printed is seen when its call has ended; the process may be killed any time."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()


def _packed_record(record: logging.LogRecord) -> bytes:
    try:
        return pack(record, "a log record")
    except Exception:  # what the application hangs on its records stays here
        return pack(work.plain(record), "a log record")


def _leave_fork(error: BaseException | None) -> NoReturn:
    """This is a process that the body has forked, and that came to the end of it: nobody waits for it here."""
    _flush()
    code = 0 if error is None else 1
    if isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    os._exit(code & 0xFF)


def end_group() -> None:
    """Leave at once, with what the bodies have started and left running."""
    if os.getpgrp() == os.getpid():  # not in a process that a body has forked
        with contextlib.suppress(OSError):
            os.killpg(0, signal.SIGKILL)
    os._exit(1)


def _end_group_at_exit(pid: int) -> None:
    if os.getpid() == pid:
        _flush()
        end_group()


def _die_with_parent(parent: int) -> None:
    """Also while a body holds the interpreter, so that nobody here would see that the other end is gone."""
    if sys.platform == "linux":
        import ctypes  # noqa: PLC0415 - there alone

        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _limit_memory(size: int | None) -> None:
    if size is None:
        return
    import resource  # noqa: PLC0415 - there is none on Windows

    # On Linux what is written to counts, not what is only reserved: threads and libraries reserve a lot.
    kind = resource.RLIMIT_DATA if sys.platform == "linux" else resource.RLIMIT_AS
    resource.setrlimit(kind, (size, size))


def main() -> None:
    """Work for the process whose socket and id are the first arguments."""
    fd, parent = map(int, sys.argv[1:3])
    os.set_inheritable(fd, False)
    line = Line(socket.socket(fileno=fd))
    _die_with_parent(parent)
    hello = line.read()
    if hello is None:
        return
    settings = unpack(hello[2])
    sys.argv[:] = settings["argv"]
    atexit.register(_end_group_at_exit, os.getpid())
    _limit_memory(settings["memory"])
    _Worker(line).work()
