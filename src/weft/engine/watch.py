"""The timeouts of one attempt: of the whole, and without a sign of life."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from weft.core.timeout import TimeoutPolicy


class AttemptWatch:
    """Says when an attempt is out of time; on the loop, but for :meth:`heartbeat`.

    Args:
        policy: The limits.
        loop: Whose time it is.
        out_of_time: Called once, with the limit that was passed (seconds), the time since the attempt began, and
            whether it was that without a sign of life.
    """

    def __init__(
        self,
        policy: TimeoutPolicy,
        loop: asyncio.AbstractEventLoop,
        out_of_time: Callable[[float, float, bool], None],
    ) -> None:
        self._policy = policy
        self._loop = loop
        self._out_of_time = out_of_time
        self._began = self._touched = loop.time()
        self._whole: asyncio.TimerHandle | None = None
        self._idle: asyncio.TimerHandle | None = None
        if policy.run_timeout is not None:
            self._whole = loop.call_later(policy.run_timeout, self._passed, policy.run_timeout, False)
        self._look()

    def end(self) -> None:
        """The attempt is over."""
        for timer in (self._whole, self._idle):
            if timer is not None:
                timer.cancel()

    def touch(self) -> None:
        """A sign of life that the engine has seen: something written, a child asked for or ended."""
        if self._policy.refresh_on == "auto":
            self._touched = self._loop.time()

    def heartbeat(self) -> None:
        """A sign of life that the body itself gives, from any thread."""
        self._touched = self._loop.time()

    def _look(self) -> None:
        limit = self._policy.idle_timeout
        if limit is None:
            return
        left = self._touched + limit - self._loop.time()
        if left <= 0:
            self._passed(limit, True)
        else:
            self._idle = self._loop.call_later(left, self._look)

    def _passed(self, limit: float, idle: bool) -> None:
        self.end()
        self._out_of_time(limit, self._loop.time() - self._began, idle)
