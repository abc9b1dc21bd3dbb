"""The clock of a virtual loop."""

from __future__ import annotations

import logging
import random
import uuid
from collections.abc import Callable

from weft.core.sizing import Resources
from weft.engine.clock import Clock
from weft.testing.baton import Baton, here

logger = logging.getLogger("weft")

#: When virtual time begins for what is recorded: 2025-01-01T00:00:00Z, in seconds since the epoch.
EPOCH = 1_735_689_600.0


class VirtualClock(Clock):
    """Time that jumps when nothing can run, chance that a seed decides, and threads that take turns.

    Attributes:
        complaints: What made it impossible to keep the promise that one seed gives one log, in words.
    """

    is_virtual = True

    def __init__(
        self,
        *,
        now: Callable[[], float],
        wake: Callable[[], None],
        seed: int | None,
        resources: Resources,
        patience: float | None,
    ) -> None:
        self._now = now
        self._chance = random.Random(f"weft {seed}")
        self._has_seed = seed is not None
        self._resources = resources
        self.complaints: list[str] = []
        self.baton = Baton(
            now=now,
            order=None if seed is None else random.Random(f"weft threads {seed}"),
            patience=patience,
            complain=self.complain,
            wake=wake,
        )

    @property
    def now(self) -> float:
        """Seconds of virtual time since it began."""
        return self._now()

    def wall(self) -> float:
        """Seconds since the epoch: a fixed beginning, and the virtual time since."""
        return EPOCH + self._now()

    def draw(self) -> float:
        """A number from 0 to 1 that the seed decides; without a seed always from the same sequence."""
        return self._chance.random()

    def new_id(self) -> str:
        """An id that the seed decides: runs of two clocks with one seed have the same. Without a seed any."""
        if not self._has_seed:
            return super().new_id()
        return uuid.UUID(int=self._chance.getrandbits(128), version=4).hex

    def resources(self) -> Resources:
        """The cores and the memory that the clock was made with."""
        return self._resources

    def start_thread(self, job: Callable[[], None]) -> None:
        """Run a body on a thread when it is its turn; no other body and not the loop work meanwhile."""
        self.baton.start(job)

    def leave(self) -> None:
        """If this is the thread of a body: the loop goes on, and the body is about to block until it is woken.

        It has to block in ``threading.Condition.wait``, as all futures, events and queues written in Python do. Its
        timeout, if it has one, is one of virtual time.
        """
        if (body := here.body) is not None and body.baton is self.baton:
            self.baton.leave(body)

    def enter(self) -> None:
        """It blocks no longer; returns when it is the turn of this body."""
        if (body := here.body) is not None and body.baton is self.baton:
            self.baton.enter(body)

    def complain(self, about: str) -> None:
        """Note that something could not be as promised."""
        self.complaints.append(about)
        logger.error("virtual time: %s", about)
