"""The process that calls bodies: one after the other in its main thread, as it is told over a socket."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import signal
import socket
import sys
import threading
from functools import partial
from typing import NamedTuple

from weft.executors import work
from weft.executors.frames import Kind, Line
from weft.executors.inside import Inside
from weft.executors.parcel import pack, pack_error, unpack


class _Job(NamedTuple):
    number: int
    data: bytes


class _Worker:
    def __init__(self, line: Line) -> None:
        self._line = line
        self._jobs: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        self._dropped: set[int] = set()
        self._at_work: tuple[int, Inside] | None = None

    def work(self) -> None:
        """Call what comes, until nobody is at the other end."""
        threading.Thread(target=self._listen, name="weft-line", daemon=True).start()
        while True:
            job = self._jobs.get()
            if job.number in self._dropped:
                self._dropped.discard(job.number)
                self._line.send(Kind.RAISED, job.number, pack_error(KeyboardInterrupt("never begun")))
                continue
            self._call(job)

    def _listen(self) -> None:
        while (frame := self._line.read()) is not None:
            kind, number, data = frame
            if kind is Kind.JOB:
                self._jobs.put(_Job(number, data))
            elif kind is Kind.TELL:
                self._tell(number)
        end_group()

    def _tell(self, number: int) -> None:
        at_work = self._at_work
        if at_work is not None and at_work[0] == number:
            at_work[1].told = True
        else:
            self._dropped.add(number)

    def _call(self, job: _Job) -> None:
        send = partial(self._send, number=job.number)
        try:
            called, ticket, variables = unpack(job.data)
            there = Inside(
                ticket.call_id,
                ticket.step,
                ticket.left,
                write=lambda value: send(Kind.WROTE, pack(value, "what was written")),
                heartbeat=lambda: send(Kind.BEAT),
            )
            self._at_work = job.number, there
            if job.number in self._dropped:
                there.told = True
            send(Kind.BEGUN)
            fn, args, kwargs = unpack(called)
            value = work.call_here(
                fn,
                args,
                kwargs,
                ticket=ticket,
                variables=unpack(variables) if variables else (),
                there=there,
                log=lambda record: send(Kind.LOGGED, _packed_record(record)),
            )
            kind, data = Kind.RETURNED, pack(value, f"what {ticket.step!r} returned")
        except BaseException as error:  # also SystemExit: it becomes the outcome of the call
            kind, data = Kind.RAISED, pack_error(error)
        self._at_work = None
        self._dropped.discard(job.number)
        send(kind, data)

    def _send(self, kind: Kind, data: bytes = b"", *, number: int) -> None:
        try:
            self._line.send(kind, number, data)
        except OSError:
            end_group()


def _packed_record(record: logging.LogRecord) -> bytes:
    try:
        return pack(record, "a log record")
    except Exception:  # what the application hangs on its records stays here
        plain = logging.LogRecord(
            record.name, record.levelno, record.pathname, record.lineno, record.msg, None, None
        )
        return pack(plain, "a log record")


def end_group() -> None:
    """Leave at once, with what the bodies have started and left running."""
    with contextlib.suppress(OSError):
        if os.getpgrp() == os.getpid():
            os.killpg(0, signal.SIGKILL)
    os._exit(1)


def _die_with_parent() -> None:
    """Also while a body holds the interpreter, so that nobody here would see that the other end is gone."""
    if sys.platform == "linux":
        import ctypes  # noqa: PLC0415 - there alone

        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def _limit_memory(size: int | None) -> None:
    if size is not None:
        import resource  # noqa: PLC0415 - there is none on Windows

        resource.setrlimit(resource.RLIMIT_AS, (size, size))


def main() -> None:
    """Work for the process whose socket is the first argument."""
    line = Line(socket.socket(fileno=int(sys.argv[1])))
    _die_with_parent()
    hello = line.read()
    if hello is None:
        return
    _limit_memory(unpack(hello[2])["memory"])
    sys.argv[:] = sys.argv[:1]
    _Worker(line).work()
