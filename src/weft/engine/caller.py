"""The thread of a sync caller, which runs the run's own body while it waits."""

from __future__ import annotations

import queue
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol


class Reader(Protocol):
    """A thread that does what it is given."""

    def put(self, job: Callable[[], None]) -> None:
        """Have a job done by the thread."""

    def resting(self) -> AbstractContextManager[None]:
        """Round a time in which the job waits."""


class Caller:
    """Runs what the loop gives to it, until it is told that the run has ended."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()

    def put(self, job: Callable[[], None]) -> None:
        """Have a job run by the caller's thread."""
        self._jobs.put(job)

    def resting(self) -> AbstractContextManager[None]:
        """It is the caller's own thread, which counts nowhere."""
        return nullcontext()

    def end(self) -> None:
        """The run has ended."""
        self._jobs.put(None)

    def serve(self) -> None:
        """Run jobs until the run has ended."""
        while (job := self._jobs.get()) is not None:
            job()
