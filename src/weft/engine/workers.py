"""Threads for sync bodies.

asyncio's default executor is small (five threads on one core), waits for its threads at exit, and would hang a
workflow whose bodies wait for bodies of their own. These threads are daemons, are kept for reuse, and a body
that waits for children of its own is not counted.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
from collections import deque
from collections.abc import Callable

logger = logging.getLogger("weft")

Job = Callable[[], None]

#: Seconds for which an idle thread is kept.
_KEEP = 10.0


class Workers:
    """Runs jobs on daemon threads, at most ``limit`` at once; more wait in order."""

    def __init__(self, limit: int = 512) -> None:
        self._limit = limit
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._backlog: deque[Job] = deque()
        self._idle = 0
        self._working = 0
        self._pid = os.getpid()

    def submit(self, job: Job) -> None:
        """Run ``job`` on a thread as soon as one may. A job must not raise."""
        if self._pid != os.getpid():
            self._reset()  # the threads stayed in the parent process
        with self._lock:
            if self._working >= self._limit:
                self._backlog.append(job)
                return
            self._begin(job)

    def leave(self) -> None:
        """A body begins to wait for its children: it does not count until :meth:`come_back`."""
        with self._lock:
            self._working -= 1
            self._begin_backlog()

    def come_back(self) -> None:
        """The children have ended. The body has its thread already, so it never waits."""
        with self._lock:
            self._working += 1

    def _begin(self, job: Job) -> None:
        self._working += 1
        if self._idle:
            self._idle -= 1
            self._jobs.put(job)
            return
        # By itself: in the queue another thread could take it. In a list: a thread keeps its arguments.
        first = [job]
        try:
            threading.Thread(target=self._work, args=(first,), name="weft-worker", daemon=True).start()
        except RuntimeError:
            self._working -= 1
            raise

    def _begin_backlog(self) -> None:
        while self._backlog and self._working < self._limit:
            self._begin(self._backlog.popleft())

    def _work(self, first: list[Job]) -> None:
        job: Job | None = first.pop()
        while job is not None:
            try:
                job()
            except BaseException:
                logger.exception("a job of the engine failed")
            job = None  # what it holds must not live until the next one
            with self._lock:
                self._working -= 1
                self._idle += 1
                self._begin_backlog()
            job = self._wait_for_job()

    def _wait_for_job(self) -> Job | None:
        try:
            return self._jobs.get(timeout=_KEEP)
        except queue.Empty:
            with self._lock:
                if self._idle:
                    self._idle -= 1
                    return None
        return self._jobs.get()  # a job was given to this thread in the last moment


#: The threads of this process for bodies. None is started before there is a job.
workers = Workers()

#: Those for the engine's own blocking work, which must not wait behind bodies.
engine_workers = Workers(limit=64)
