"""Where a run gets from what a test wants to hold in its hand: time, chance, threads, the machine.

The clock of a loop is its attribute ``weft_clock`` if it has one (see :mod:`weft.testing`), else the real one.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from weft.engine.workers import workers

if TYPE_CHECKING:
    from weft.core.sizing import Resources


class Clock:
    """The world as it is."""

    #: Whether time jumps when nothing can run, so that nothing may be done behind the loop's back.
    is_virtual = False

    def wall(self) -> float:
        """Seconds since the epoch, for what is recorded and told."""
        return time.time()

    def draw(self) -> float:
        """A number from 0 to 1, for jitter."""
        return random.random()

    def new_id(self) -> str:
        """An id that no other run has."""
        return os.urandom(16).hex()

    def resources(self) -> Resources:
        """The cores and the memory that this process may use."""
        from weft.machine import resources  # noqa: PLC0415 - psutil is not imported for runs that size nothing

        return resources()

    def start_thread(self, job: Callable[[], None]) -> None:
        """Run a body on a thread of ours, as soon as one may. A job must not raise."""
        workers.submit(job)

    def leave(self) -> None:
        """This thread, if it is one of ours, is about to block until the loop has done something."""

    def enter(self) -> None:
        """It blocks no longer; returns when it may go on."""


_REAL = Clock()


def clock_of(loop: asyncio.AbstractEventLoop) -> Clock:
    """The clock that runs on this loop use."""
    found: Clock = getattr(loop, "weft_clock", _REAL)
    return found
