"""Bodies on the workers of a cluster: some at a time where they are small, each in a process of its own there."""

from __future__ import annotations

import concurrent.futures
import itertools
import logging
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable
from contextvars import ContextVar
from functools import partial
from typing import Any

from weft.errors import WorkerDiedError
from weft.executors.base import Body, Dropped, Listener, check_carry
from weft.executors.pace import Pace
from weft.executors.parcel import packed, unpack
from weft.executors.process import bytes_of
from weft.executors.report import Report, tell_report

logger = logging.getLogger("weft")

#: Seconds of work that are sent in one piece, where bodies are small: what a lost worker may cost.
_AT_ONCE = 0.05

#: Pieces on their way for each body that the cluster does at once, so that it need not wait for the next.
_AHEAD = 2

#: Seconds for which what is known of the size of the cluster is believed.
_BELIEVED = 2.0

#: Seconds for which the thread that talks to the cluster is kept without work.
_KEEP = 10.0


class ClusterExecutor(ABC):
    """What the executors of Dask and Ray share.

    A body runs in a process beside the cluster's worker, so that one that crashes fails its own call alone, and one
    that is out of time is killed. When a worker itself is lost, the cluster begins its bodies again elsewhere.
    """

    def __init__(self, *, memory: int | str | None = None, carry: Iterable[ContextVar[Any]] = ()) -> None:
        self.memory = None if memory is None else bytes_of(memory)
        self.carry = check_carry(carry)
        self._changed = threading.Condition()
        self._queue: deque[Job] = deque()
        self._to_stop: list[tuple[Job, bool]] = []
        self._is_talking = False
        self._numbers = itertools.count(time.time_ns())  # not those of an earlier client of the same cluster
        self._pieces = 0  # on their way
        self._pace = Pace(_AT_ONCE)
        self._width = 1  # how many bodies at once
        self._believed_until = 0.0

    @abstractmethod
    def submit(self, number: int, bodies: list[bytes]) -> concurrent.futures.Future[bytes]:
        """Have :func:`weft.executors.hosted.call_apart` called on a worker."""

    @abstractmethod
    def stop(self, future: concurrent.futures.Future[bytes], job: Job, *, kill: bool) -> None:
        """Have :func:`weft.executors.hosted.stop` called, or the like, where this body is."""

    @abstractmethod
    def size(self) -> int:
        """How many bodies the cluster can do at once."""

    def begin(self, body: Body, listener: Listener) -> Job:
        """Have a body called on the cluster; see :class:`weft.executors.base.Executor`."""
        job = Job(self, body.ticket.step, packed(body, self.carry), listener)
        with self._changed:
            self._queue.append(job)
            self._wake()
        return job

    def stop_soon(self, job: Job, *, kill: bool) -> None:
        """Have the cluster told of a body that nobody waits for."""
        with self._changed:
            self._to_stop.append((job, kill))
            self._wake()

    # Talking to the cluster takes time, and may not be done by threads of its own: one of ours does it

    def _wake(self) -> None:
        if self._is_talking:
            self._changed.notify()
            return
        threading.Thread(target=self._talk, name="weft-cluster", daemon=True).start()
        self._is_talking = True

    def _talk(self) -> None:
        while True:
            self._learn_size()
            with self._changed:
                if not self._changed.wait_for(self._has_to_talk, _KEEP):
                    self._is_talking = False
                    return
                to_stop, self._to_stop = self._to_stop, []
                piece = self._next() if self._may_send() else []
            for job, kill in to_stop:
                self._stop(job, kill=kill)
            if piece:
                self._send(piece)

    def _stop(self, job: Job, *, kill: bool) -> None:
        if job.future is None or job.future.done():
            return
        try:
            self.stop(job.future, job, kill=kill)
        except Exception:
            logger.warning("the cluster could not be told to stop a body of %r", job.step, exc_info=True)

    def _has_to_talk(self) -> bool:
        return bool(self._to_stop) or self._may_send()

    def _may_send(self) -> bool:
        while self._queue and self._queue[0].is_over:
            self._queue.popleft()
        return bool(self._queue) and self._pieces < _AHEAD * self._width

    def _next(self) -> list[Job]:
        self._pieces += 1
        share = len(self._queue) // (_AHEAD * self._width)
        count = max(1, min(share, self._pace.fitting(self._queue[0].step)))
        return [self._queue.popleft() for _ in range(count)]

    def _send(self, piece: list[Job]) -> None:
        number = next(self._numbers)
        for place, job in enumerate(piece):
            job.place = number, place
        try:
            future = self.submit(number, [job.data for job in piece])
        except Exception as error:
            self._ended(piece, error=error)
            return
        for job in piece:
            job.future = future
        future.add_done_callback(partial(self._done, piece))

    def _learn_size(self) -> None:
        if time.monotonic() < self._believed_until:
            return
        try:
            self._width = max(1, self.size())
        except Exception:
            logger.warning("the size of the cluster is not known", exc_info=True)
        self._believed_until = time.monotonic() + _BELIEVED

    def _done(self, piece: list[Job], future: concurrent.futures.Future[bytes]) -> None:
        error = Dropped() if future.cancelled() else future.exception()
        reports: list[Report] | None = None
        if error is None:
            try:
                reports = unpack(future.result())
            except Exception as broken:
                error = broken
        if reports is not None:
            self._pace.note(piece[0].step, sum(report.seconds for report in reports) / len(reports))
        self._ended(piece, reports=reports, error=error)

    def _ended(
        self, piece: list[Job], *, reports: list[Report] | None = None, error: BaseException | None = None
    ) -> None:
        again: list[Job] = []
        if reports is not None:
            for job, report in zip(piece, reports, strict=True):
                job.report(report)
        else:
            was_stopped = any(job.is_told for job in piece)  # and the piece with it: the others begin again
            again = [job for job in piece if was_stopped and not job.is_told]
            for job in piece:
                if job not in again:
                    job.end(Dropped() if job.is_told else self.lost(error))
        with self._changed:
            self._pieces -= 1
            self._queue.extendleft(reversed(again))
            self._wake()

    def lost(self, error: BaseException | None) -> BaseException:
        """How a failure of the cluster itself is said to a call."""
        said = WorkerDiedError(f"the cluster gave the body up: {error}")
        said.__cause__ = error
        return said


class Job:
    """A body on its way."""

    __slots__ = ("_executor", "_listener", "_lock", "data", "future", "is_over", "is_told", "place", "step")

    def __init__(self, executor: ClusterExecutor, step: str, data: bytes, listener: Listener) -> None:
        self._executor = executor
        self._lock = threading.Lock()
        self._listener = listener
        self.step = step
        self.data = data
        self.future: concurrent.futures.Future[bytes] | None = None
        self.place = (0, 0)
        self.is_told = False
        self.is_over = False

    def tell(self) -> None:
        """Nobody waits for it any more."""
        self._stop(kill=False)

    def kill(self) -> bool:
        """End it, as soon as the cluster gets round to it; it is not waited for."""
        self._stop(kill=True)
        self.end(Dropped())
        return True

    def _stop(self, *, kill: bool) -> None:
        self.is_told = True
        future = self.future
        if future is None:
            self.end(Dropped())
        elif not future.done():
            self._executor.stop_soon(self, kill=kill)

    def report(self, report: Report) -> None:
        """Say what became of it; once."""
        if self._is_first():
            tell_report(report, self._listener)

    def end(self, error: BaseException | None) -> None:
        """Say how it ended; once."""
        if self._is_first():
            self._listener.ended(None, error)

    def _is_first(self) -> bool:
        with self._lock:
            was_over, self.is_over = self.is_over, True
        return not was_over
